//! The pods' side of the node: which network interfaces their packets come in by.

use std::fmt;
use std::str::FromStr;

/// The longest name of a network interface, in bytes (`IFNAMSIZ` less the end).
const MAX_BYTES: usize = 15;

/// Which interfaces each network plugin gives its pods, as kiam's and kube2iam's users found them.
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

/// Interfaces as iptables names them: one, all that begin so (`cali+`), or all but these (`!eth0`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    name: String,
    inverted: bool,
}

/// Why a text names no interfaces.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} names no network interface: expected up to {MAX_BYTES} characters as in cni0, cali+ (all that begin so) or !eth0 (all but that)"
)]
pub struct InterfaceError(String);

/// Why these interfaces are probably not the pods'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceWarning {
    /// Docker's, where Docker has none.
    #[error(
        "--host-interface=docker0, and this node has no interface docker0: its pods are not Docker's. No pod is redirected. {}",
        plugins()
    )]
    NoDocker,
    /// There is none by that name.
    #[error(
        "--host-interface={name}, and this node has no such interface: no pod is redirected until it has. It has {present}. {}",
        plugins()
    )]
    Missing {
        /// As given.
        name: String,
        /// What there is.
        present: String,
    },
    /// All but one that is not there: all.
    #[error(
        "--host-interface={given}, and this node has no such interface: packets that come in by any are redirected, the node's uplink included. It has {present}. {}",
        plugins()
    )]
    NothingExcluded {
        /// As given.
        given: String,
        /// What there is.
        present: String,
    },
    /// None begins like that, yet.
    #[error(
        "--host-interface={given} matches no interface of this node, which is as it should be only while it has no pods. It has {present}. {}",
        plugins()
    )]
    NoneYet {
        /// As given.
        given: String,
        /// What there is.
        present: String,
    },
}

impl HostInterface {
    /// The match, as iptables prints it.
    #[must_use]
    pub fn rule(&self) -> String {
        let not = if self.inverted { "! " } else { "" };
        format!("{not}-i {}", self.name)
    }

    /// What speaks against these interfaces on a node that has `present`.
    #[must_use]
    pub fn warning(&self, present: &[String]) -> Option<InterfaceWarning> {
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

    /// Whether the name, `!` aside, is this interface's.
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
        // What the kernel takes in a name, less what a line of iptables-restore or a flag reads
        // otherwise.
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

/// The table, on one line.
fn plugins() -> String {
    let known: Vec<_> = PLUGINS
        .iter()
        .map(|(plugin, interface)| format!("{plugin}: {interface}"))
        .collect();
    format!("Pods' interfaces by network plugin: {}", known.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_kiam_read_them() {
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
    fn interfaces_that_are_not_there_are_warned_of() {
        let present = ["lo", "eth0", "cali12ab"].map(str::to_owned);
        for (text, expected) in [
            ("cali+", None),
            ("!eth0", None),
            ("+", None),
            ("docker0", Some("its pods are not Docker's")),
            ("cni0", Some("no pod is redirected until it has")),
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
