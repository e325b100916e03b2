//! Capabilities that loading, attaching and reading the programs need.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use kiam_agent::kernel::cgroup::{Found, Mount, Pods};
use kiam_agent::kernel::{HostNetwork, KernelLog, Programs, Redirect, own_netns_cookie};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::fixture::{AGENT, Node};

/// The variable that names the cgroup to attach to, in the process of fewer capabilities: this
/// program again, running the test [`CHILD_TEST`].
const CHILD: &str = "KIAM_TEST_ATTACH";
const CHILD_TEST: &str = "capabilities::the_documented_capabilities_suffice";

/// The variable that names the BPF file system to pin in.
const BPFFS: &str = "KIAM_TEST_BPFFS";

/// Begins the line of the child's output that has its result.
const RESULT: &str = "result: ";

/// Loads, attaches and reads the programs, and returns the result as a text.
fn attach(pods: &Path) -> String {
    let attached = Programs::attach(&Redirect {
        pods: pods.to_owned(),
        agent: AGENT,
        host_netns_cookie: own_netns_cookie().unwrap(),
        host_network: HostNetwork::Passthrough,
        guard_egress: true,
        container: None,
        log: KernelLog::Off,
        bpffs: std::env::var_os(BPFFS).unwrap().into(),
    });
    let _programs = match attached {
        Ok(programs) => programs,
        Err(error) => return error.to_string(),
    };
    let known = Pods::new(&Mount::of(pods).unwrap(), pods).unwrap();
    let id = std::fs::metadata(pods).unwrap().ino();
    match known.find(id) {
        Ok(Found::Other(path)) if path == pods => "works".to_owned(),
        Ok(found) => format!("found {found:?}"),
        Err(error) => error.to_string(),
    }
}

/// Runs [`attach`] in a process with no capabilities but these.
#[track_caller]
fn attach_with(capabilities: &[&str]) -> String {
    let node = Node::new();
    // A process of fewer capabilities may not open files of this one, but inherits descriptors.
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
        .args(["--include-ignored", "--nocapture", "--exact", CHILD_TEST])
        .env(CHILD, node.pods_cgroup().path())
        .env(BPFFS, format!("/proc/self/fd/{}", bpffs.as_raw_fd()))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let result = stdout.lines().find_map(|line| line.strip_prefix(RESULT));
    match result {
        Some(result) if output.status.success() => result.to_owned(),
        _ => panic!("{stdout}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_documented_capabilities_suffice() {
    if let Some(pods) = std::env::var_os(CHILD) {
        println!("\n{RESULT}{}", attach(Path::new(&pods)));
        return;
    }
    let result = attach_with(&["bpf", "net_admin", "dac_read_search"]);
    assert_eq!(result, "works");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn missing_capabilities_are_named() {
    for (kept, named) in [
        (&["net_admin", "dac_read_search"][..], "BPF"),
        (&["bpf", "dac_read_search"], "NET_ADMIN"),
        (&["bpf", "net_admin"], "DAC_READ_SEARCH"),
        (&[], "BPF"),
    ] {
        let result = attach_with(kept);
        assert!(
            result.contains("capabilit") && result.contains(named),
            "with {kept:?} only: {result}"
        );
    }
}
