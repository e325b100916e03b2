//! Results of clients in states: as a table on the terminal and in docs/clients.md.

use std::fmt;

use anyhow::{Result, bail};
use toolchain::{page, workspace};

use super::list::Client;
use super::state::State;

const COMMAND: &str = "cargo xtask clients";
/// Length to which errors are cut.
const MAX_ERROR: usize = 300;

/// Result of a client in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// Expected result, with a remark.
    Good(String),
    /// Something else.
    Failed(String),
}

/// All cells so far.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<(Client, Vec<(State, Cell)>)>,
}

impl Table {
    pub(super) fn new(clients: &[Client]) -> Self {
        Self {
            rows: clients.iter().map(|client| (*client, Vec::new())).collect(),
        }
    }

    /// Records the result of a client, and prints it.
    #[expect(clippy::print_stderr, reason = "for the terminal")]
    pub(super) fn set(&mut self, client: &Client, state: State, cell: Result<Cell>) {
        let cell = cell.unwrap_or_else(|error| Cell::Failed(format!("{error:#}")));
        let (mark, text) = match &cell {
            Cell::Good(text) => ("✓", text),
            Cell::Failed(text) => ("✗", text),
        };
        let short: String = text.chars().take(MAX_ERROR).collect();
        eprintln!("{mark} {:<28}{:<20}{short}", client.title, state.heading());
        if let Some((_, cells)) = self.rows.iter_mut().find(|(known, _)| known == client) {
            cells.push((state, cell));
        }
    }

    fn states(&self) -> Vec<State> {
        let tried = |state: &State| {
            let mut rows = self.rows.iter();
            rows.any(|(_, cells)| cells.iter().any(|(of, _)| of == state))
        };
        State::ALL.into_iter().filter(tried).collect()
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (client, cells) in &self.rows {
            for (state, cell) in cells {
                let Cell::Failed(error) = cell else { continue };
                if state.counts() && client.lacks(*state).is_none() {
                    let error: String = error.chars().take(MAX_ERROR).collect();
                    failures.push(format!("{}, {}: {error}", client.title, state.heading()));
                }
            }
        }
        failures
    }

    /// Checks that every client is served that the real service would serve.
    pub(super) fn check(&self) -> Result<()> {
        let failures = self.failures();
        if failures.is_empty() {
            return Ok(());
        }
        bail!(
            "{} failed that must not:\n  {}",
            failures.len(),
            failures.join("\n  ")
        )
    }

    /// Puts it into the page.
    pub(super) fn write(&self) -> Result<()> {
        page::replace(
            &workspace().join("docs/clients.md"),
            COMMAND,
            &self.to_string(),
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states = self.states();
        write!(f, "| client | version |")?;
        for state in &states {
            write!(f, " {} |", state.heading())?;
        }
        writeln!(f, "\n|{}", "---|".repeat(states.len() + 2))?;
        for (client, cells) in &self.rows {
            let version = client.version().unwrap_or_else(|_| "?".to_owned());
            write!(f, "| {} | {version} |", client.title)?;
            for state in &states {
                let cell = cells.iter().find(|(of, _)| of == state);
                let text = match cell.map(|(_, cell)| cell) {
                    None => String::new(),
                    Some(Cell::Good(_)) if !state.serves() => "none".to_owned(),
                    Some(Cell::Good(text)) if text.is_empty() => "yes".to_owned(),
                    Some(Cell::Good(text)) => text.clone(),
                    Some(Cell::Failed(_)) if client.lacks(*state).is_some() => "–".to_owned(),
                    Some(Cell::Failed(_)) => "**no**".to_owned(),
                };
                write!(f, " {text} |")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::ALL;
    use super::*;

    #[test]
    fn failures_are_those_that_the_real_service_would_not_give() {
        let without = ALL.iter().find(|client| client.name == "java-v2-metadata");
        let (with, without) = (ALL[0], *without.unwrap());
        let mut table = Table::new(&[with, without]);
        let failed = || Ok(Cell::Failed("because".to_owned()));
        table.set(&with, State::Granted, Ok(Cell::Good(String::new())));
        table.set(&with, State::FullUri, failed());
        table.set(&without, State::RelativeUri, failed());
        table.check().unwrap();
        table.set(&with, State::RelativeUri, failed());
        let error = table.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "1 failed that must not:\n  AWS CLI, `RELATIVE_URI`: because"
        );
        let text = table.to_string();
        assert!(
            text.contains("| yes |") && text.contains("**no**"),
            "{text}"
        );
        assert!(text.contains("| – |"), "{text}");
    }
}
