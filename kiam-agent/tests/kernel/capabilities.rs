//! What the programs need to be loaded, attached and asked: these capabilities, and no others.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use kiam_agent::kernel::cgroup::{Found, Mount, Pods};
use kiam_agent::kernel::{HostNetwork, KernelLog, Programs, Redirect, own_netns_cookie};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::Test;
use crate::sandbox::{AGENT, Node};

pub(crate) const TESTS: &[Test] = &[
    ("needs_these_capabilities_only", sufficient),
    ("says_which_capabilities_are_missing", missing),
];

/// Names the cgroup to attach to, for this program as its own child.
const CHILD: &str = "KIAM_TEST_ATTACH";

/// Names the BPF file system to pin in.
const BPFFS: &str = "KIAM_TEST_BPFFS";

/// Where this program is its own child: loads, attaches and asks, and says what came of it.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
pub(crate) fn child() -> bool {
    let Some(pods) = std::env::var_os(CHILD) else {
        return false;
    };
    let pods = std::path::PathBuf::from(pods);
    let attached = Programs::attach(&Redirect {
        pods: pods.clone(),
        agent: AGENT,
        host_netns_cookie: own_netns_cookie().unwrap(),
        host_network: HostNetwork::Passthrough,
        guard_egress: true,
        container: None,
        log: KernelLog::Off,
        bpffs: std::env::var_os(BPFFS).unwrap().into(),
    });
    match attached {
        Ok(_programs) => {
            use std::os::unix::fs::MetadataExt as _;
            let known = Pods::new(&Mount::of(&pods).unwrap(), &pods).unwrap();
            let id = std::fs::metadata(&pods).unwrap().ino();
            match known.find(id) {
                Ok(Found::Other(path)) if path == pods => println!("works"),
                Ok(found) => println!("found {found:?}"),
                Err(error) => println!("{error}"),
            }
        }
        Err(error) => println!("{error}"),
    }
    true
}

/// Runs the child with no capabilities but these.
fn with(capabilities: &[&str]) -> String {
    let node = Node::new();
    // A process of fewer capabilities may not look into this one's files, but has what it inherits.
    let bpffs = File::open(node.bpffs()).unwrap();
    fcntl(&bpffs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let kept: String = capabilities
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    let output = Command::new("setpriv")
        .args([
            format!("--bounding-set=-all{kept}"),
            format!("--inh-caps=-all{kept}"),
            "--no-new-privs".to_owned(),
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, node.pods_cgroup())
        .env(BPFFS, format!("/proc/self/fd/{}", bpffs.as_raw_fd()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said.trim().to_owned()
}

fn sufficient() {
    let said = with(&["bpf", "net_admin", "dac_read_search"]);
    assert_eq!(said, "works");
}

fn missing() {
    for (kept, named) in [
        (&["net_admin", "dac_read_search"][..], "BPF"),
        (&["bpf", "dac_read_search"], "NET_ADMIN"),
        (&["bpf", "net_admin"], "DAC_READ_SEARCH"),
        (&[], "BPF"),
    ] {
        let said = with(kept);
        assert!(
            said.contains("capabilit") && said.contains(named),
            "with {kept:?} only: {said}"
        );
    }
}
