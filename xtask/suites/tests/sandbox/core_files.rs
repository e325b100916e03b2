//! Programs that crash leave no core file, which would contain credentials.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use testbed::fixture::{Fixture, credentials};
use testbed::sandbox::{Finished, Program};
use toolchain::exec;

const LIMIT: Duration = Duration::from_secs(20);

/// Crashes a program that may leave a core file of any size.
#[track_caller]
fn crash(program: &Program) {
    let pid = format!("--pid={}", program.pid());
    exec(Command::new("prlimit").args([&pid, "--core=unlimited"])).unwrap();
    program.signal(Signal::SIGABRT).unwrap();
}

/// Returns whether it left one, from its wait status.
#[track_caller]
fn left(ended: &Finished) -> bool {
    let status = ended.status;
    assert!(status.signal() == Some(Signal::SIGABRT as i32), "{status}");
    status.core_dumped()
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn programs_that_crash_leave_no_core_file() {
    let fixture = Fixture::start();
    credentials(fixture.alice.place());

    let folder = tempfile::tempdir().unwrap();
    let mut sleeper = Command::new("sleep");
    sleeper.arg("60").current_dir(&folder);
    let sleeper = Program::start("a program that may", sleeper).unwrap();
    crash(&sleeper);
    assert!(
        left(&sleeper.finish(LIMIT).unwrap()),
        "this machine writes no core files, so that nothing is shown"
    );

    let Fixture { agent, server, .. } = fixture;
    crash(agent.program());
    assert!(
        !left(&agent.finish(LIMIT).unwrap()),
        "the agent left a core file"
    );
    crash(server.program());
    assert!(!left(&server.finish(LIMIT).unwrap()), "the server left one");
}
