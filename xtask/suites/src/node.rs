//! `cargo xtask node`: kiam on real kernels, in virtual machines made from Debian's packages.
//!
//! ```text
//! kernel_level  kernels, each in a machine of its own
//! checks        checks of a kernel
//! conditions    nodes that lack something
//! table         results
//! payload       the programs, built here and put on a disk
//!
//! machine       a virtual machine: start, commands, power off
//! kernels       Debian's kernels, with their modules and the initial file system
//! root          the root file system that all machines start from
//! accelerator   KVM where kernels boot by it, else QEMU's translator
//! disk          file systems made from folders, and what a run writes
//! cluster       a Kubernetes cluster of machines, with kiam on it
//! ```

mod accelerator;
mod architecture;
mod checks;
mod cluster;
mod conditions;
mod disk;
mod initramfs;
mod kernel_level;
mod kernels;
mod machine;
mod payload;
mod root;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use toolchain::{
    Architecture, Consent, Package, Plan, debian::check_keyring, kernel, page, prepare, workspace,
};

use self::kernel_level::Trial;
use self::payload::Payload;
use self::table::Table;
use testbed::image;
use testbed::sandbox::Sandbox;

pub use accelerator::{Accelerator, Chosen};
pub use checks::Check;
pub use disk::{check_room, make as make_disk};
pub use kernels::{CHOICES, Choice, Kernel};
pub use machine::{Init, Machine, Options};
pub use root::Root;

const PAGE: &str = "docs/kernel.md";
const COMMAND: &str = "cargo xtask node";
const CLUSTER_COMMAND: &str = "cargo xtask node --cluster";

/// Flags of `cargo xtask node`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Kernels to boot (default: all)
    #[arg(long, value_name = "KERNEL", value_parser = Choice::parse)]
    kernel: Vec<Choice>,

    /// Processor architecture; for another than this machine's, only doctor of the agent that
    /// `cargo xtask image` made runs
    #[arg(long, value_enum, conflicts_with_all = ["only", "short", "write", "cluster"])]
    architecture: Option<Architecture>,

    /// Checks to run (default: all)
    #[arg(long, value_enum, value_name = "CHECK", conflicts_with_all = ["short", "cluster"])]
    only: Vec<Check>,

    /// Machines that run at the same time (default: number of processors)
    #[arg(long, value_name = "NUMBER")]
    at_once: Option<usize>,

    /// Run doctor of this agent, built from another commit
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "short", "cluster"])]
    agent: Option<PathBuf>,

    /// Write the table into docs/kernel.md
    #[arg(long, conflicts_with_all = ["only", "agent", "planted", "check"])]
    write: bool,

    #[command(flatten)]
    cluster: cluster::Args,
}

/// Adds the tools that make machines, and the root file system.
fn machines(architecture: Architecture, kernels: &[Choice], plan: &mut Plan) {
    let machines = "emulates nodes' machines";
    let disks = "makes nodes' disks";
    let qemu = match architecture {
        Architecture::Amd64 => "qemu-system-x86",
        Architecture::Arm64 => "qemu-system-arm",
    };
    for (program, name, why) in [
        (&*architecture::qemu(architecture), qemu, machines),
        ("qemu-img", "qemu-utils", machines),
        ("mmdebstrap", "mmdebstrap", disks),
        ("mke2fs", "e2fsprogs", disks),
        ("depmod", "kmod", "lists kernels' modules"),
        ("xz", "xz-utils", "unpacks kernels' modules"),
        ("zstd", "zstd", "unpacks kernels' modules"),
        ("ssh", "openssh-client", "speaks to nodes' machines"),
    ] {
        plan.program(program, name, why);
    }
    if check_keyring().is_err() {
        plan.package(Package {
            name: "debian-archive-keyring",
            why: "checks Debian's signatures",
        });
    }
    root::plan(architecture, plan);
    for kernel in kernels {
        kernel.plan(architecture, plan);
    }
}

/// Runs the command.
///
/// # Errors
/// Fails when a check fails, a kernel does not boot, or a machine cannot be created.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        !args.write || args.cluster.is_wanted() || args.kernel.is_empty(),
        "the table in {PAGE} is of all kernels: --write goes without --kernel"
    );
    let architecture = match args.architecture {
        Some(architecture) => architecture,
        None => Architecture::native()?,
    };
    let agent = match &args.agent {
        None if !architecture.is_native() => Some(image::agent(architecture)?),
        agent => agent.clone(),
    };
    let chosen = match &*args.kernel {
        [] => &CHOICES[..],
        some => some,
    };
    prepare(args.consent, |plan| {
        testbed::sandbox::plan(plan);
        machines(architecture, chosen, plan);
        if agent.is_none() {
            kernel::plan(plan);
        }
        args.cluster.plan(plan)
    })?;
    let kernels = chosen.iter().map(|choice| choice.kernel(architecture));
    let kernels: Vec<_> = kernels.collect::<Result<_>>()?;
    let root = Root::get(architecture)?;
    let newest = kernels.last().context("no kernel is selected")?;
    let accelerator = Chosen::probe(newest);
    println!("{accelerator}");
    if args.cluster.is_wanted() {
        let table = cluster::command(&args.cluster, &kernels, &root, accelerator.accelerator)?;
        return args.conclude(CLUSTER_COMMAND, &table.to_string(), &table.wrong());
    }
    let sandbox = Sandbox::new()?;
    let checks = match (&agent, &*args.only) {
        (Some(_), _) => &[Check::Doctor][..],
        (None, []) if args.cluster.short() => &[Check::Doctor, Check::Tests],
        (None, []) => &Check::ALL,
        (None, some) => some,
    };
    let payload = match &agent {
        Some(agent) => Payload::Agent(agent),
        None => Payload::For(checks),
    };
    let disk = payload.disk(sandbox.scratch())?;
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
    if agent.is_none() && args.only.is_empty() && !args.cluster.short() {
        table.conditions = trial.conditions(newest, at_once)?;
    }
    args.conclude(COMMAND, &table.to_string(), &table.wrong())
}

impl Args {
    /// Prints the results, and writes them to the page with `--write`.
    #[expect(clippy::print_stdout, reason = "the command's result")]
    fn conclude(&self, command: &str, table: &str, wrong: &[String]) -> Result<()> {
        println!("\n{table}");
        if self.write {
            page::replace(&workspace().join(PAGE), command, table)?;
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
