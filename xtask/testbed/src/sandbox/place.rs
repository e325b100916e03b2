//! A place to run programs in: a network namespace and a cgroup.

use std::ffi::OsStr;
use std::process::Command;

use super::{Cgroup, Netns};

/// Joins the cgroup named by the first argument, then becomes the program behind it.
const JOIN: &str = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;

/// A network namespace and a cgroup to run programs in.
#[derive(Debug, Clone)]
pub struct Place {
    netns: Netns,
    cgroup: Cgroup,
}

impl Place {
    /// The place made of these two.
    pub const fn new(netns: Netns, cgroup: Cgroup) -> Self {
        Self { netns, cgroup }
    }

    /// Its network namespace.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup.
    pub const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The same network namespace with another cgroup.
    pub fn with_cgroup(&self, cgroup: Cgroup) -> Self {
        Self::new(self.netns.clone(), cgroup)
    }

    /// A command that runs the program here; arguments and environment are the caller's to add.
    /// The process that is started becomes the program: it keeps its id.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // By full paths: the caller may clear the environment and with it PATH.
        let mut command = Command::new("/usr/bin/nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.netns.path());
        command
            .arg(net)
            .args(["--", "/bin/sh", "-c", JOIN])
            .arg(self.cgroup.path())
            .arg(program);
        command
    }

    /// The same as one would type it in a shell.
    pub fn shell(&self) -> String {
        let cgroup = self.cgroup.path().display();
        let netns = self.netns.path().display();
        format!("nsenter --net={netns} sh -c 'echo 0 > {cgroup}/cgroup.procs; exec \"$@\"' -")
    }
}
