//! The reference pages `docs/reference`: every flag as the programs report it, every metric as the
//! source makes it.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use toolchain::{cargo, exec, workspace};

use super::is_current;
use suites::metrics;

const COMMAND: &str = "cargo xtask docs";

/// Writes them.
pub(super) fn write() -> Result<()> {
    for (path, text) in make()? {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Checks that the pages match the programs.
pub(crate) fn check() -> Result<()> {
    make()?
        .iter()
        .try_for_each(|(path, text)| is_current(path, text, COMMAND))
}

fn make() -> Result<Vec<(PathBuf, String)>> {
    let folder = workspace().join("docs/reference");
    Ok(vec![
        (folder.join("flags-agent.md"), flags("kiam-agent")?),
        (folder.join("flags-server.md"), flags("kiam-server")?),
        (folder.join("metrics.md"), metrics_page()?),
    ])
}

fn flags(program: &str) -> Result<String> {
    let main = help(program, &[])?;
    let mut page = format!(
        "# Flags of {program}\n\nMade by `{COMMAND}` from the program's own help.\n\n```text\n{main}```\n"
    );
    for command in commands(&main) {
        let text = help(program, &[command])?;
        write!(page, "\n## {program} {command}\n\n```text\n{text}```\n")?;
    }
    Ok(page)
}

fn help(program: &str, command: &[&str]) -> Result<String> {
    let mut run = cargo();
    run.args(["run", "--quiet", "--locked", "-p", program, "--"])
        .args(command)
        .arg("--help")
        // A variable set here would be printed as the flag's value.
        .env_remove("NODE_NAME")
        .env_remove("HOST_IP")
        .env_remove("POD_UID")
        .env("COLUMNS", "100");
    let text = exec(&mut run)?;
    Ok(text
        .lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n"))
}

/// The commands that a help text lists.
fn commands(help: &str) -> Vec<&str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names
        .filter(|name| !name.is_empty() && *name != "help")
        .collect()
}

fn metrics_page() -> Result<String> {
    let mut page = format!(
        "# Metrics\n\nMade by `{COMMAND}` from what the programs list (`kiam-agent metrics`, `kiam-server metrics`).\n\
         They serve them at `/metrics` of `--prometheus-listen-addr`, with those of the process itself\n\
         (`process_*`). Histograms have the suffixes `_bucket`, `_sum` and `_count`.\n"
    );
    for program in metrics::PROGRAMS {
        write!(
            page,
            "\n## {program}\n\n| name | type | labels | |\n|---|---|---|---|\n"
        )?;
        for (name, metric) in metrics::of(program)? {
            let metrics::Metric {
                kind, help, labels, ..
            } = metric;
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let help = help.replace('|', "\\|");
            writeln!(
                page,
                "| `{name}` | {kind} | {} | {help} |",
                labels.join(", ")
            )?;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_listed() {
        let help = "About\n\nCommands:\n  cleanup  Removes\n           more\n  doctor   Tells\n  help     Print\n\nOptions:\n  --x\n";
        assert_eq!(commands(help), ["cleanup", "doctor"]);
        assert!(commands("Options:\n  --x\n").is_empty());
    }
}
