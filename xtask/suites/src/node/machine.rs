//! Virtual machines: started in a sandbox's control namespace, used over ssh, powered off, started
//! again, and killed with their disk removed when dropped.
//!
//! A machine is on the sandbox's bridge (`fabric`, 10.0.0.1/16), so that it can reach
//! services there and in the sandbox's control namespace, and nothing else.

mod qemu;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use toolchain::exec;

use super::accelerator::Accelerator;
use super::disk;
use super::kernels::Kernel;
use super::root::Root;
use testbed::sandbox::{Finished, Program, Sandbox};

/// Line that both kinds of `init` print once commands can be run.
const READY: &str = "kiam-machine-ready";
/// Limit for a quick command, with KVM.
const SHORT: Duration = Duration::from_secs(15);
/// Limit from start to the first command, with KVM.
const BOOT: Duration = Duration::from_secs(40);
/// Space that a run may write to the overlay.
const OVERLAY_MIB: u64 = 1024;

/// First program of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// systemd, as nodes have it.
    Systemd,
    /// File systems, network and ssh, which is all that kernels are tried with.
    Bare,
}

/// Options of a machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its address on the sandbox's bridge, in 10.0.0.0/16: above 10.0.128.0, which no node of a
    /// sandbox has.
    pub address: Ipv4Addr,
    /// Its first program.
    pub init: Init,
    /// Its memory.
    pub memory_mib: u32,
    /// Its processors.
    pub processors: u32,
    /// Disk that is mounted at `/mnt/kiam`, to read.
    pub disk: Option<PathBuf>,
    /// More for the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Limit from start to the first command; by default, that of the accelerator.
    pub boot_limit: Option<Duration>,
}

impl Options {
    /// A machine for kernels alone, of the sandbox's so many.
    #[must_use]
    pub fn bare(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 0, 200, number),
            init: Init::Bare,
            memory_mib: 2048,
            processors: 2,
            disk: None,
            kernel_arguments: Vec::new(),
            boot_limit: None,
        }
    }
}

/// A virtual machine.
#[derive(Debug)]
pub struct Machine {
    sandbox: Sandbox,
    kernel: Kernel,
    root: Root,
    accelerator: Accelerator,
    options: Options,
    overlay: PathBuf,
    // Before what it speaks to.
    connection: Option<Program>,
    qemu: Option<Program>,
}

impl Machine {
    /// Makes a machine, which is off.
    ///
    /// # Errors
    /// Fails when there is no space for its disk, or a tool fails.
    pub fn new(
        sandbox: &Sandbox,
        kernel: &Kernel,
        root: &Root,
        accelerator: Accelerator,
        options: Options,
    ) -> Result<Self> {
        disk::check_room(sandbox.scratch(), OVERLAY_MIB)?;
        let overlay = sandbox.scratch().join(format!("{}.qcow2", options.name));
        disk::overlay(&root.image(), &overlay)?;
        let machine = Self {
            sandbox: sandbox.clone(),
            kernel: kernel.clone(),
            root: root.clone(),
            accelerator,
            options,
            overlay,
            connection: None,
            qemu: None,
        };
        let tap = machine.tap();
        let netns = sandbox.control().netns().name();
        for line in [
            format!("tuntap add {tap} mode tap"),
            format!("link set {tap} master fabric up"),
        ] {
            exec(Command::new("ip").args(["-n", netns]).args(line.split(' ')))?;
        }
        Ok(machine)
    }

