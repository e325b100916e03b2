//! A client's process in a pod, and its turns.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::time::Duration;

use anyhow::Result;

use super::list::Client;
use testbed::sandbox::{Place, Program};

/// Limit for a turn of one client.
const TURN_LIMIT: Duration = Duration::from_secs(120);
const MANY_LIMIT: Duration = Duration::from_secs(240);

/// Parts of the sandbox that clients use.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The built clients of AWS's SDK for Rust.
    pub(crate) rust: PathBuf,
    /// The double of STS.
    pub(crate) sts: String,
    /// The double of S3.
    pub(crate) s3: String,
}

/// Clients of one kind in one process, in a pod.
#[derive(Debug)]
pub(crate) struct Running {
    count: usize,
    program: Program,
    input: ChildStdin,
}

/// Result of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Number of clients that were served.
    pub(crate) good: usize,
    /// Error of the first client that was not.
    pub(crate) error: String,
}

impl Running {
    /// Starts clients, which send no request yet.
    pub(crate) fn start(
        client: &Client,
        place: &Place,
        count: usize,
        surroundings: &Surroundings,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = client.command(place, count, &surroundings.rust);
        command
            .env("KIAM_STS_URL", &surroundings.sts)
            .env("KIAM_S3_URL", &surroundings.s3)
            .envs(environment.iter().copied());
        let (program, input) = Program::start_with_input(client.title, command)?;
        Ok(Self {
            count,
            program,
            input,
        })
    }

    /// Number of clients.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// Has every client sign one request, from the second turn on with new credentials.
    pub(crate) fn turn(&mut self) -> Turn {
        let mark = self.program.mark();
        // The output below shows a client that has ended.
        let _ = self.input.write_all(b"\n");
        let limit = if self.count > 1 {
            MANY_LIMIT
        } else {
            TURN_LIMIT
        };
        let done = |line: &str| {
            let (good, error) = line.strip_prefix("done ")?.split_once(' ')?;
            let good = good.parse().ok()?;
            let error = error.to_owned();
            Some(Turn { good, error })
        };
        // Some print no space where there is no error.
        let done = |line: &str| done(&format!("{line} "));
        let turn = self
            .program
            .wait_for_after(mark, "end of its turn", limit, done);
        turn.unwrap_or_else(|error| Turn {
            good: 0,
            error: format!("{error:#}"),
        })
    }
}
