//! Table of the results: a row for each kernel, a column for each check.

use std::fmt;

use super::checks::{Check, Found};
use super::conditions::Condition;

/// Results of a kernel's checks.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) cells: Vec<(Check, Found)>,
}

/// All rows, as Markdown, and below them the output of `doctor` on nodes that lack something.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    pub(super) conditions: Vec<(Condition, Found)>,
}

impl Table {
    /// Unexpected results.
    pub(super) fn wrong(&self) -> Vec<String> {
        let cells = self.rows.iter().flat_map(|row| {
            let cells = row.cells.iter();
            cells.map(|(check, found)| (format!("{}: {}", row.kernel, check.name()), found))
        });
        let conditions = self.conditions.iter();
        let conditions = conditions.map(|(condition, found)| (condition.name.to_owned(), found));
        let all = cells.chain(conditions).filter(|(_, found)| !found.good);
        all.map(|(what, found)| format!("{what}: {}", found.summary))
            .collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks: Vec<_> = Check::ALL
            .into_iter()
            .filter(|check| self.rows.iter().any(|row| row.cell(*check).is_some()))
            .collect();
        write!(f, "| Linux |")?;
        for check in &checks {
            write!(f, " {} |", check.name())?;
        }
        writeln!(f)?;
        writeln!(f, "|---|{}", "---|".repeat(checks.len()))?;
        for row in &self.rows {
            write!(f, "| {} |", row.kernel)?;
            for check in &checks {
                let found = row.cell(*check).map_or_else(|| "–".into(), cell);
                write!(f, " {found} |")?;
            }
            writeln!(f)?;
        }
        if !self.conditions.is_empty() {
            writeln!(f, "\n| a node with | result of `doctor` |\n|---|---|")?;
        }
        for (condition, found) in &self.conditions {
            writeln!(f, "| {} | {} |", condition.name, cell(found))?;
        }
        Ok(())
    }
}

impl Row {
    fn cell(&self, check: Check) -> Option<&Found> {
        let found = self.cells.iter().find(|(of, _)| *of == check);
        found.map(|(_, found)| found)
    }
}

/// Text of a cell, escaped; failures are bold.
fn cell(found: &Found) -> String {
    let text = found.summary.replace('|', "\\|");
    if found.good {
        text
    } else {
        format!("**{text}**")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(good: bool, summary: &str) -> Found {
        Found {
            good,
            summary: summary.into(),
            details: String::new(),
        }
    }

    #[test]
    fn checks_that_were_not_made_are_dashes_and_failures_stand_out() {
        let rows = vec![
            Row {
                kernel: "5.10".into(),
                cells: vec![(Check::Doctor, found(true, "too old"))],
            },
            Row {
                kernel: "6.1".into(),
                cells: vec![
                    (Check::Doctor, found(true, "ok")),
                    (Check::Attack, found(false, "a | b")),
                ],
            },
        ];
        assert_eq!(
            Table {
                rows,
                conditions: Vec::new()
            }
            .to_string(),
            "| Linux | doctor | attack |\n|---|---|---|\n| 5.10 | too old | – |\n\
             | 6.1 | ok | **a \\| b** |\n"
        );
    }
}
