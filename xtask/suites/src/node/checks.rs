//! Checks that kernels undergo: `doctor` with the agent's capabilities, the kernel tests, and the
//! commands that run whole agents.

use std::time::Duration;

use anyhow::Result;

use super::disk::MOUNT;
use super::machine::Machine;
use testbed::sandbox::PATIENCE;
use testbed::test_output::Outcome;

/// Capabilities that the chart gives an agent, and no others.
const AS_AGENT: &str = "setpriv --bounding-set=-all,+bpf,+net_admin,+dac_read_search \
                        --inh-caps=-all,+bpf,+net_admin,+dac_read_search --no-new-privs";
const PODS: &str = "/sys/fs/cgroup/kubepods.slice";
/// Reply of `doctor` on kernels that are too old.
const TOO_OLD: &str = "needs 5.14 or newer";

/// Kernel tests of the short form: one of each kernel program, of attaching and of taking over.
const SHORT_TESTS: [&str; 6] = [
    "capabilities::the_documented_capabilities_suffice",
    "redirect::every_address_family_is_redirected_and_attested",
    "guard::no_packet_of_a_pod_reaches_the_metadata_service",
    "attest::forged_packets_are_not_attested",
    "pins::the_next_agent_takes_over",
    "pins::maps_of_other_versions_are_removed",
];

/// Something that a kernel is tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Check {
    /// doctor, which loads the programs, with exactly the agent's capabilities.
    Doctor,
    /// kiam-agent/tests/kernel.
    Tests,
    /// cargo xtask conformance.
    Conformance,
    /// cargo xtask attack.
    Attack,
    /// cargo xtask restarts.
    Restarts,
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) good: bool,
    /// Summary in a few words.
    pub(super) summary: String,
    /// Details, shown on failure.
    pub(super) details: String,
}

impl Check {
    pub(super) const ALL: [Self; 5] = [
        Self::Doctor,
        Self::Tests,
        Self::Conformance,
        Self::Attack,
        Self::Restarts,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Doctor => "doctor",
            Self::Tests => "kernel tests",
            Self::Conformance => "conformance",
            Self::Attack => "attack",
            Self::Restarts => "restarts",
        }
    }

    /// Makes the check.
    pub(super) fn make(self, machine: &Machine, short: bool) -> Found {
        let made = match self {
            Self::Doctor => doctor(machine),
            Self::Tests if short => short_tests(machine),
            Self::Tests => tests(machine, ""),
            Self::Conformance => command(machine, "conformance", Duration::from_secs(60)),
            Self::Attack => command(machine, "attack", Duration::from_secs(240)),
            Self::Restarts => command(machine, RESTARTS, Duration::from_secs(240)),
        };
        made.unwrap_or_else(|error| Found {
            good: false,
            summary: "did not end".into(),
            details: format!("{error:#}"),
        })
    }
}

const RESTARTS: &str = "restarts --seconds=120 --times=4 --rate=5";

/// Runs `doctor` with the rights of an agent in the chart.
pub(super) fn doctor(machine: &Machine) -> Result<Found> {
    let script = format!("mkdir -p {PODS}; {AS_AGENT} {MOUNT}/kiam-agent doctor 2>&1");
    let limit = machine.limit(Duration::from_secs(15));
    let output = machine.run(&script, limit)?;
    let failed: Vec<_> = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("FAIL "))
        .collect();
    let good = output.status.success();
    let summary = match &*failed {
        [] if good => "ok".to_owned(),
        [] => format!("failed ({})", output.status),
        [first, ..] => {
            // The verifier's words are among the details.
            let first = first.split("; the verifier").next().unwrap_or(first);
            first.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    Ok(Found {
        good,
        summary,
        details: output.stdout,
    })
}

impl Found {
    /// Checks that a kernel which is too old is refused with that reason.
    pub(super) fn refusal(self) -> Self {
        Self {
            good: !self.good && self.summary.contains(TOO_OLD),
            ..self
        }
    }
}

fn environment(machine: &Machine) -> String {
    let patience = machine.limit(Duration::from_secs(1)).as_secs();
    format!("cd /tmp && env RUST_BACKTRACE=0 {PATIENCE}={patience}")
}

fn tests(machine: &Machine, arguments: &str) -> Result<Found> {
    let environment = environment(machine);
    let script = format!("{environment} {MOUNT}/kernel-tests --include-ignored {arguments} 2>&1");
    let output = machine.run(&script, machine.limit(Duration::from_secs(180)))?;
    let mut outcome = Outcome::default();
    let mut failed = Vec::new();
    for line in output.stdout.lines() {
        outcome.read(line);
        let test = line
            .strip_prefix("test ")
            .and_then(|line| line.strip_suffix("FAILED"));
        if let Some((name, _)) = test.and_then(|test| test.split_once(' ')) {
            failed.push(name);
        }
    }
    outcome.end(output.status.success());
    let Outcome {
        passed, skipped, ..
    } = outcome;
    let good = outcome.failed == 0 && skipped == 0 && passed > 0;
    let mut summary = format!("{passed} passed");
    if outcome.failed > 0 {
        summary += &format!(", {} failed: {}", outcome.failed, failed.join(", "));
    }
    if skipped > 0 {
        summary += &format!(", {skipped} skipped");
    }
    Ok(Found {
        good,
        summary,
        details: output.stdout,
    })
}

fn short_tests(machine: &Machine) -> Result<Found> {
    let mut whole = Found {
        good: true,
        summary: format!("{} of them passed", SHORT_TESTS.len()),
        details: String::new(),
    };
    for name in SHORT_TESTS {
        let found = tests(machine, &format!("--exact {name}"))?;
        whole.details += &found.details;
        if !found.good {
            whole.good = false;
            whole.summary = format!("{name}: {}", found.summary);
        }
    }
    Ok(whole)
}

/// Runs one of these commands, with the programs on the payload disk.
fn command(machine: &Machine, words: &str, limit: Duration) -> Result<Found> {
    let environment = environment(machine);
    let script = format!("{environment} {MOUNT}/xtask {words} --programs={MOUNT} 2>&1");
    let output = machine.run(&script, machine.limit(limit))?;
    let good = output.status.success();
    let last = output.stdout.lines().rfind(|line| !line.trim().is_empty());
    Ok(Found {
        good,
        summary: if good {
            "passed".into()
        } else {
            last.unwrap_or("failed without output").trim().to_owned()
        },
        details: output.stdout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_tests_exist() {
        for name in SHORT_TESTS {
            let (module, function) = name.split_once("::").unwrap();
            let file = format!("kiam-agent/tests/kernel/{module}.rs");
            let source = std::fs::read_to_string(toolchain::workspace().join(file)).unwrap();
            assert!(source.contains(&format!("fn {function}(")), "{name}");
        }
    }
}
