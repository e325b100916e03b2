//! `client.py`, which runs in a pod: one attempt to reach an address, reported as a line of JSON.

use std::process::ChildStdin;

use serde::Deserialize;
use testbed::sandbox::{Place, Program};

use crate::hang_limit::hang_limit;

const CLIENT: &str = include_str!("client.py");

/// Result of an attempt.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Address and port of the peer, as the client sees it.
    pub(crate) peer: Option<(String, u16)>,
    /// Text that the peer sent.
    pub(crate) received: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) count: Option<u32>,
}

/// A running client. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Client {
    program: Program,
    input: ChildStdin,
    // Its cgroup is removed, with the processes in it, with the last of these.
    place: Place,
}

impl Client {
    #[track_caller]
    pub(crate) fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.command("/usr/bin/python3");
        command.args(["-I", "-S", "-c", CLIENT]).args(args);
        let (program, input) = Program::start_with_input("the client", command).unwrap();
        Self {
            program,
            input,
            place: place.clone(),
        }
    }

    /// Position of the next line of its output.
    pub(crate) fn mark(&self) -> usize {
        self.program.mark()
    }

    /// Waits for a line of its output, at this position or after it.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, mark: usize) {
        let any = |_: &str| Some(());
        let line = self
            .program
            .wait_for_after(mark, "a line", hang_limit(), any);
        line.unwrap();
    }

    /// Closes its input and waits for its end.
    #[track_caller]
    pub(crate) fn report(self) -> Report {
        let Self {
            program,
            input,
            place: _place,
        } = self;
        drop(input);
        let ended = program.finish(hang_limit()).unwrap();
        let line = ended.stdout.lines().last();
        let report = line.and_then(|line| serde_json::from_str(line).ok());
        report.unwrap_or_else(|| {
            let (status, stdout, stderr) = (ended.status, &ended.stdout, &ended.stderr);
            panic!("the client failed ({status}): {stdout}{stderr}")
        })
    }
}
