//! Clients that keep tokens and connections, and sign requests all the time while the agent is
//! restarted.

use std::ops::RangeInclusive;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::now;
use crate::clients::{Client, Running, Surroundings};
use testbed::sandbox::Pod;

/// Those whose older agents' tokens were once their last.
const NAMES: [&str; 3] = ["rust", "java-v2-metadata", "go-v1"];
/// Pause between two turns: each asks for new credentials.
const PAUSE: Duration = Duration::from_millis(50);

/// Results of a client's requests.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientCounts {
    /// Its name.
    pub client: String,
    /// Requests.
    pub requests: usize,
    /// Requests that failed while there was no agent that was ready.
    pub failed_meanwhile: usize,
    /// Other requests that failed.
    pub failed: usize,
    /// The longest time without a signed request, in milliseconds.
    pub longest_ms: u64,
    /// The first unexpected failure.
    pub first_failure: Option<String>,
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Clients(Vec<AtWork>);

#[derive(Debug)]
struct AtWork {
    name: &'static str,
    stop: Sender<()>,
    turns: JoinHandle<Vec<Turn>>,
}

#[derive(Debug)]
struct Turn {
    begun: u64,
    ended: u64,
    error: Option<String>,
}

impl Clients {
    /// Starts them; each has signed its first request then.
    pub(super) fn start(pod: &Pod, surroundings: &Surroundings) -> Result<Self> {
        let mut all = Vec::new();
        for name in NAMES {
            let client = Client::named(name).with_context(|| format!("there is no {name}"))?;
            let mut running = Running::start(&client, pod.place(), 1, surroundings, &[])?;
            let first = running.turn();
            ensure!(first.good == 1, "{name} did not begin: {}", first.error);
            let (stop, stopped) = mpsc::channel();
            let turns = std::thread::spawn(move || {
                let mut turns = Vec::new();
                while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                    let begun = now();
                    let turn = running.turn();
                    turns.push(Turn {
                        begun,
                        ended: now(),
                        error: (turn.good == 0).then_some(turn.error),
                    });
                }
                turns
            });
            all.push(AtWork { name, stop, turns });
        }
        Ok(Self(all))
    }

    /// Ends them; `restarts` are the times from the end of an agent until the next was ready.
    pub(super) fn end(self, restarts: &[RangeInclusive<u64>]) -> Vec<ClientCounts> {
        let end = |AtWork { name, stop, turns }: AtWork| {
            drop(stop);
            let turns = turns.join();
            let turns = turns.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            ClientCounts::of(name, &turns, restarts)
        };
        self.0.into_iter().map(end).collect()
    }
}

impl ClientCounts {
    fn of(name: &str, turns: &[Turn], restarts: &[RangeInclusive<u64>]) -> Self {
        let mut counts = Self {
            client: name.to_owned(),
            requests: turns.len(),
            ..Self::default()
        };
        let mut last_good = turns.first().map_or(0, |turn| turn.begun);
        for turn in turns {
            let meanwhile = |restart: &RangeInclusive<u64>| {
                turn.begun <= *restart.end() && turn.ended >= *restart.start()
            };
            match &turn.error {
                None => {
                    counts.longest_ms = counts.longest_ms.max(turn.ended - last_good);
                    last_good = turn.ended;
                }
                Some(_) if restarts.iter().any(meanwhile) => counts.failed_meanwhile += 1,
                Some(error) => {
                    counts.failed += 1;
                    counts.first_failure.get_or_insert_with(|| error.clone());
                }
            }
        }
        counts
    }

    /// Checks that it was refused only while there was no agent.
    ///
    /// # Errors
    /// Fails when it was refused at another time, or sent no request.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.requests > 0, "{} sent no request", self.client);
        ensure!(
            self.failed == 0,
            "a client was refused while there was an agent: {self:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_excused_while_there_is_no_agent_only() {
        let turn = |begun, ended, bad: bool| Turn {
            begun,
            ended,
            error: bad.then(|| "401".to_owned()),
        };
        let turns = [
            turn(10, 20, false),
            turn(95, 110, true),
            turn(150, 180, true),
            turn(201, 210, true),
            turn(250, 260, false),
        ];
        let counts = ClientCounts::of("x", &turns, &[100..=200]);
        assert_eq!((counts.requests, counts.failed_meanwhile), (5, 2));
        assert_eq!((counts.failed, counts.longest_ms), (1, 240));
        assert!(counts.check().is_err());
        ClientCounts::of("x", &turns[..3], &[100..=200])
            .check()
            .unwrap();
        assert!(ClientCounts::of("x", &[], &[]).check().is_err());
    }
}
