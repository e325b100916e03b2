//! Programs of the system that make namespaces, and a check that they are installed.

use std::fs::DirBuilder;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use toolchain::words;

/// Numbers of capabilities, from `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 3] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

/// Names a privilege, program or kernel feature that is missing, if any.
pub(super) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root's rights (network namespaces and cgroups are made)".into());
    }
    for (name, number) in CAPABILITIES {
        if !has_capability(number) {
            return Some(format!("{name} (a container without it?)"));
        }
    }
    for (program, package) in [
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("iptables", "iptables"),
    ] {
        if toolchain::find_program(program).is_none() {
            return Some(format!(
                "the program {program} (Debian's package {package})"
            ));
        }
    }
    for (file, what) in [
        ("/proc/self/ns/net", "network namespaces (CONFIG_NET_NS)"),
        (
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            "BPF (CONFIG_BPF_SYSCALL)",
        ),
        ("/sys/kernel/btf/vmlinux", "BTF (CONFIG_DEBUG_INFO_BTF)"),
    ] {
        if !Path::new(file).exists() {
            return Some(format!("the kernel's {what}"));
        }
    }
    None
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << number) != 0)
}

/// Runs lines of iproute2's commands, in a namespace or in the one that this process is in.
pub(super) fn ip(netns: Option<&str>, lines: &str) -> Result<()> {
    let lines: String = lines
        .lines()
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    let mut stdin = child.stdin.take().context("ip has no input")?;
    let written = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} in\n{lines}", words(&command), errors.trim());
    }
    written.context("ip did not read all commands")
}

/// Makes a folder that only this user can read.
pub(super) fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make {}", path.display()))
}
