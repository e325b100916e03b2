//! What is left of a program that crashes: no core file, which would hold credentials.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use testbed::sandbox::{Finished, Program};
use toolchain::exec;

use crate::play::{Play, credentials};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[(
    "core_files::programs_that_crash_leave_none",
    Needs::Programs,
    none,
)];

const LIMIT: Duration = Duration::from_secs(20);

/// Crashes a program that may leave a core file of any size.
fn crash(program: &Program) -> Result<()> {
    let pid = format!("--pid={}", program.pid());
    exec(Command::new("prlimit").args([&pid, "--core=unlimited"]))?;
    program.signal(Signal::SIGABRT)
}

/// Whether it left one: the kernel says so to whoever waits for its end.
fn left(ended: &Finished) -> Result<bool> {
    let status = ended.status;
    ensure!(status.signal() == Some(Signal::SIGABRT as i32), "{status}");
    Ok(status.core_dumped())
}

fn none() -> Result<()> {
    let play = Play::begin()?;
    credentials(play.alice.place())?;

    let folder = tempfile::tempdir()?;
    let mut sleeper = Command::new("sleep");
    sleeper.arg("60").current_dir(&folder);
    let sleeper = Program::start("a program that may", sleeper)?;
    crash(&sleeper)?;
    ensure!(
        left(&sleeper.finish(LIMIT)?)?,
        "this machine writes no core files, so that nothing is shown"
    );

    let Play { agent, server, .. } = play;
    crash(agent.program())?;
    ensure!(!left(&agent.finish(LIMIT)?)?, "the agent left a core file");
    crash(server.program())?;
    ensure!(!left(&server.finish(LIMIT)?)?, "the server left one");
    Ok(())
}
