//! Kernels and checks in a table, as docs/kernel.md has it.

use std::fmt;

use super::Outcome;

/// Outcomes by kernel.
#[derive(Debug, Default)]
pub(in crate::node) struct Table {
    kernels: Vec<(String, Vec<Outcome>)>,
    /// Clusters that could not be made.
    failures: Vec<String>,
    /// True if each check had to fail.
    planted: bool,
}

impl Table {
    /// An empty table, of checks that had to fail or not to.
    pub(super) fn new(planted: bool) -> Self {
        Self {
            planted,
            ..Self::default()
        }
    }

    /// Adds a kernel's column.
    pub(super) fn add(&mut self, release: &str, outcomes: Vec<Outcome>) {
        self.kernels.push((release.to_owned(), outcomes));
    }

    /// Adds a kernel with which there was no cluster.
    pub(super) fn add_failure(&mut self, release: &str, failure: &str) {
        self.failures.push(format!("{release}: {failure}"));
    }

    /// Unexpected results: each failure; with planted defects, each check that has not detected
    /// one, except those that others need.
    pub(in crate::node) fn wrong(&self) -> Vec<String> {
        let planted = self.planted;
        let mut wrong = self.failures.clone();
        for (release, outcomes) in &self.kernels {
            for outcome in outcomes {
                let Outcome {
                    check,
                    failure,
                    needed,
                } = outcome;
                match failure {
                    Some(failure) if !planted || *needed => {
                        wrong.push(format!("{release}: {check}: {failure}"));
                    }
                    None if planted && !needed => {
                        wrong.push(format!("{release}: {check}: noticed nothing"));
                    }
                    _ => {}
                }
            }
        }
        wrong
    }

    fn cell(outcomes: &[Outcome], check: &str) -> &'static str {
        let outcome = outcomes.iter().find(|outcome| outcome.check == check);
        match outcome {
            Some(Outcome { failure: None, .. }) => "ok",
            Some(_) => "**failed**",
            None => "–",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut checks: Vec<_> = Vec::new();
        for outcome in self.kernels.iter().flat_map(|(_, outcomes)| outcomes) {
            if !checks.contains(&outcome.check) {
                checks.push(outcome.check);
            }
        }
        write!(f, "| on a node with |")?;
        for (release, _) in &self.kernels {
            write!(f, " {release} |")?;
        }
        write!(f, "\n|---|{}", "---|".repeat(self.kernels.len()))?;
        for check in checks {
            write!(f, "\n| {check} |")?;
            for (_, outcomes) in &self.kernels {
                write!(f, " {} |", Self::cell(outcomes, check))?;
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let outcome = |check, failure: Option<&str>, needed| Outcome {
            check,
            failure: failure.map(str::to_owned),
            needed,
        };
        let mut table = Table::default();
        let first = vec![outcome("install", None, true), outcome("pod", None, false)];
        table.add("6.1", first);
        table.add("7.2", vec![outcome("install", Some("late"), true)]);
        table
    }

    #[test]
    fn each_kernel_has_a_column_and_each_check_a_line() {
        assert_eq!(
            table().to_string(),
            "| on a node with | 6.1 | 7.2 |\n|---|---|---|\n\
             | install | ok | **failed** |\n| pod | ok | – |\n"
        );
    }

    #[test]
    fn failures_and_undetected_defects_are_unexpected() {
        let mut table = table();
        assert_eq!(table.wrong(), ["7.2: install: late"]);
        table.planted = true;
        let wrong = ["6.1: pod: noticed nothing", "7.2: install: late"];
        assert_eq!(table.wrong(), wrong);
        let mut none = Table::new(true);
        none.add_failure("6.12", "no room");
        assert_eq!(none.wrong(), ["6.12: no room"]);
    }
}
