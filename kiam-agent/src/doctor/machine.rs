//! Checks of the kernel's version and BTF.

use std::path::Path;

use nix::sys::utsname::uname;

use super::Finding;

/// For `SO_NETNS_COOKIE`, and lookup with deletion in a hash map: see docs/kernel.md.
const OLDEST: (u32, u32) = (5, 14);
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn findings() -> Vec<Finding> {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    vec![kernel(&release), btf(Path::new(BTF))]
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
            format!("cannot parse the kernel version {release:?}"),
            "check that it is Linux 5.14 or newer",
        ),
    }
}

/// Parses major and minor, as in `6.1.0-18-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf(path: &Path) -> Finding {
    const CHECK: &str = "BTF";
    if path.exists() {
        return Finding::ok(CHECK, "the kernel provides its types");
    }
    Finding::fail(
        CHECK,
        format!("no file {}", path.display()),
        "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
    )
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn kernels_are_judged_by_version() {
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
}
