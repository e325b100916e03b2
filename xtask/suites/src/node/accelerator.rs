//! Accelerators of a machine's processor: the kernel's KVM where a stock kernel boots with it, or
//! else QEMU itself, by translation (TCG), which takes ten to twenty times as long.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use toolchain::Architecture;

use super::initramfs::PROBED;
use super::kernels::Kernel;
use crate::node::architecture;
use testbed::sandbox::Program;

const TRANSLATOR: &str = "tcg,thread=multi,tb-size=512";
const DEVICE: &str = "/dev/kvm";
/// A kernel is there within a second by KVM, or never.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Accelerator of a machine's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's KVM.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// Accelerator to use, and why no faster one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Reason for which it is not KVM.
    pub why: Option<String>,
}

impl Chosen {
    /// Boots a kernel by KVM where that is to be had, as far as to its first program.
    #[must_use]
    pub fn probe(kernel: &Kernel) -> Self {
        let why = if kernel.architecture.is_native() {
            refusal(kernel, Path::new(DEVICE))
        } else {
            Some(format!("this machine is not {}", kernel.architecture))
        };
        let accelerator = if why.is_none() {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        };
        Self { accelerator, why }
    }
}

/// Reason for which KVM cannot be used.
fn refusal(kernel: &Kernel, device: &Path) -> Option<String> {
    // That it is there is not that it opens, and that it opens is not that kernels boot.
    if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
        return Some(format!("{} does not open: {error}", device.display()));
    }
    let mut command = Command::new(architecture::qemu(kernel.architecture));
    command
        .args(Accelerator::Kvm.arguments(kernel.architecture))
        .args(["-machine", architecture::machine(kernel.architecture)])
        .args(["-m", "512", "-display", "none", "-no-reboot", "-nodefaults"])
        .args(["-serial", "stdio", "-monitor", "none", "-kernel"])
        .arg(kernel.image())
        .arg("-initrd")
        .arg(kernel.initramfs())
        .arg("-append")
        .arg(format!(
            "console={} panic=-1 kiam.probe ",
            architecture::console(kernel.architecture)
        ));
    let probed = Program::start("the probe of KVM", command).and_then(|program| {
        program.wait_for("that the kernel has booted", PROBE_LIMIT, |line| {
            line.contains(PROBED).then_some(())
        })
    });
    probed.err().map(|_error| {
        format!(
            "{} opens, but Linux {} does not boot by it",
            device.display(),
            kernel.release
        )
    })
}

impl Accelerator {
    /// QEMU's arguments.
    pub(super) const fn arguments(self, architecture: Architecture) -> [&'static str; 4] {
        let (accelerator, processor) = match (self, architecture) {
            (Self::Kvm, _) => ("kvm", "host"),
            (Self::Tcg, Architecture::Amd64) => (TRANSLATOR, "max"),
            // Graviton2's; older kernels do not start on the newest one that QEMU emulates.
            (Self::Tcg, Architecture::Arm64) => (TRANSLATOR, "neoverse-n1"),
        };
        ["-accel", accelerator, "-cpu", processor]
    }

    /// Factor by which limits for KVM are multiplied.
    #[must_use]
    pub const fn patience(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 10,
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machines run by {}", self.accelerator)?;
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_device_falls_back_with_a_reason() {
        let kernel = Kernel::for_test(Architecture::Amd64);
        let why = refusal(&kernel, Path::new("/nonexistent/kvm"));
        let why = why.unwrap_or_default();
        assert!(
            why.starts_with("/nonexistent/kvm does not open: No such file"),
            "{why}"
        );
    }

    #[test]
    fn another_architecture_is_translated() {
        let foreign = if Architecture::Amd64.is_native() {
            Architecture::Arm64
        } else {
            Architecture::Amd64
        };
        let chosen = Chosen::probe(&Kernel::for_test(foreign));
        assert_eq!(chosen.accelerator, Accelerator::Tcg);
        assert_eq!(chosen.why, Some(format!("this machine is not {foreign}")));
    }
}
