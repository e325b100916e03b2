//! Node names in certificates.

use kiam_common::tls::PeerNames;

use crate::node::NodeName;

/// The suffix of a node name in a DNS name.
const DNS_SUFFIX: &str = ".node.kiam";

/// Returns the nodes that a certificate names.
pub(super) fn nodes(names: &PeerNames) -> Vec<NodeName> {
    let dns = names
        .dns
        .iter()
        .filter_map(|name| name.strip_suffix(DNS_SUFFIX));
    let uris = names.uris.iter().filter_map(|uri| {
        let (domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        path.strip_prefix("node/").filter(|_| !domain.is_empty())
    });
    dns.chain(uris)
        .filter_map(|name| name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_nodes_are_found() {
        for (name, node) in [
            ("node-1.node.kiam", Some("node-1")),
            (
                "ip-10-0-0-1.eu-west-1.compute.internal.node.kiam",
                Some("ip-10-0-0-1.eu-west-1.compute.internal"),
            ),
            ("node-1", None),
            (".node.kiam", None),
            ("NODE.node.kiam", None),
            ("spiffe://cluster.local/node/node-1", Some("node-1")),
            ("spiffe://cluster.local/node/a/b", None),
            ("spiffe:///node/node-1", None),
            ("https://cluster.local/node/node-1", None),
        ] {
            let of = |names| nodes(&names).first().map(|node| node.as_str().to_owned());
            let list = vec![name.to_owned()];
            let found = if name.contains("//") {
                of(PeerNames {
                    uris: list,
                    ..PeerNames::default()
                })
            } else {
                of(PeerNames {
                    dns: list,
                    ..PeerNames::default()
                })
            };
            assert_eq!(found.as_deref(), node, "{name}");
        }
    }
}
