//! A node with its metadata service, a hostile pod, its victim, and a count of what gets through.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::list::Reach;
use super::report::OldConnection;
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::Programs;
use testbed::sandbox::{NodeOptions, Place, Pod, Program, run};

const ATTACKS: &str = include_str!("attacks.py");
const PYTHON: &str = "/usr/bin/python3";
/// Limit for one attempt.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// Time in which a packet on its way is counted.
const SETTLE: Duration = Duration::from_millis(30);

/// A node with its metadata service, a hostile pod and its victim.
pub(super) struct Fixture {
    pub(super) attacker: Pod,
    pub(super) victim: Pod,
    counter: Program,
    pub(super) node: FileClusterNode,
    pub(super) cluster: FileCluster,
}

impl Fixture {
    pub(super) fn new(programs: &Programs) -> Result<Self> {
        let cluster = FileCluster::new(programs)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        cluster.objects().put_namespace("team-a", Some(".*"))?;
        let attacker = cluster.pod(&node, ("team-a", "attacker"), Some("a-reader"))?;
        let victim = cluster.pod(&node, ("team-a", "victim"), Some("b-writer"))?;
        let counter = python(node.node().place(), &["count"]);
        let counter = Program::start("the counter at the service", counter)?;
        counter.wait_for("the counter", LIMIT, |line| {
            (line == "counting").then_some(())
        })?;
        Ok(Self {
            attacker,
            victim,
            counter,
            node,
            cluster,
        })
    }

    /// Makes an attempt and returns the number of packets that reach the service.
    pub(super) fn attempt(&self, attack: &Reach) -> Result<usize> {
        let before = self.packets();
        let words = python(self.attacker.place(), attack.words);
        run(attack.name, words, LIMIT)?;
        std::thread::sleep(SETTLE);
        Ok(self.packets() - before)
    }

    /// Opens a connection while nothing guards the service, and uses it once an agent runs.
    pub(super) fn old_connection(&self) -> Result<OldConnection> {
        let start = self.packets();
        let holder = python(self.attacker.place(), &["hold", "v4"]);
        let holder = Program::start("an old connection", holder)?;
        let line = |begin: &'static str| move |line: &str| line.starts_with(begin).then_some(());
        holder.wait_for("a connection", LIMIT, line("connected"))?;
        std::thread::sleep(SETTLE);
        let before = self.packets() - start;
        let agent = self.cluster.start_agent(&self.node, &[])?;
        holder.signal(Signal::SIGUSR1)?;
        holder.wait_for("its result", LIMIT, line("heard"))?;
        std::thread::sleep(SETTLE);
        let after = self.packets() - start - before;
        drop(holder);
        drop(agent);
        Ok(OldConnection { before, after })
    }

    fn packets(&self) -> usize {
        let output = self.counter.output();
        output
            .lines()
            .filter(|line| line.starts_with("packet"))
            .count()
    }
}

/// A process of attacks.py.
pub(super) fn python(place: &Place, words: &[&str]) -> std::process::Command {
    let mut command = place.command(PYTHON);
    command.args(["-I", "-S", "-u", "-c", ATTACKS]).args(words);
    command
}
