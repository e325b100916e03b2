//! A node: a namespace on the fabric that forwards for its pods, with the cgroups that a kubelet
//! makes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use kiam_common::metadata_address::{METADATA_V4, METADATA_V6};

use super::kubelet::{CgroupDriver, Qos, Runtime};
use super::{Bpffs, Cgroup, Netns, Place, Sandbox, address, tools};

/// The metadata service's addresses.
const METADATA: [IpAddr; 2] = [IpAddr::V4(METADATA_V4), IpAddr::V6(METADATA_V6)];

/// Configuration of a node's kubelet.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeOptions {
    /// Naming scheme for cgroups.
    pub driver: CgroupDriver,
    /// Container runtime.
    pub runtime: Runtime,
}

/// A node. Cheap to clone; it is removed with the last clone and pod.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    name: String,
    number: u32,
    options: NodeOptions,
    pods: AtomicU32,
    // In the order in which they are dropped.
    qos: [Cgroup; 2],
    kubepods: Cgroup,
    system: Cgroup,
    bpffs: Bpffs,
    place: Place,
    sandbox: Sandbox,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.0.name).finish()
    }
}

impl Node {
    pub(super) fn make(
        sandbox: Sandbox,
        number: u32,
        name: &str,
        options: NodeOptions,
    ) -> Result<Self> {
        let most = address::MAX_NODES;
        ensure!(number <= most, "a sandbox has {most} nodes at most");
        let netns = Netns::make(&format!("kiam-{}-n{number}", sandbox.run()))?;
        let (v4, v6) = (address::node_v4(number), address::node_v6(number));
        let (pods_v4, pods_v6) = (address::pods_v4(number), address::pods_v6(number));
        let control = sandbox.control().netns();
        tools::ip(
            Some(control.name()),
            &format!(
                "link add n{number} type veth peer name eth0 netns {}
                 link set n{number} master fabric up
                 route add {pods_v4} via {v4}
                 route add {pods_v6} via {v6}",
                netns.name()
            ),
        )?;
        tools::ip(
            Some(netns.name()),
            &format!(
                "link set lo up
                 link set eth0 up
                 addr add {v4}/16 dev eth0
                 addr add {v6}/64 dev eth0 nodad
                 route add default via 10.0.0.1
                 route add default via fd00:10::1
                 addr add {}/32 dev lo
                 addr add {}/128 dev lo nodad",
                METADATA[0], METADATA[1]
            ),
        )?;
        netns.forward()?;

        let cgroup = sandbox.cgroup().child(name)?;
        let system = cgroup.child("system.slice")?;
        let kubepods = cgroup.child(options.driver.kubepods())?;
        let qos = [Qos::Burstable, Qos::BestEffort]
            .map(|qos| options.driver.qos(qos).map(|name| kubepods.child(&name)));
        let [Some(burstable), Some(best_effort)] = qos else {
            unreachable!("both have a cgroup of their own");
        };
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            number,
            options,
            pods: AtomicU32::new(0),
            qos: [burstable?, best_effort?],
            kubepods,
            place: Place::new(netns, system.child("node.service")?),
            system,
            bpffs: Bpffs::new()?,
            sandbox,
        })))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its address on the fabric.
    pub fn ip(&self) -> IpAddr {
        address::node_v4(self.0.number).into()
    }

    /// Its IPv6 address on the fabric.
    pub fn ipv6(&self) -> Ipv6Addr {
        address::node_v6(self.0.number)
    }

    /// The cgroup of all pods.
    pub fn kubepods(&self) -> &Cgroup {
        &self.0.kubepods
    }

    /// The BPF file system in which kernel programs are pinned.
    pub fn bpffs(&self) -> &Bpffs {
        &self.0.bpffs
    }

    /// The place for programs of the node, outside of pods.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// A new place for a service of the node, with its own cgroup, outside of pods.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn service(&self, name: &str) -> Result<Place> {
        let cgroup = self.0.system.child(&format!("{name}.service"))?;
        Ok(self.0.place.with_cgroup(cgroup))
    }

    /// Sockets at the metadata service's addresses, for the double that stands for the real one.
    ///
    /// # Errors
    /// When they are taken.
    pub fn listen_at_metadata_service(&self) -> Result<Vec<TcpListener>> {
        let netns = self.0.place.netns();
        METADATA
            .iter()
            .map(|ip| netns.listen(SocketAddr::new(*ip, 80)))
            .collect()
    }

    /// The number of the next pod, from 1 on.
    pub(super) fn next_pod(&self) -> u32 {
        self.0.pods.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.0.sandbox
    }

    pub(super) fn number(&self) -> u32 {
        self.0.number
    }

    pub(super) fn options(&self) -> NodeOptions {
        self.0.options
    }

    /// The cgroup that pods of this class are in.
    pub(super) fn qos(&self, qos: Qos) -> &Cgroup {
        match qos {
            Qos::Guaranteed => &self.0.kubepods,
            Qos::Burstable => &self.0.qos[0],
            Qos::BestEffort => &self.0.qos[1],
        }
    }
}
