//! The machine: the kernel's version, its description of itself, and what this process may.

use std::path::Path;

use nix::sys::utsname::uname;

use super::Finding;

/// `SO_NETNS_COOKIE`, and taking an entry out of a hash map: see docs/kernel.md.
const OLDEST: (u32, u32) = (5, 14);
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the agent needs, by its number (include/uapi/linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] = [("DAC_READ_SEARCH", 2), ("NET_ADMIN", 12), ("BPF", 39)];

pub(super) fn findings() -> Vec<Finding> {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    vec![kernel(&release), btf(Path::new(BTF)), capabilities(&status)]
}

fn kernel(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    let (major, minor) = OLDEST;
    match version(release) {
        Some(version) if version >= OLDEST => Finding::ok(CHECK, format!("Linux {release}")),
        Some(_) => Finding::fail(
            CHECK,
            format!("Linux {release}; --redirect=ebpf needs {major}.{minor} or newer"),
            "use a newer kernel on this node, or run its agent with --redirect=iptables",
        ),
        None => Finding::warn(
            CHECK,
            format!("cannot read a version from {release:?}"),
            "make sure that it is Linux 5.14 or newer",
        ),
    }
}

/// Major and minor, of texts like `6.1.0-18-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf(path: &Path) -> Finding {
    const CHECK: &str = "BTF";
    if path.exists() {
        return Finding::ok(CHECK, "the kernel describes its types");
    }
    Finding::fail(
        CHECK,
        format!("there is no {}", path.display()),
        "the kernel must be built with CONFIG_DEBUG_INFO_BTF=y",
    )
}

fn capabilities(status: &str) -> Finding {
    const CHECK: &str = "capabilities";
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    let Some(effective) = effective else {
        return Finding::warn(
            CHECK,
            "/proc/self/status does not tell them",
            "mount the node's /proc into the container",
        );
    };
    let missing: Vec<_> = CAPABILITIES
        .into_iter()
        .filter(|(_, number)| effective & (1 << number) == 0)
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        let all = CAPABILITIES.map(|(name, _)| name).join(", ");
        return Finding::ok(CHECK, format!("{all} are there"));
    }
    Finding::fail(
        CHECK,
        format!("{} missing", missing.join(", ")),
        "add them to the container's securityContext.capabilities",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn kernels_are_told_by_their_age() {
        for (release, state) in [
            ("6.18.44-fc", State::Ok),
            ("5.14.0-427.el9.x86_64", State::Ok),
            ("5.10.220-209.869.amzn2", State::Fail),
            ("4.14.350", State::Fail),
            ("5", State::Warn),
            ("", State::Warn),
            ("mine-6.1", State::Warn),
        ] {
            assert_eq!(kernel(release).state, state, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let all = capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all.state, State::Ok, "{all:?}");
        // As a container has them by default.
        let few = capabilities("CapEff:\t00000000a80425fb\n");
        assert_eq!(few.state, State::Fail);
        assert_eq!(few.found, "DAC_READ_SEARCH, NET_ADMIN, BPF missing");
        assert_eq!(capabilities("").state, State::Warn);
    }
}
