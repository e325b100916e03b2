//! What machines of each processor architecture are to QEMU.

use crate::architecture::Architecture;

impl Architecture {
    /// QEMU's program.
    pub(super) fn qemu(self) -> String {
        format!("qemu-system-{}", self.processor())
    }

    /// Kind of machine that QEMU plays.
    pub(super) const fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "pc",
            Self::Arm64 => "virt",
        }
    }

    /// Serial line that the kernel's messages come by.
    pub(super) const fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }
}
