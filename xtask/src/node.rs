//! `cargo xtask node`: kiam on real kernels, in virtual machines made from Debian's packages.
//!
//! ```text
//! kernel_level  kernels, each in a machine of its own
//! checks        what they are tried with
//! conditions    nodes that lack something
//! table         what came of it
//! carried       the programs, built here and put on a disk
//!
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
mod carried;
mod checks;
mod cluster;
mod conditions;
mod debian;
mod disk;
mod initramfs;
mod kernel_level;
mod kernels;
mod machine;
mod root;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use self::carried::Carried;
use self::kernel_level::Trial;
use self::table::Table;
use crate::build_ebpf::workspace;
use crate::page;
use crate::sandbox::Sandbox;
use crate::setup::{Consent, Need, Package, Plan, find_program, prepare};

pub use accelerator::{Accelerator, Chosen};
pub use architecture::Architecture;
pub use checks::Check;
pub use disk::{check_room, make as make_disk};
pub use kernels::{CHOICES, Choice, Kernel};
pub use machine::{Init, Machine, Options};
pub use root::Root;

const COMMAND: &str = "cargo xtask node";

/// Flags of `cargo xtask node`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Kernels to boot, all if not given
    #[arg(long, value_name = "KERNEL", value_parser = Choice::parse)]
    kernel: Vec<Choice>,

    /// Checks to make, all if not given
    #[arg(long, value_enum, value_name = "CHECK", conflicts_with_all = ["short", "cluster"])]
    only: Vec<Check>,

    /// Machines that run at the same time, as many as processors if not given
    #[arg(long, value_name = "NUMBER")]
    at_once: Option<usize>,

    /// Try doctor of this agent, built from another commit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "short", "cluster"])]
    agent: Option<PathBuf>,

    /// Write the table into docs/kernel.md
    #[arg(long, conflicts_with_all = ["only", "agent", "kernel", "cluster"])]
    write: bool,

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
/// When a check fails, a kernel does not boot, or a machine cannot be had.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &Args) -> Result<()> {
    let mut needs = vec![Need::Sandbox, Need::Machines];
    if args.agent.is_none() {
        needs.push(Need::Kernel);
    }
    needs.extend(args.cluster.needs());
    prepare(&needs, args.consent)?;
    let chosen = match &*args.kernel {
        [] => &CHOICES[..],
        some => some,
    };
    let kernels = chosen
        .iter()
        .map(|choice| choice.kernel(Architecture::Amd64));
    let kernels: Vec<_> = kernels.collect::<Result<_>>()?;
    let root = Root::get(Architecture::Amd64)?;
    let newest = kernels.last().context("no kernel was asked for")?;
    let accelerator = Chosen::probe(newest);
    println!("{accelerator}");
    if args.cluster.is_wanted() {
        return cluster::command(&args.cluster, &kernels, &root, accelerator.accelerator);
    }
    let sandbox = Sandbox::new()?;
    let checks = match (&args.agent, &*args.only) {
        (Some(_), _) => &[Check::Doctor][..],
        (None, []) if args.cluster.short() => &[Check::Doctor, Check::Tests],
        (None, []) => &Check::ALL,
        (None, some) => some,
    };
    let carried = match &args.agent {
        Some(agent) => Carried::Agent(agent),
        None => Carried::For(checks),
    };
    let disk = carried.disk(sandbox.scratch())?;
    let trial = Trial {
        sandbox: &sandbox,
        root: &root,
        accelerator: accelerator.accelerator,
        disk: &disk,
        checks,
        short: args.cluster.short(),
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = args.at_once.unwrap_or(processors);
    let mut table = Table {
        rows: trial.kernels(&kernels, at_once)?,
        conditions: Vec::new(),
    };
    // Of the agent and the node, not of the kernel: one is enough.
    if args.agent.is_none() && args.only.is_empty() && !args.cluster.short() {
        table.conditions = trial.conditions(newest, at_once)?;
    }
    println!("\n{table}");
    if args.write {
        let page = workspace().join("docs/kernel.md");
        page::replace(&page, COMMAND, &table.to_string())?;
    }
    let failed = table.failures();
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}