    /// Starts it and waits until commands can be run.
    ///
    /// # Errors
    /// Fails when it has not started in time: then it is killed; the error holds the end of its
    /// output.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.qemu.is_none(), "{} is on", self.options.name);
        let qemu = Program::start(&self.options.name, self.command())?;
        let limit = self.options.boot_limit;
        let limit = limit.unwrap_or_else(|| self.limit(BOOT));
        qemu.wait_for("sign that it has booted", limit, |line| {
            line.contains(READY).then_some(())
        })?;
        self.qemu = Some(qemu);
        self.connect()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its kernel.
    #[must_use]
    pub const fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Its address on the sandbox's bridge.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.options.address
    }

    /// Output on its serial console since its start.
    #[must_use]
    pub fn console(&self) -> String {
        self.qemu.as_ref().map(Program::output).unwrap_or_default()
    }

    /// Scales a limit for KVM to the machine's accelerator.
    #[must_use]
    pub fn limit(&self, by_kvm: Duration) -> Duration {
        by_kvm * self.accelerator.patience()
    }

    /// Runs a shell's command in it.
    ///
    /// # Errors
    /// Fails when it is off or has ended, or the command has not ended in time. A command that
    /// fails is not an error here.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Finished> {
        let finished = self.start(script)?.finish(limit);
        let finished = finished.map_err(|error| self.explain(error))?;
        // Of ssh itself: what runs there does not end with it.
        if finished.status.code() == Some(255) {
            let stderr = finished.stderr.trim();
            bail!(self.explain(anyhow::anyhow!("{}: ssh failed: {stderr}", self.name())));
        }
        Ok(finished)
    }

    /// Runs a shell's command in it that has to succeed, and returns what it printed.
    ///
    /// # Errors
    /// Like [`Self::run`], and fails when the command fails.
    pub fn check(&self, script: &str, limit: Duration) -> Result<String> {
        let finished = self.run(script, limit)?;
        ensure!(
            finished.status.success(),
            "{}: {script} ({}): {}{}",
            self.name(),
            finished.status,
            finished.stdout,
            finished.stderr
        );
        Ok(finished.stdout)
    }

    /// Starts a shell's command in it. What is dropped loses its connection, and the command its
    /// output; it is not killed.
    ///
    /// # Errors
    /// Fails when it is off.
    pub fn start(&self, script: &str) -> Result<Program> {
        ensure!(self.qemu.is_some(), "{} is off", self.name());
        let mut command = self.ssh("ssh");
        command.arg(self.login()).arg("--").arg(script);
        Program::start(&format!("{}: {script}", self.name()), command)
    }

    /// Copies a file or folder into it.
    ///
    /// # Errors
    /// Fails when it is off, or there is no such file, or too little space.
    pub fn copy_in(&self, from: &Path, to: &str, limit: Duration) -> Result<()> {
        ensure!(self.qemu.is_some(), "{} is off", self.name());
        let mut command = self.ssh("scp");
        command.args(["-r", "-p"]).arg(from);
        command.arg(format!("{}:{to}", self.login()));
        let name = format!("{}: copying {}", self.name(), from.display());
        let finished = Program::start(&name, command)?.finish(limit)?;
        ensure!(
            finished.status.success(),
            "{name}: {}",
            finished.stderr.trim()
        );
        Ok(())
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// Fails when it has not ended in time: then it is killed.
    pub fn power_off(&mut self) -> Result<()> {
        let script = match self.options.init {
            Init::Systemd => "systemctl poweroff",
            // Documentation/admin-guide/sysrq.rst: no program is needed.
            Init::Bare => "sync; echo o > /proc/sysrq-trigger",
        };
        // It ends while it answers.
        let answer = self.start(script)?;
        let limit = self.limit(SHORT * 2);
        self.disconnect();
        if let Some(qemu) = self.qemu.take() {
            qemu.finish(limit)?;
        }
        drop(answer);
        Ok(())
    }

    /// Cuts its power.
    pub fn power_cut(&mut self) {
        self.disconnect();
        self.qemu = None;
    }

    /// Ends the connection, and with it its socket: the next one's commands would find the old one.
    fn disconnect(&mut self) {
        self.connection = None;
        let _ = std::fs::remove_file(self.control());
    }

    /// One connection for all commands: an emulated processor takes seconds to make one.
    fn connect(&mut self) -> Result<()> {
        let mut command = self.ssh("ssh");
        command.args(["-M", "-N", "-o", "ServerAliveInterval=60"]);
        // Says so when it is there; its own output would not.
        command.args([
            "-o",
            "PermitLocalCommand=yes",
            "-o",
            "LocalCommand=echo connected",
        ]);
        command.arg(self.login());
        let connection = Program::start(&format!("ssh to {}", self.name()), command)?;
        let made = connection.wait_for("connection", self.limit(SHORT), |line| {
            (line == "connected").then_some(())
        });
        made.map_err(|error| self.explain(error))?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Adds the end of the machine's console output to an error.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let Some(qemu) = &self.qemu else {
            return error;
        };
        let state = if qemu.has_ended() {
            "it has ended; "
        } else {
            ""
        };
        error.context(format!(
            "{state}{}: end of the console output\n{}",
            self.name(),
            qemu.tail()
        ))
    }

    fn control(&self) -> PathBuf {
        self.sandbox.scratch().join(format!("{}.ssh", self.name()))
    }

    fn login(&self) -> String {
        format!("root@{}", self.options.address)
    }

    fn ssh(&self, program: &str) -> Command {
        let control = self.control();
        // Its key was made with its disk, and the network is ours.
        let mut command = self.sandbox.control().command(program);
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=120",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            &format!("ControlPath={}", control.display()),
        ] {
            command.args(["-o", option]);
        }
        command
            .arg("-F")
            .arg("/dev/null")
            .arg("-i")
            .arg(self.root.key());
        command
    }

    fn tap(&self) -> String {
        let [_, _, third, fourth] = self.options.address.octets();
        format!("vm{third}x{fourth}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_cut();
        // The sandbox's end removes both as well.
        let _ = std::fs::remove_file(&self.overlay);
        let netns = self.sandbox.control().netns().name();
        let tap = self.tap();
        let _ = exec(Command::new("ip").args(["-n", netns, "link", "delete", &tap]));
    }
}
