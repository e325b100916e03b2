//! `--host-interface`: the network interfaces that pods' packets arrive on.

use std::fmt;
use std::str::FromStr;

/// Maximum length of the name of a network interface, in bytes (`IFNAMSIZ` less the final zero).
const MAX_BYTES: usize = 15;

/// Interfaces of pods by network plugin, as users of kiam and kube2iam found them.
const PLUGINS: [(&str, &str); 11] = [
    ("AWS VPC CNI", "!eth0 or eni+"),
    ("Calico, Canal", "cali+"),
    ("Cilium", "lxc+"),
    ("Flannel", "cni0"),
    ("kindnet, ptp", "veth+"),
    ("kube-router", "kube-bridge"),
    ("kubenet", "cbr0"),
    ("OpenShift SDN", "tun0"),
    ("OVN-Kubernetes", "ovn-k8s-mp0"),
    ("Weave Net", "weave"),
    ("Docker", "docker0"),
];

/// Interfaces in the syntax of iptables: one (`cni0`), a prefix (`cali+`), or all but these
/// (`!eth0`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    name: String,
    inverted: bool,
}

/// Error for a text that names no interfaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a network interface: expected up to {MAX_BYTES} characters, as in cni0, cali+ (all that begin with cali) or !eth0 (all but eth0)"
)]
pub struct InterfaceError(String);

/// Reason why the interfaces are probably not those of pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InterfaceWarning {
    /// `docker0` on a node without Docker.
    #[error(
        "--host-interface=docker0 is missing on this node, so its pods do not run in Docker: no pod is redirected; {}",
        plugins()
    )]
    NoDocker,
    /// The interface is missing.
    #[error(
        "--host-interface={name} is missing on this node: no pod is redirected until it is created; the node has {present}; {}",
        plugins()
    )]
    Missing {
        /// The flag's value.
        name: String,
        /// The interfaces of the node.
        present: String,
    },
    /// The excluded interface is missing, so all interfaces match.
    #[error(
        "--host-interface={given} excludes an interface that is missing on this node: packets of all interfaces are redirected, the node's uplink included; the node has {present}; {}",
        plugins()
    )]
    NothingExcluded {
        /// The flag's value.
        given: String,
        /// The interfaces of the node.
        present: String,
    },
    /// No interface has the prefix yet.
    #[error(
        "--host-interface={given} matches no interface of this node, which is right only while it has no pods; the node has {present}; {}",
        plugins()
    )]
    NoneYet {
        /// The flag's value.
        given: String,
        /// The interfaces of the node.
        present: String,
    },
}

impl HostInterface {
    /// Returns the match as iptables prints it.
    pub fn rule(&self) -> String {
        let not = if self.inverted { "! " } else { "" };
        format!("{not}-i {}", self.name)
    }

    /// Returns a warning if these are probably not the interfaces of pods on a node that has
    /// `present`.
    pub(crate) fn warning(&self, present: &[String]) -> Option<InterfaceWarning> {
        if present.iter().any(|name| self.names(name)) {
            return None;
        }
        let given = self.to_string();
        let present = present.join(" ");
        Some(match (self.inverted, self.name.as_str()) {
            (true, _) => InterfaceWarning::NothingExcluded { given, present },
            (false, "docker0") => InterfaceWarning::NoDocker,
            (false, name) if name.ends_with('+') => InterfaceWarning::NoneYet { given, present },
            (false, _) => InterfaceWarning::Missing {
                name: given,
                present,
            },
        })
    }

    /// Returns whether the name, without `!`, matches an interface.
    fn names(&self, interface: &str) -> bool {
        match self.name.strip_suffix('+') {
            Some(beginning) => interface.starts_with(beginning),
            None => interface == self.name,
        }
    }
}

impl FromStr for HostInterface {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let name = text.strip_prefix('!').unwrap_or(text);
        let stem = name.strip_suffix('+').unwrap_or(name);
        // The characters that the kernel accepts, less those with a meaning to iptables-restore or
        // to a command line.
        let fits = |c: char| c.is_ascii_graphic() && !"/:+!\"'\\".contains(c);
        let valid = !name.is_empty()
            && name.len() <= MAX_BYTES
            && !name.starts_with('-')
            && !matches!(name, "." | "..")
            && stem.chars().all(fits);
        if !valid {
            return Err(InterfaceError(text.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            inverted: text.starts_with('!'),
        })
    }
}

impl fmt::Display for HostInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.inverted { "!" } else { "" };
        write!(f, "{not}{}", self.name)
    }
}

/// Returns the table of plugins, on one line.
fn plugins() -> String {
    let known: Vec<_> = PLUGINS
        .iter()
        .map(|(plugin, interface)| format!("{plugin}: {interface}"))
        .collect();
    format!("interfaces of pods by network plugin: {}", known.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_like_those_of_kiam() {
        for (text, rule) in [
            ("cali+", "-i cali+"),
            ("!eth0", "! -i eth0"),
            ("!ens+", "! -i ens+"),
            ("eth0.100", "-i eth0.100"),
            ("kube-bridge", "-i kube-bridge"),
            ("+", "-i +"),
        ] {
            let interface: HostInterface = text.parse().unwrap();
            assert_eq!(interface.rule(), rule);
            assert_eq!(interface.to_string(), text);
        }
        for text in [
            "",
            "!",
            "!!eth0",
            "-eth0",
            "eth0 -j ACCEPT",
            "eth0\n-F",
            "ca+li",
            "a/b",
            "..",
            "a\"b",
            "sixteen-letters0",
        ] {
            assert!(text.parse::<HostInterface>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn missing_interfaces_are_reported() {
        let present = ["lo", "eth0", "cali12ab"].map(str::to_owned);
        for (text, expected) in [
            ("cali+", None),
            ("!eth0", None),
            ("+", None),
            ("docker0", Some("its pods do not run in Docker")),
            ("cni0", Some("no pod is redirected until it is created")),
            ("lxc+", Some("only while it has no pods")),
            ("!ens5", Some("the node's uplink included")),
        ] {
            let interface: HostInterface = text.parse().unwrap();
            let warning = interface.warning(&present).map(|w| w.to_string());
            match expected {
                None => assert_eq!(warning, None, "{text}"),
                Some(part) => {
                    let warning = warning.unwrap();
                    assert!(warning.contains(part), "{warning}");
                    assert!(warning.contains("Calico, Canal: cali+"), "{warning}");
                }
            }
        }
    }
}
