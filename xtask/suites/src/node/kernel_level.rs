//! Kernels tried one by one, or side by side: each in a machine of its own, with the checks that
//! were asked for.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use tokio::time::Instant;

use super::accelerator::Accelerator;
use super::checks::{Check, Found};
use super::conditions::{CONDITIONS, Condition};
use super::kernels::Kernel;
use super::machine::{Machine, Options};
use super::root::Root;
use super::table::Row;
use testbed::sandbox::Sandbox;

/// Machine and tools with which kernels are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) root: &'a Root,
    pub(super) accelerator: Accelerator,
    pub(super) disk: &'a Path,
    pub(super) checks: &'a [Check],
    pub(super) short: bool,
}

/// Kernels that are too old to be anything but refused.
const REFUSED: &str = "5.10";

impl Trial<'_> {
    /// Tries all of these, a number of them at once.
    pub(super) fn kernels(self, kernels: &[Kernel], at_once: usize) -> Result<Vec<Row>> {
        side_by_side(kernels, at_once, |number, kernel| {
            self.kernel(number, kernel)
        })
    }

    /// Asks `doctor` on nodes that lack something, with this kernel.
    pub(super) fn conditions(
        self,
        kernel: &Kernel,
        at_once: usize,
    ) -> Result<Vec<(Condition, Found)>> {
        let groups = CONDITIONS.chunk_by(|one, next| one.kernel_argument == next.kernel_argument);
        let groups: Vec<_> = groups.collect();
        let found = side_by_side(&groups, at_once, |number, group| {
            self.group(number, kernel, group)
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Conditions of one machine.
    fn group(
        self,
        number: usize,
        kernel: &Kernel,
        conditions: &[Condition],
    ) -> Result<Vec<(Condition, Found)>> {
        let mut options = self.options(number, &format!("condition-{number}"))?;
        let arguments = conditions.iter().take(1);
        options
            .kernel_arguments
            .extend(arguments.map(|condition| condition.kernel_argument.to_owned()));
        let mut machine = self.machine(kernel, options)?;
        machine.power_on()?;
        let mut all = Vec::new();
        for condition in conditions {
            let begin = Instant::now();
            let found = condition.make(&machine)?;
            found.print(kernel, condition.name, begin);
            all.push((*condition, found));
        }
        machine.power_off()?;
        Ok(all)
    }

    fn options(self, number: usize, name: &str) -> Result<Options> {
        let mut options = Options::bare(name, u8::try_from(number + 1)?);
        options.disk = Some(self.disk.to_owned());
        Ok(options)
    }

    fn machine(self, kernel: &Kernel, options: Options) -> Result<Machine> {
        Machine::new(self.sandbox, kernel, self.root, self.accelerator, options)
    }

    fn kernel(self, number: usize, kernel: &Kernel) -> Result<Row> {
        let begin = Instant::now();
        let mut machine = self.machine(kernel, self.options(number, kernel.name)?)?;
        machine.power_on()?;
        Found::good(&kernel.release).print(kernel, "boots", begin);
        let mut row = Row {
            kernel: kernel.release.clone(),
            cells: Vec::new(),
        };
        for check in self.checks {
            let begin = Instant::now();
            let mut found = check.make(&machine, self.short);
            if kernel.name == REFUSED {
                found = found.refusal();
            }
            found.print(kernel, check.name(), begin);
            row.cells.push((*check, found));
            if kernel.name == REFUSED {
                break;
            }
        }
        machine.power_off()?;
        Ok(row)
    }
}

impl Found {
    fn good(summary: &str) -> Self {
        Self {
            good: true,
            summary: summary.to_owned(),
            details: String::new(),
        }
    }

    #[expect(clippy::print_stdout, reason = "the command's result")]
    fn print(&self, kernel: &Kernel, what: &str, begin: Instant) {
        let mark = if self.good { "ok  " } else { "FAIL" };
        let (name, took, summary) = (kernel.name, begin.elapsed(), &self.summary);
        let mut text = format!("{mark} {name:<7} {what:<13} {took:>6.0?}  {summary}");
        if !self.good {
            text += &format!("\n{}", self.details.trim_end()).replace('\n', "\n    ");
        }
        println!("{text}");
    }
}

/// Applies a function to each item, a number of them at once, and returns the results in order.
fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    each: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let waiting = Mutex::new(items.iter().enumerate().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                loop {
                    let next = lock(&waiting).pop_front();
                    let Some((number, item)) = next else {
                        return;
                    };
                    let result = each(number, item);
                    lock(&done).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_have_the_order_of_the_items() {
        let doubled = side_by_side(&[3, 1, 2], 2, |number, item| Ok((number, item * 2)));
        assert_eq!(doubled.unwrap(), [(0, 6), (1, 2), (2, 4)]);
        let failed = side_by_side(&[1, 2], 1, |_, item| {
            anyhow::ensure!(*item != 2, "two");
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "two");
    }
}
