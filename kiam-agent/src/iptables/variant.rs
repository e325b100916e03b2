//! Selection of the iptables variant: the one that holds the rules of the node's programs. Rules in
//! the other would apply before or after all of these, and operators would not find them.

use super::error::IptablesError;
use super::plan::{Family, Listing, Table};
use super::tool::{Tool, Variant};

/// Chains by which the kubelet marks its variant, since Kubernetes 1.24 and 1.17.
const KUBELET: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];

/// The installed variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variants {
    /// The variant that the node uses.
    pub(super) own: Variant,
    /// The variant that the node does not use, if it is installed.
    pub(super) other: Option<Variant>,
}

impl Variants {
    /// Detects the installed variants and the one in use.
    pub(super) async fn detect() -> Result<Self, IptablesError> {
        let there = async |variant| {
            let family = Family::V4;
            Tool { variant, family }.is_there().await
        };
        match (there(Variant::Nft).await?, there(Variant::Legacy).await?) {
            (true, true) => {
                let nft = saved(Variant::Nft).await;
                let legacy = saved(Variant::Legacy).await;
                Ok(choose(&nft, &legacy))
            }
            (true, false) => Ok(Self::only(Variant::Nft)),
            (false, true) => Ok(Self::only(Variant::Legacy)),
            (false, false) if there(Variant::Plain).await? => Ok(Self::only(Variant::Plain)),
            (false, false) => Err(IptablesError::NoProgram),
        }
    }

    const fn only(own: Variant) -> Self {
        Self { own, other: None }
    }
}

/// Returns the tables of both families; nothing where the kernel does not have them.
async fn saved(variant: Variant) -> String {
    let mut all = String::new();
    for family in [Family::V4, Family::V6] {
        match (Tool { variant, family }).save().await {
            Ok(saved) => all.push_str(&saved),
            Err(error) => tracing::debug!(%error, "this variant of iptables is not in use"),
        }
    }
    all
}

/// Chooses the variant with the kubelet's mark, else the one with more rules, else nftables.
fn choose(nft: &str, legacy: &str) -> Variants {
    let kubelet = |saved: &str| {
        let mut lines = saved.lines();
        lines.any(|line| KUBELET.iter().any(|chain| line.starts_with(chain)))
    };
    let rules = |saved: &str| Listing::rules(saved).count();
    let is_legacy = match (kubelet(nft), kubelet(legacy)) {
        (true, false) => false,
        (false, true) => true,
        _ => rules(legacy) > rules(nft),
    };
    let (own, other) = if is_legacy {
        (Variant::Legacy, Variant::Nft)
    } else {
        (Variant::Nft, Variant::Legacy)
    };
    let other = Some(other);
    Variants { own, other }
}

/// Extracts a table from the output of `iptables-save`.
pub(super) fn table_of(saved: &str, table: Table) -> Listing {
    let mut listing = Listing::default();
    let head = format!("*{}", table.name());
    let lines = saved.lines().skip_while(|line| *line != head).skip(1);
    for line in lines.take_while(|line| *line != "COMMIT") {
        listing.take_saved(line, table);
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str =
        "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    const ONE: &str = "*nat\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
    const TWO: &str = "*filter\n-A INPUT -j cali-INPUT\n-A FORWARD -j cali-FORWARD\nCOMMIT\n";

    #[test]
    fn the_variant_of_the_node_is_chosen() {
        for (nft, legacy, expected) in [
            ("", "", Variant::Nft),
            (CANARY, "", Variant::Nft),
            ("", CANARY, Variant::Legacy),
            ("", HINT, Variant::Legacy),
            // Rules that an earlier agent left in the wrong variant do not mislead.
            (CANARY, TWO, Variant::Nft),
            (TWO, HINT, Variant::Legacy),
            // Both: the kubelet changed its variant, and the node was not rebooted.
            (
                &format!("{CANARY}{ONE}"),
                &format!("{CANARY}{TWO}"),
                Variant::Legacy,
            ),
            (ONE, TWO, Variant::Legacy),
            (TWO, ONE, Variant::Nft),
            (ONE, ONE, Variant::Nft),
        ] {
            let Variants { own, other } = choose(nft, legacy);
            assert_eq!(own, expected, "{nft} {legacy}");
            assert!(other.is_some_and(|other| other != own));
        }
    }

    #[test]
    fn a_table_is_extracted_from_all_tables() {
        let saved = "# Generated\n\
            *filter\n:INPUT ACCEPT [0:0]\n:KIAM-METADATA - [0:0]\n\
            -A INPUT -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA\n\
            -A OUTPUT -j ACCEPT\n\
            -A KIAM-METADATA -i lo -j RETURN\nCOMMIT\n\
            *nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        let filter = table_of(saved, Table::Filter);
        assert_eq!(
            filter.ours(),
            [
                "-A INPUT -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA",
                "-A KIAM-METADATA -i lo -j RETURN",
            ]
        );
        assert_eq!(filter.hooks.len(), 1);
        let nat = table_of(saved, Table::Nat);
        assert_eq!((nat.hooks.len(), &nat.chain), (1, &None));
        assert_eq!(table_of("", Table::Nat), Listing::default());
    }
}
