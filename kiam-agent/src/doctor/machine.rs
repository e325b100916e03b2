//! The machine: the kernel's version, and its description of itself.

use std::path::Path;

use nix::sys::utsname::uname;

use super::Finding;

/// `SO_NETNS_COOKIE`, and taking an entry out of a hash map: see docs/kernel.md.
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
}
