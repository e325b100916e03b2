//! A pod: a namespace joined to its node by a veth pair, and cgroups named as the kubelet names
//! them.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::kubelet::Qos;
use super::{Cgroup, Netns, Node, Place, address, tools};

/// Properties of a new pod.
#[derive(Debug, Clone, Default)]
pub struct PodOptions {
    /// UID; a random one by default.
    pub uid: Option<String>,
    /// IPv4 address; the next one of the node by default. The IPv6 address is always the next one.
    pub ip: Option<Ipv4Addr>,
    /// Quality-of-service class.
    pub qos: Qos,
    /// True if the pod is in the network namespace of its node.
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

impl Node {
    /// Makes a pod's namespaces and cgroups, as kubelet and CNI do.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn pod(&self, options: PodOptions) -> Result<Pod> {
        Pod::make(self.clone(), self.next_pod(), options)
    }
}

impl Pod {
    fn make(node: Node, number: u32, options: PodOptions) -> Result<Self> {
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

    /// True if the pod is in the network namespace of its node.
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
            let _ = tools::ip(Some(self.node.place().netns().name()), &link);
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
        Some(node.place().netns().name()),
        &format!(
            "link add {link} type veth peer name eth0 netns {name}
             link set {link} up
             addr add fe80::1/64 dev {link} nodad
             route add {v4} dev {link} src {host}
             route add {v6} dev {link} src {host_v6}"
        ),
    )?;
    tools::ip(
        Some(netns.name()),
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
    fn uids_are_of_version_4() {
        let uid = random_uuid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]), "{uid}");
        assert_ne!(uid, random_uuid());
    }
}
