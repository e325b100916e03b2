//! QEMU's machines for each processor architecture.

use toolchain::Architecture;

/// QEMU's program.
pub(super) fn qemu(architecture: Architecture) -> String {
    format!("qemu-system-{}", architecture.processor())
}

/// Kind of machine that QEMU emulates.
pub(super) const fn machine(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "pc",
        Architecture::Arm64 => "virt",
    }
}

/// Serial console of the kernel's messages.
pub(super) const fn console(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "ttyS0",
        Architecture::Arm64 => "ttyAMA0",
    }
}
