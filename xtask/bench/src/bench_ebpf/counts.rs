//! The kernel's own figures of the programs: how often they ran during each kind of work, how long
//! one run took, and of how many instructions they are.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use kiam_ebpf::programs::{CONNECT4, CONNECT6, GETPEERNAME4, GETPEERNAME6, GUARD};
use serde::Serialize;

const NAMES: [&str; 5] = [CONNECT4, CONNECT6, GETPEERNAME4, GETPEERNAME6, GUARD];
/// The kernel's instructions are of this size, in bytes.
const INSTRUCTION_BYTES: u32 = 8;

/// One program.
#[derive(Debug, Clone, Serialize)]
pub struct Count {
    /// Its name.
    pub program: &'static str,
    /// Its instructions, as the verifier left them.
    pub instructions: u32,
    /// Number of runs for each kind of work, and the time of each, in nanoseconds.
    pub runs: Vec<(&'static str, u64, f64)>,
}

/// Runs and their total time, by program.
type Totals = BTreeMap<&'static str, (u64, u64)>;

/// Reads the kernel's counts while `work` is done, for each kind of work.
pub(super) fn of<T: Copy>(
    kinds: &[(T, &'static str)],
    mut work: impl FnMut(T) -> Result<()>,
) -> Result<Vec<Count>> {
    // As long as this is open, runs are counted.
    let _counting = enable_stats(Stats::RunTime).context("the kernel does not count runs")?;
    let mut counts = Vec::new();
    for (program, instructions) in sizes()? {
        let runs = Vec::new();
        counts.push(Count {
            program,
            instructions,
            runs,
        });
    }
    for (kind, name) in kinds {
        let before = totals()?;
        work(*kind)?;
        let after = totals()?;
        for count in &mut counts {
            let of = |totals: &Totals| totals.get(count.program).copied().unwrap_or_default();
            let ((runs, nanos), (now, nanos_now)) = (of(&before), of(&after));
            let ran = now.saturating_sub(runs);
            if ran > 0 {
                let each = nanos_now.saturating_sub(nanos) as f64 / ran as f64;
                count.runs.push((name, ran, each));
            }
        }
    }
    Ok(counts)
}

fn sizes() -> Result<BTreeMap<&'static str, u32>> {
    let mut sizes = BTreeMap::new();
    for program in loaded_programs() {
        let program = program.context("cannot list the kernel's programs")?;
        if let Some(name) = known(program.name_as_str()) {
            let bytes = program.size_translated().unwrap_or_default();
            sizes.insert(name, bytes / INSTRUCTION_BYTES);
        }
    }
    Ok(sizes)
}

/// Totals of all programs of these names.
fn totals() -> Result<Totals> {
    let mut totals = Totals::new();
    for program in loaded_programs() {
        let program = program.context("cannot list the kernel's programs")?;
        let Some(name) = known(program.name_as_str()) else {
            continue;
        };
        let fd = program.fd().context("a program is gone")?;
        let path = format!(
            "/proc/self/fdinfo/{}",
            std::os::fd::AsFd::as_fd(&fd).as_raw_fd()
        );
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let figure = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|value| value.trim().parse().ok())
                .unwrap_or(0)
        };
        let total = totals.entry(name).or_default();
        total.0 += figure("run_cnt:");
        total.1 += figure("run_time_ns:");
    }
    Ok(totals)
}

fn known(name: Option<&str>) -> Option<&'static str> {
    NAMES.into_iter().find(|known| name == Some(*known))
}
