//! Nodes that lack something, or forbid it, and the one line that `doctor` prints there.

use std::time::Duration;

use anyhow::Result;

use super::checks::{self, Found};
use super::machine::Machine;

/// A node of some kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    pub(super) name: &'static str,
    /// Argument of the kernel's command line.
    pub(super) kernel_argument: &'static str,
    /// Shell's command that makes it so.
    prepare: &'static str,
    expected: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The node works like any other.
    Good,
    /// It is refused by a line with these words.
    Refused(&'static str),
}

/// Those of one command line behind each other.
pub(super) const CONDITIONS: [Condition; 6] = [
    Condition {
        name: "`kernel.unprivileged_bpf_disabled=1`",
        kernel_argument: "",
        prepare: "echo 1 > /proc/sys/kernel/unprivileged_bpf_disabled",
        expected: Expected::Good,
    },
    Condition {
        name: "no BTF",
        kernel_argument: "",
        prepare: "mount -t tmpfs none /sys/kernel/btf",
        expected: Expected::Refused("no file /sys/kernel/btf/vmlinux"),
    },
    Condition {
        name: "no BPF file system",
        kernel_argument: "",
        prepare: "umount /sys/kernel/btf && umount /sys/fs/bpf",
        expected: Expected::Refused("BPF file system"),
    },
    Condition {
        name: "cgroup version 1 only",
        kernel_argument: "kiam.cgroup=v1",
        prepare: "true",
        expected: Expected::Refused("cgroup2"),
    },
    Condition {
        name: "`lockdown=confidentiality`",
        kernel_argument: "lockdown=confidentiality",
        prepare: "grep -q '\\[confidentiality\\]' /sys/kernel/security/lockdown",
        expected: Expected::Good,
    },
    Condition {
        name: "`lockdown=integrity`",
        kernel_argument: "lockdown=integrity",
        prepare: "grep -q '\\[integrity\\]' /sys/kernel/security/lockdown",
        expected: Expected::Good,
    },
];

impl Condition {
    /// Brings the node into this condition, and runs `doctor`.
    pub(super) fn make(self, machine: &Machine) -> Result<Found> {
        let limit = machine.limit(Duration::from_secs(5));
        machine.check(self.prepare, limit)?;
        let found = checks::doctor(machine)?;
        let good = match self.expected {
            Expected::Good => found.good,
            Expected::Refused(words) => !found.good && found.summary.contains(words),
        };
        Ok(Found { good, ..found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_started_once_for_each_command_line() {
        let arguments = CONDITIONS.map(|condition| condition.kernel_argument);
        let mut sorted = arguments;
        sorted.sort_unstable();
        assert_eq!(arguments, sorted);
    }
}
