//! The two programs, as they are built, and how they are started: as they are, or in a container of
//! the image with what the chart allows them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolchain::{Architecture, cargo, exec, kernel, workspace};

use crate::container::{Containers, Mount, Spec, cgroup_inside, give};
use crate::sandbox::Place;

/// The built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    agent: PathBuf,
    server: PathBuf,
    image: Option<Containers>,
}

/// Names the folder of kiam's programs, for the sandbox tests.
pub const PROGRAMS: &str = "KIAM_TEST_PROGRAMS";

fn patched(folder: &Path, name: &str) -> PathBuf {
    folder.join("patched").join(name)
}

const POD_CLIENT: &str = "pod-client";
/// Makes cargo print the paths of executables.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

fn executable(name: &str, messages: &str) -> Result<PathBuf> {
    let found = last_executable(messages, |message| message["target"]["name"] == name);
    found.with_context(|| format!("cargo built no {name}"))
}

/// The last executable of cargo's messages that is wanted.
pub fn last_executable(messages: &str, wanted: impl Fn(&Value) -> bool) -> Option<PathBuf> {
    let messages = messages.lines().rev();
    let mut messages = messages.filter_map(|line| serde_json::from_str(line).ok());
    messages.find_map(|message: Value| {
        let executable = message["executable"].as_str()?;
        wanted(&message).then(|| PathBuf::from(executable))
    })
}

impl Programs {
    /// Builds the kernel programs, and then both programs around them.
    ///
    /// # Errors
    /// When something does not compile.
    pub fn build() -> Result<Self> {
        Self::built(&[])
    }

    /// Builds optimized programs.
    ///
    /// # Errors
    /// When something does not compile.
    pub fn build_release() -> Result<Self> {
        Self::built(&["--release"])
    }

    fn built(flags: &[&str]) -> Result<Self> {
        kernel::run(&kernel::Args::default())?;
        let mut command = cargo();
        command
            .args(["build", "--quiet", "--locked", MESSAGES])
            .args(["-p", "kiam-agent", "-p", "kiam-server"])
            .args(flags);
        let messages = exec(&mut command)?;
        Ok(Self {
            agent: executable("kiam-agent", &messages)?,
            server: executable("kiam-server", &messages)?,
            image: None,
        })
    }

    /// Programs of an image, which run in containers of it.
    pub fn in_image(containers: Containers) -> Self {
        Self {
            agent: "/kiam-agent".into(),
            server: "/kiam-server".into(),
            image: Some(containers),
        }
    }

    /// Builds an agent from another source around these kernel programs, for [`Self::patched`].
    /// It is where cargo puts the agent, until [`Self::build`] puts this source's there again.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn build_patched(name: &str, source: &Path, object: &Path) -> Result<()> {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = target.map_or_else(|| workspace().join("target"), PathBuf::from);
        let mut command = cargo();
        command
            .args(["build", "--quiet", "--locked", MESSAGES, "-p", "kiam-agent"])
            .current_dir(source)
            .env("CARGO_TARGET_DIR", target)
            .env("KIAM_EBPF_OBJECT", object);
        let agent = executable("kiam-agent", &exec(&mut command)?)?;
        let folder = patched(agent.parent().unwrap_or(&agent), name);
        std::fs::create_dir_all(&folder)?;
        let copy = folder.join("kiam-agent");
        std::fs::copy(&agent, &copy)
            .map(drop)
            .with_context(|| format!("cannot write {}", copy.display()))
    }

    /// Returns these programs with the agent of a patch in place of theirs.
    ///
    /// # Errors
    /// When it was not built.
    pub fn patched(&self, name: &str) -> Result<Self> {
        let agent = patched(self.folder(), name).join("kiam-agent");
        ensure!(agent.is_file(), "there is no {}", agent.display());
        Ok(Self {
            agent,
            ..self.clone()
        })
    }

    /// Programs that were built before, or else what `build` builds.
    ///
    /// # Errors
    /// When they are not there, or something does not compile.
    pub fn found_or(before: Option<&Path>, build: impl FnOnce() -> Result<Self>) -> Result<Self> {
        before.map_or_else(build, Self::in_folder)
    }

    /// Programs that were built before, in one folder.
    ///
    /// # Errors
    /// When one is not there.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(path.is_file(), "there is no {}", path.display());
            Ok(path)
        };
        Ok(Self {
            agent: program("kiam-agent")?,
            server: program("kiam-server")?,
            image: None,
        })
    }

    /// The agent.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// The server.
    pub fn server(&self) -> &Path {
        &self.server
    }

    /// A command that runs one of them in a place, as it is or in a container.
    pub(super) fn launch(
        &self,
        place: &Place,
        starter: &[String],
        command: &Command,
        rights: Rights<'_>,
    ) -> Result<Command> {
        if let Some(containers) = &self.image {
            ensure!(
                starter.is_empty(),
                "what is in an image is started by a container's runtime"
            );
            return containers.command(place, &rights.spec(command)?);
        }
        let mut placed = match starter {
            [] => place.command(command.get_program()),
            [first, rest @ ..] => {
                let mut placed = place.command(first);
                placed.args(rest).arg(command.get_program());
                placed
            }
        };
        placed.env_clear().args(command.get_args());
        let set = |(name, value): (_, Option<_>)| value.map(|value| (name, value));
        placed.envs(command.get_envs().filter_map(set));
        Ok(placed)
    }

    /// The server's program for a question of its operator's, in a place; it sees these folders.
    ///
    /// # Errors
    /// When no container of it can be made.
    pub fn server_tool(&self, place: &Place, args: &[&str], folders: &[&Path]) -> Result<Command> {
        let mut command = Command::new(&self.server);
        command.args(args);
        self.launch(place, &[], &command, Rights::Server(folders))
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Path {
        self.agent.parent().unwrap_or(&self.agent)
    }
}

