//! What the commands need on a machine, installed when it is missing.
//!
//! A [`Plan`] is made of what is missing: Debian packages first, then what is built or fetched
//! into the user's cache folder. It says what it installs and why, asks once when there is
//! somebody to ask, and can be repeated at any time: what is there is not installed again, and
//! what an earlier try left half-made is made anew.

mod apt;
mod cache;
mod cargo_tool;
mod kernel;
pub(crate) mod npm;
mod plan;
mod python;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::architecture::Architecture;
use crate::node::Choice;

pub use cache::{Cache, Log, fingerprint};
pub(crate) use cargo_tool::CargoTool;
pub use plan::{Package, Plan, Step};
pub use python::{AWS, MOTO, Python, ZIZMOR};

/// How to go about installing.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Consent {
    /// Install what is missing without asking
    #[arg(long, short)]
    pub yes: bool,
}

/// Something that commands need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Network namespaces and cgroups.
    Sandbox,
    /// Building the kernel programs.
    Kernel,
    /// The AWS CLI and boto3.
    Aws,
    /// AWS's SDKs for Python, Go and JavaScript, and the AWS CLI.
    Sdks,
    /// All clients of the matrix.
    Clients,
    /// Breaking networks, clocks and etcd's history.
    Faults,
    /// A browser.
    Browser,
    /// moto's server.
    Moto,
    /// etcd and kube-apiserver.
    Cluster,
    /// All components of Kubernetes, and what its nodes are connected by.
    Nodes,
    /// helm.
    Helm,
    /// kubectl.
    Kubectl,
    /// promtool.
    Promtool,
    /// mdbook.
    Book,
    /// actionlint and zizmor.
    Workflows,
    /// What the root file system of an image of this architecture is made from.
    ImageRoot(Architecture),
    /// Counting instructions.
    Instructions,
    /// Counting system calls.
    SystemCalls,
    /// Running an image's programs in containers.
    Containers,
    /// Making an image of a root file system, and taking it apart.
    Image,
    /// Virtual machines of this architecture with these of Debian's kernels.
    Machines(Architecture, Vec<Choice>),
}

/// Installs what is missing of these.
///
/// # Errors
/// When the user says no, this is not root, the system is not Debian's, or something fails.
pub fn prepare(needs: &[Need], consent: Consent) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let again: Vec<_> = std::env::args().skip(1).collect();
        bail!(
            "this makes network namespaces and cgroups, and so needs root; try\n  \
             sudo --preserve-env=HOME,PATH cargo xtask {}",
            again.join(" ")
        );
    }
    let mut plan = Plan::default();
    for need in needs {
        match need {
            Need::Sandbox => sandbox(&mut plan),
            Need::Kernel => kernel::plan(&mut plan),
            Need::Aws => AWS.plan(&mut plan)?,
            Need::Sdks => crate::sdk::plan(&mut plan)?,
            Need::Clients => crate::clients::plan(&mut plan)?,
            Need::Faults => crate::faults::plan(&mut plan),
            Need::Browser => browser(&mut plan),
            Need::Moto => MOTO.plan(&mut plan)?,
            Need::Cluster => crate::cluster::plan(&mut plan)?,
            Need::Nodes => nodes(&mut plan)?,
            Need::Kubectl => crate::cluster::kubectl::plan(&mut plan),
            Need::Helm => crate::deploy::helm::plan(&mut plan),
            Need::Promtool => promtool(&mut plan),
            Need::Book => crate::deploy::book::plan(&mut plan),
            Need::Workflows => crate::deploy::workflows::plan(&mut plan)?,
            Need::ImageRoot(architecture) => crate::image::plan(*architecture, &mut plan),
            Need::Image => image(&mut plan),
            Need::Machines(architecture, kernels) => {
                crate::node::plan(*architecture, kernels, &mut plan);
            }
            Need::Instructions => instructions(&mut plan),
            Need::SystemCalls => system_calls(&mut plan),
            Need::Containers => containers(&mut plan),
        }
    }
    let ask = !consent.yes && std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    plan.carry_out(ask)
}

fn sandbox(plan: &mut Plan) {
    let makes = "makes and enters the sandbox's network namespaces";
    for (program, name, why) in [
        ("ip", "iproute2", makes),
        ("nsenter", "util-linux", makes),
        (
            "iptables",
            "iptables",
            "redirects pods without kernel programs",
        ),
    ] {
        if find_program(program).is_none() {
            plan.package(Package { name, why });
        }
    }
}

fn nodes(plan: &mut Plan) -> Result<()> {
    if find_program("cc").is_none() {
        plan.package(Package {
            name: "gcc",
            why: "compiles what nodes' pods run",
        });
    }
    crate::cluster::plan_components(plan)
}

fn browser(plan: &mut Plan) {
    if find_program("chromium").is_none() {
        plan.package(Package {
            name: "chromium",
            why: "shows the status page, headless",
        });
    }
}

fn instructions(plan: &mut Plan) {
    if find_program("valgrind").is_none() {
        plan.package(Package {
            name: "valgrind",
            why: "counts a program's instructions",
        });
    }
}

fn system_calls(plan: &mut Plan) {
    if find_program("strace").is_none() {
        plan.package(Package {
            name: "strace",
            why: "counts the system calls of a request",
        });
    }
}

fn promtool(plan: &mut Plan) {
    if find_program("promtool").is_none() {
        plan.package(Package {
            name: "prometheus",
            why: "promtool, which checks alerts and the dashboards' queries",
        });
    }
}

fn image(plan: &mut Plan) {
    for (name, why) in [
        ("buildah", "makes an image of the root file system"),
        ("umoci", "takes the image apart, to check it"),
    ] {
        if find_program(name).is_none() {
            plan.package(Package { name, why });
        }
    }
}

fn containers(plan: &mut Plan) {
    for (program, name, why) in [
        ("containerd", "containerd", "runs containers of the image"),
        ("runc", "runc", "makes them, for containerd"),
    ] {
        if find_program(program).is_none() {
            plan.package(Package { name, why });
        }
    }
    if !std::path::Path::new("/usr/share/containers/seccomp.json").is_file() {
        plan.package(Package {
            name: "golang-github-containers-common",
            why: "what containers may ask of the kernel",
        });
    }
}

/// Where a program is, by `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    find_programs(name).into_iter().next()
}

/// Everywhere a program is, by `PATH`, first come first.
#[must_use]
pub fn find_programs(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .filter(|file| file.is_file())
        .collect()
}

/// The cargo that runs this, without the settings that it made for this run.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command.current_dir(crate::build_ebpf::workspace());
    command
}
