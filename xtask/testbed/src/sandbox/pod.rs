//! A pod: a namespace joined to its node by a veth pair, and cgroups named as the kubelet names
//! them.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::{Cgroup, Netns, Node, Place, address, tools};

/// Naming scheme of the kubelet for cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// Slices and scopes of systemd.
    #[default]
    Systemd,
    /// Plain folders.
    Cgroupfs,
}

/// Container runtime, which determines the name of a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runtime {
    /// `cri-containerd-ID.scope`
    #[default]
    Containerd,
    /// `crio-ID.scope`
    Crio,
    /// `docker-ID.scope`
    Docker,
}

/// Quality-of-service class of a pod, which is part of the path of its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// All limits equal the requests.
    Guaranteed,
    /// Some requests.
    #[default]
    Burstable,
    /// No requests.
    BestEffort,
}

/// Properties of a new pod.
#[derive(Debug, Clone, Default)]
pub struct PodOptions {
    /// UID; a random one by default.
    pub uid: Option<String>,
    /// IPv4 address; the next one of the node by default. The IPv6 address is always the next one.
    pub ip: Option<Ipv4Addr>,
    /// Quality-of-service class.
    pub qos: Qos,
    /// Whether the pod is in the network namespace of its node.
    pub host_network: bool,
}

/// A pod with one container. It is removed, with all that runs in it, when dropped.
#[derive(Debug)]
pub struct Pod {
    uid: String,
    ips: Option<(Ipv4Addr, Ipv6Addr)>,
    link: Option<String>,
    // In the order in which they are dropped.
    container: Container,
    cgroup: Cgroup,
    netns: Netns,
    node: Node,
}

/// A container of a pod, or a process's place in it.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
    place: Place,
}

impl Container {
    /// The runtime's id of it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The place for its programs.
    pub const fn place(&self) -> &Place {
        &self.place
    }
}

impl CgroupDriver {
    pub(super) const fn kubepods(self) -> &'static str {
        match self {
            Self::Systemd => "kubepods.slice",
            Self::Cgroupfs => "kubepods",
        }
    }

    /// The cgroup of a class, below that of all pods.
    pub(super) fn qos(self, qos: Qos) -> Option<String> {
        let class = qos.word()?;
        Some(match self {
            Self::Systemd => format!("kubepods-{class}.slice"),
            Self::Cgroupfs => class.to_owned(),
        })
    }

    fn pod(self, qos: Qos, uid: &str) -> String {
        match (self, qos.word()) {
            (Self::Cgroupfs, _) => format!("pod{uid}"),
            (Self::Systemd, None) => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
            (Self::Systemd, Some(class)) => {
                format!("kubepods-{class}-pod{}.slice", uid.replace('-', "_"))
            }
        }
    }

    fn container(self, runtime: Runtime, id: &str) -> String {
        let prefix = match runtime {
            Runtime::Containerd => "cri-containerd",
            Runtime::Crio => "crio",
            Runtime::Docker => "docker",
        };
        match self {
            Self::Systemd => format!("{prefix}-{id}.scope"),
            Self::Cgroupfs => id.to_owned(),
        }
    }
}