/// Both programs, built for an image.
#[derive(Debug, Clone)]
pub struct ImagePrograms {
    /// The agent.
    pub agent: PathBuf,
    /// The server.
    pub server: PathBuf,
}

impl ImagePrograms {
    /// Builds them as [`Programs::build_release`] does, but smaller, for the image's C library, and with
    /// this commit in their version.
    ///
    /// # Errors
    /// When something does not compile.
    pub fn build(architecture: Architecture, commit: &str) -> Result<Self> {
        kernel::run(&kernel::Args::default())?;
        let target = architecture.target();
        let program = |name: &str| {
            let mut command = cargo();
            command
                .args(["rustc", "--quiet", "--locked", "--release"])
                .args(["-p", name, "--bin", name, MESSAGES])
                .env("KIAM_COMMIT", commit);
            if architecture.is_native() {
                // Relocations of a twentieth of the size; older C libraries cannot read them.
                command.args(["--", "-Clink-arg=-Wl,-z,pack-relative-relocs"]);
            } else {
                let variable = target.to_uppercase().replace('-', "_");
                command.args(["--target", target]).env(
                    format!("CARGO_TARGET_{variable}_LINKER"),
                    architecture.linker(),
                );
            }
            executable(name, &exec(&mut command)?)
        };
        Ok(Self {
            agent: program("kiam-agent")?,
            server: program("kiam-server")?,
        })
    }
}

/// User of servers in the chart.
const SERVER_USER: u32 = 65532;
/// Capabilities in the chart of agents that redirect by kernel programs.
const AGENT_CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"];
/// Mount point of the BPF file system in the chart.
const BPFFS: &str = "/run/kiam/bpf";

/// Privileges and folders of a program in a container, as in the chart.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rights<'a> {
    /// No capability and an ordinary user.
    Server(&'a [&'a Path]),
    /// Root with what kernel programs need, and the cgroups.
    Agent(&'a [&'a Path]),
}

impl Rights<'_> {
    /// The container that stands for a command.
    fn spec(self, command: &Command) -> Result<Spec> {
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        let mut args = vec![text(command.get_program())];
        args.extend(command.get_args().map(text));
        let env = command.get_envs();
        let env = env.filter_map(|(name, value)| Some(format!("{}={}", text(name), text(value?))));
        let mut spec = Spec {
            args,
            env: env.collect(),
            ..Spec::default()
        };
        let bind = |path: &Path| Mount::Bind {
            source: path.to_owned(),
            destination: path.to_owned(),
        };
        match self {
            Self::Server(folders) => {
                spec.user = SERVER_USER;
                for folder in folders {
                    give(folder, SERVER_USER)?;
                    spec.mounts.push(bind(folder));
                }
            }
            Self::Agent(folders) => {
                spec.capabilities = AGENT_CAPABILITIES.map(str::to_owned).to_vec();
                spec.mounts
                    .extend(folders.iter().map(|folder| bind(folder)));
                spec.mounts.push(bind(Path::new("/sys/fs/cgroup")));
                for argument in &mut spec.args {
                    if let Some(path) = argument.strip_prefix("--pods-cgroup=") {
                        let path = cgroup_inside(Path::new(path))?;
                        *argument = format!("--pods-cgroup={}", path.display());
                    }
                }
                for argument in &mut spec.args {
                    if let Some(node) = argument.strip_prefix("--bpffs=") {
                        spec.mounts.push(Mount::Bpf {
                            node: node.into(),
                            destination: BPFFS.into(),
                        });
                        *argument = format!("--bpffs={BPFFS}");
                    }
                }
            }
        }
        Ok(spec)
    }
}

/// Builds the clients of AWS's SDK for Rust. Where they are then.
///
/// # Errors
/// When something does not compile.
pub fn rust_client() -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--locked", MESSAGES])
        // With the server, so that the SDK has the features that it has there.
        .args([
            "-p",
            "kiam-server",
            "-p",
            "suites",
            "--example",
            "rust-client",
        ]);
    executable("rust-client", &exec(&mut command)?)
}

/// Path of the program that runs in pods: built, or beside this one where there is nothing to build
/// it from.
///
/// # Errors
/// When it does not compile, or is not there.
pub fn pod_client() -> Result<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    let program = if workspace().is_dir() {
        let mut command = cargo();
        command.args(["build", "--quiet", "--locked", MESSAGES, "-p", POD_CLIENT]);
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        executable(POD_CLIENT, &exec(&mut command)?)?
    } else {
        std::env::current_exe()?.with_file_name(POD_CLIENT)
    };
    ensure!(program.is_file(), "there is no {}", program.display());
    Ok(BUILT.get_or_init(|| program))
}

/// Builds the commands. Path of their program.
///
/// # Errors
/// When they do not compile.
pub fn xtask() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", MESSAGES, "-p", "xtask"]);
    executable("xtask", &exec(&mut command)?)
}

/// Builds this program with optimizations, and returns its path.
///
/// # Errors
/// When something does not compile.
pub fn xtask_release() -> Result<PathBuf> {
    release("xtask", &[])
}

/// Builds the program that asks the agent's metadata service with optimizations, and returns its path.
///
/// # Errors
/// When something does not compile.
pub fn requests_release() -> Result<PathBuf> {
    // With both programs, so that dependencies have the features that they have there.
    release("kiam-bench", &["-p", "kiam-agent", "-p", "kiam-server"])
}

fn release(name: &str, beside: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--locked", "--release", MESSAGES])
        .args(["-p", name])
        .args(beside);
    executable(name, &exec(&mut command)?)
}
