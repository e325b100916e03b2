//! `cargo xtask node`: kiam on real kernels, in virtual machines made from Debian's packages.
//!
//! ```text
//! machine       a virtual machine: started, spoken to, cut off
//! kernels       Debian's kernels, with their modules and the initial file system
//! root          the root file system that all machines start from
//! accelerator   KVM where kernels boot by it, else QEMU's translator
//! disk          file systems made from folders, and what a run writes
//! debian        packages of other suites, beside the machine's own apt
//! cluster       a Kubernetes cluster of machines, with kiam on it
//! ```

mod accelerator;
mod architecture;
mod cluster;
mod debian;
mod disk;
mod initramfs;
mod kernels;
mod machine;
mod root;

pub use accelerator::{Accelerator, Chosen};
pub use architecture::Architecture;
pub use disk::{check_room, make as make_disk};
pub use kernels::{CHOICES, Choice, Kernel};
pub use machine::{Init, Machine, Options};
pub use root::Root;

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use crate::sandbox::Sandbox;
use crate::setup::{Consent, Need, Package, Plan, find_program, prepare};

/// For a command that takes no time, by KVM.
const SHORT: Duration = Duration::from_secs(10);

/// Flags of `cargo xtask node`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Kernels to boot, all if not given
    #[arg(long, value_name = "KERNEL", value_parser = Choice::parse)]
    kernel: Vec<Choice>,

    #[command(flatten)]
    cluster: cluster::Args,
}

/// Adds what machines are made by, and the root file system.
pub(crate) fn plan(plan: &mut Plan) {
    let machines = "plays nodes' machines";
    let disks = "makes nodes' disks";
    for (program, name, why) in [
        ("qemu-system-x86_64", "qemu-system-x86", machines),
        ("qemu-img", "qemu-utils", machines),
        ("mmdebstrap", "mmdebstrap", disks),
        ("mke2fs", "e2fsprogs", disks),
        ("depmod", "kmod", "lists kernels' modules"),
        ("xz", "xz-utils", "unpacks kernels' modules"),
        ("zstd", "zstd", "unpacks kernels' modules"),
        ("ssh", "openssh-client", "speaks to nodes' machines"),
    ] {
        if find_program(program).is_none() {
            plan.package(Package { name, why });
        }
    }
    if debian::check_keyring().is_err() {
        plan.package(Package {
            name: "debian-archive-keyring",
            why: "checks Debian's signatures",
        });
    }
    root::plan(Architecture::Amd64, plan);
    for choice in CHOICES {
        choice.plan(Architecture::Amd64, plan);
    }
}

/// Runs the command.
///
/// # Errors
/// When a kernel does not boot, or a machine cannot be had.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &Args) -> Result<()> {
    let mut needs = vec![Need::Sandbox, Need::Machines];
    needs.extend(args.cluster.needs());
    prepare(&needs, args.consent)?;
    let chosen = match &*args.kernel {
        [] => CHOICES.to_vec(),
        some => some.to_vec(),
    };
    let kernels: Vec<_> = chosen
        .iter()
        .map(|choice| choice.kernel(Architecture::Amd64))
        .collect::<Result<_>>()?;
    let root = Root::get(Architecture::Amd64)?;
    let chosen = Chosen::probe(kernels.last().context("no kernel was asked for")?);
    println!("{chosen}");
    if args.cluster.is_wanted() {
        return cluster::command(&args.cluster, &kernels, &root, chosen.accelerator);
    }
    let sandbox = Sandbox::new()?;
    for (number, kernel) in (1..).zip(&kernels) {
        let begin = Instant::now();
        let options = Options::bare(kernel.name, number);
        let mut machine = Machine::new(&sandbox, kernel, &root, chosen.accelerator, options)?;
        machine.power_on()?;
        let said = machine.check("uname -r", machine.limit(SHORT))?;
        println!("{} boots, {:.0?}", said.trim(), begin.elapsed());
        machine.power_off()?;
    }
    Ok(())
}