impl Qos {
    const fn word(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

impl Pod {
    pub(super) fn make(node: Node, number: u32, options: PodOptions) -> Result<Self> {
        let PodOptions {
            uid,
            ip,
            qos,
            host_network,
        } = options;
        let uid = uid.unwrap_or_else(random_uuid);
        let driver = node.options().driver;
        let cgroup = node.qos(qos).child(&driver.pod(qos, &uid))?;

        let (netns, ips, link) = if host_network {
            (node.place().netns().clone(), None, None)
        } else {
            let ip = ip.unwrap_or_else(|| address::pod_v4(node.number(), number));
            let ips = (ip, address::pod_v6(node.number(), number));
            let link = format!("p{number}");
            (network(&node, number, &link, ips)?, Some(ips), Some(link))
        };
        let container = container(&node, &netns, &cgroup, &uid, "main")?;
        Ok(Self {
            uid,
            ips,
            link,
            container,
            cgroup,
            netns,
            node,
        })
    }

    /// Whether the pod is in the network namespace of its node.
    pub const fn is_host_network(&self) -> bool {
        self.ips.is_none()
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its address; none if it is in its node's network namespace.
    pub fn ip(&self) -> Option<Ipv4Addr> {
        self.ips.map(|(v4, _)| v4)
    }

    /// Its IPv6 address; none if it is in its node's network namespace.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ips.map(|(_, v6)| v6)
    }

    /// Its node.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// The place for the programs of its container.
    pub const fn place(&self) -> &Place {
        self.container.place()
    }

    /// Its container.
    pub const fn container(&self) -> &Container {
        &self.container
    }

    /// One more container in it.
    ///
    /// # Errors
    /// When its cgroup cannot be made.
    pub fn add_container(&self, name: &str) -> Result<Container> {
        container(&self.node, &self.netns, &self.cgroup, &self.uid, name)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // All of this fails only for what is gone already, and the janitor looks again.
        let _ = self.cgroup.kill();
        if let Some(link) = self.link.take() {
            // A namespace is torn down in the background; the address must be free at once.
            let link = format!("link delete {link}");
            let _ = tools::ip(Some(self.node.place().netns()), &link);
        }
    }
}

fn container(node: &Node, netns: &Netns, pod: &Cgroup, uid: &str, name: &str) -> Result<Container> {
    let digest = Sha256::digest(format!("{uid}/{name}"));
    let id: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let options = node.options();
    let cgroup = pod.child(&options.driver.container(options.runtime, &id))?;
    let place = Place::new(netns.clone(), cgroup);
    Ok(Container { id, place })
}

/// Joins a new namespace to the node, the node being the router to everything.
fn network(node: &Node, number: u32, link: &str, ips: (Ipv4Addr, Ipv6Addr)) -> Result<Netns> {
    let name = format!("kiam-{}-n{}-p{number}", node.sandbox().run(), node.number());
    let netns = Netns::make(&name)?;
    let ((v4, v6), host, host_v6) = (ips, node.ip(), node.ipv6());
    // The node has the metadata service's addresses, too, and would speak to its pods from those.
    tools::ip(
        Some(node.place().netns()),
        &format!(
            "link add {link} type veth peer name eth0 netns {name}
             link set {link} up
             addr add fe80::1/64 dev {link} nodad
             route add {v4} dev {link} src {host}
             route add {v6} dev {link} src {host_v6}"
        ),
    )?;
    tools::ip(
        Some(&netns),
        &format!(
            "link set lo up
             link set eth0 up
             addr add {v4}/32 dev eth0
             addr add {v6}/128 dev eth0 nodad
             route add {host} dev eth0
             route add default via {host}
             route add default via fe80::1 dev eth0"
        ),
    )?;
    Ok(netns)
}

/// A random UUID: version 4 of RFC 9562.
pub fn random_uuid() -> String {
    let random: u128 = rand::random();
    let bits = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{bits:032x}");
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &hex[range]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_named_as_the_kubelet_names_them() {
        let systemd = CgroupDriver::Systemd;
        assert_eq!(systemd.pod(Qos::Guaranteed, "a-b"), "kubepods-poda_b.slice");
        assert_eq!(
            systemd.pod(Qos::BestEffort, "a-b"),
            "kubepods-besteffort-poda_b.slice"
        );
        assert_eq!(
            systemd.qos(Qos::Burstable).unwrap(),
            "kubepods-burstable.slice"
        );
        assert_eq!(systemd.container(Runtime::Crio, "1f"), "crio-1f.scope");
        let cgroupfs = CgroupDriver::Cgroupfs;
        assert_eq!(cgroupfs.pod(Qos::Burstable, "a-b"), "poda-b");
        assert_eq!(cgroupfs.qos(Qos::Burstable).unwrap(), "burstable");
        assert_eq!(cgroupfs.qos(Qos::Guaranteed), None);
        assert_eq!(cgroupfs.container(Runtime::Docker, "1f"), "1f");
    }

    #[test]
    fn uids_are_of_version_4() {
        let uid = random_uuid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]), "{uid}");
        assert_ne!(uid, random_uuid());
    }
}
