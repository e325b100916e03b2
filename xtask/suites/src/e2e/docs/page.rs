//! The commands of a page, with their expected output.

use anyhow::{Result, bail, ensure};

/// A command that a page shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) command: String,
    /// Lines that its output holds, in this order; each may be a part of a line.
    pub(super) expected: Vec<String>,
}

/// The steps of all blocks called `console`; every command in one begins with `$ `.
pub(super) fn steps(page: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step {
                    command: command.to_owned(),
                    expected: Vec::new(),
                }),
                (None, Some(step)) => step.expected.push(line.to_owned()),
                (None, None) => bail!("a block begins with {line:?}, which is not a command"),
            },
            (false, _) => {}
        }
    }
    ensure!(!inside, "the page ends inside of a block");
    ensure!(!steps.is_empty(), "the page has no commands");
    Ok(steps)
}

impl Step {
    /// Returns the first expected line that is missing from the output.
    pub(super) fn missing<'a>(&'a self, printed: &str) -> Option<&'a str> {
        let mut lines = printed.lines();
        let missing = self
            .expected
            .iter()
            .find(|part| !lines.any(|line| line.contains(part.as_str())));
        missing.map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_their_expected_output_are_read() {
        let page =
            "text\n```console\n$ one --flag\nprinted\nmore\n$ two\n```\n```yaml\n$ no: 1\n```\n";
        let steps = steps(page).unwrap();
        let commands: Vec<_> = steps.iter().map(|step| step.command.as_str()).collect();
        assert_eq!(commands, ["one --flag", "two"]);
        assert_eq!(steps[0].expected, ["printed", "more"]);
        assert!(super::steps("nothing").is_err());
        assert!(super::steps("```console\nno command\n```").is_err());
        assert!(super::steps("```console\n$ x\n").is_err());
    }

    #[test]
    fn output_holds_the_expected_lines_in_order() {
        let step = Step {
            command: String::new(),
            expected: vec!["a b".to_owned(), "c".to_owned()],
        };
        assert_eq!(step.missing("x a b y\nz\nc"), None);
        assert_eq!(step.missing("c\na b"), Some("c"));
        assert_eq!(step.missing("a\nb\nc"), Some("a b"));
    }
}
