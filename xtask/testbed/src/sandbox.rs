//! The sandbox: a cluster's nodes and pods made of network namespaces, veth pairs and cgroups.
//!
//! ```text
//!  control ── the API server, STS, kiam-server           10.0.0.1   fd00:10::1
//!     │ bridge
//!     ├── node 1 ── the agent; metadata service on lo    10.0.1.1   fd00:10::1:1
//!     │     ├── pod   own namespace, own cgroup          10.101.…   fd00:10:1::…
//!     │     └── pod
//!     └── node 2 …
//! ```
//!
//! Everything is made below one cgroup and in namespaces of the sandbox's own; nothing is attached,
//! routed or sent outside of them. A janitor process removes it all when the sandbox is dropped,
//! and also when this process is killed; what a killed janitor left is swept at the next start.

mod address;
mod bpffs;
mod cgroup;
mod janitor;
mod kubelet;
mod netns;
mod node;
mod patience;
mod place;
mod pod;
mod program;
mod tools;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use toolchain::Plan;

pub use bpffs::Bpffs;
pub use cgroup::{Cgroup, mount as cgroup_mount};
pub use kubelet::{CgroupDriver, Qos, Runtime};
pub use netns::{Guest, Netns};
pub use node::{Node, NodeOptions};
pub use patience::{PATIENCE, patient};
pub use place::Place;
pub use pod::{Container, Pod, PodOptions, random_uuid};
pub use program::{Finished, Program, run};

use janitor::Janitor;

/// The control plane's address.
pub const CONTROL_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Names what this machine lacks to make a sandbox, if anything.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| tools::missing().or_else(cgroup::missing))
        .clone()
}

/// Adds the programs that make it.
pub fn plan(plan: &mut Plan) {
    let makes = "makes and enters the sandbox's network namespaces";
    plan.program("ip", "iproute2", makes);
    plan.program("nsenter", "util-linux", makes);
    let redirects = "redirects pods without kernel programs";
    plan.program("iptables", "iptables", redirects);
}

/// A control plane's namespace, and whatever nodes are added. Cheap to clone; everything is
/// removed with the last clone, node and pod.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    control: Place,
    nodes: AtomicU32,
    cgroup: Cgroup,
    scratch: PathBuf,
    run: String,
    // Dropped last: it removes what the others stand for.
    _janitor: Janitor,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sandbox").field(&self.0.run).finish()
    }
}

impl Sandbox {
    /// Makes the control plane's namespace; the first call of a process also removes what killed
    /// processes have left.
    ///
    /// # Errors
    /// When something is missing, see [`missing`], or a tool fails.
    pub fn new() -> Result<Self> {
        if let Some(missing) = missing() {
            anyhow::bail!("cannot make a sandbox: {missing}");
        }
        static SWEPT: OnceLock<()> = OnceLock::new();
        SWEPT.get_or_init(janitor::sweep);
        static SANDBOXES: AtomicU32 = AtomicU32::new(0);
        let number = SANDBOXES.fetch_add(1, Ordering::Relaxed);
        let run = format!("{}-{number}", std::process::id());

        let janitor = Janitor::watch(&run)?;
        let scratch = janitor::scratch(&run);
        tools::private_folder(&scratch)?;
        let cgroup = Cgroup::make(&janitor::cgroup(&run)?)?;
        let netns = Netns::make(&format!("kiam-{run}-control"))?;
        tools::ip(
            Some(netns.name()),
            "link set lo up
             link add fabric type bridge
             link set fabric up
             addr add 10.0.0.1/16 dev fabric
             addr add fd00:10::1/64 dev fabric nodad",
        )?;
        netns.forward()?;
        let control = Place::new(netns, cgroup.child("control")?);
        Ok(Self(Arc::new(Inner {
            control,
            nodes: AtomicU32::new(0),
            cgroup,
            scratch,
            run,
            _janitor: janitor,
        })))
    }

    /// The place for programs of the control plane.
    pub fn control(&self) -> &Place {
        &self.0.control
    }

    /// A folder that only root can read, removed with the sandbox.
    pub fn scratch(&self) -> &Path {
        &self.0.scratch
    }

    /// A new folder in [`Self::scratch`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.scratch.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Adds a node.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn node(&self, name: &str, options: NodeOptions) -> Result<Node> {
        let number = self.0.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        Node::make(self.clone(), number, name, options)
    }

    /// The sandbox's part of the names of its namespaces.
    fn run(&self) -> &str {
        &self.0.run
    }

    /// The cgroup that everything is in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.0.cgroup
    }
}
