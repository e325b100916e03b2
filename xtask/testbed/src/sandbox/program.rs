//! Programs in the sandbox: started, read, awaited, and killed when dropped.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::patient;

/// Older lines of a program's output are forgotten beyond this many.
const MAX_LINES: usize = 50_000;
/// Lines of a program's output that an error repeats.
const TAIL_LINES: usize = 30;

/// A program that runs. It is killed when this is dropped.
pub struct Program {
    name: String,
    child: Child,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<(From, String)>,
    forgotten: usize,
    open: usize,
    copy: Option<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Stdout,
    Stderr,
}

/// Status and output of a program that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or has not ended in time: then it is killed.
pub fn run(name: &str, command: Command, limit: Duration) -> Result<Finished> {
    Program::start(name, command)?.finish(limit)
}

impl Program {
    /// Starts a program, without input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: Command) -> Result<Self> {
        Self::spawn(name, command, Stdio::null())
    }

    /// Starts a program with a standard input, and returns the other end of that.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with_input(name: &str, command: Command) -> Result<(Self, ChildStdin)> {
        let mut program = Self::spawn(name, command, Stdio::piped())?;
        let input = program.child.stdin.take();
        Ok((program, input.context("it has an input")?))
    }

    fn spawn(name: &str, mut command: Command, input: Stdio) -> Result<Self> {
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let output = Arc::new(Output::default());
        output.lock().open = 2;
        if let Some(stdout) = child.stdout.take() {
            output.follow(From::Stdout, stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            output.follow(From::Stderr, stderr);
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            output,
        })
    }

    /// The name that the caller gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of its output, from its start, for which `find` returns a value.
    ///
    /// # Errors
    /// When the time is up or the program has ended; with the end of its output.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.wait_for_after(0, what, limit, find)
    }

    /// Waits like [`Self::wait_for`], but only for lines after an earlier [`Self::mark`].
    ///
    /// # Errors
    /// When the time is up or the program has ended; with the end of its output.
    pub fn wait_for_after<T>(
        &self,
        mark: usize,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let limit = patient(limit);
        let mut next = mark;
        let mut found = None;
        let lines = self.output.lock();
        let (lines, timeout) = self
            .output
            .news
            .wait_timeout_while(lines, limit, |lines| {
                while found.is_none() && next < lines.end() {
                    found = lines.get(next).and_then(&mut find);
                    next += 1;
                }
                found.is_none() && lines.open > 0
            })
            .unwrap_or_else(PoisonError::into_inner);
        let ended = lines.open == 0;
        drop(lines);
        match found {
            Some(found) => Ok(found),
            None if ended => bail!("{} ended before {what}:\n{}", self.name, self.tail()),
            None => {
                debug_assert!(timeout.timed_out(), "nothing else wakes it");
                bail!(
                    "{}: no {what} within {limit:?}:\n{}",
                    self.name,
                    self.tail()
                )
            }
        }
    }

    /// The place in its output where the next line will be.
    pub fn mark(&self) -> usize {
        self.output.lock().end()
    }

    /// The lines of its output from the place of an earlier [`Self::mark`] on, both streams.
    pub fn lines_after(&self, mark: usize) -> Vec<String> {
        let lines = self.output.lock();
        let skip = mark.saturating_sub(lines.forgotten);
        let kept = lines.kept.iter().skip(skip);
        kept.map(|(_, line)| line.clone()).collect()
    }

    /// All of its output so far, both streams, as it came.
    pub fn output(&self) -> String {
        self.output.lock().text(|_| true)
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        let lines = self.output.lock();
        let skip = lines.kept.len().saturating_sub(TAIL_LINES);
        let tail = lines.kept.iter().skip(skip);
        tail.fold(String::new(), |text, (_, line)| text + "    " + line + "\n")
    }

    /// Writes its output to a file from now on too, after what there is of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn tee(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut lines = self.output.lock();
        let so_far = lines.text(|_| true);
        lines.copy = Some(file);
        lines.copy(&so_far);
        Ok(())
    }

    /// Returns whether the program has ended, or has at least closed its output.
    pub fn has_ended(&self) -> bool {
        self.output.lock().open == 0
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel does not return it.
    pub fn try_status(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait();
        status.with_context(|| format!("cannot ask for the state of {}", self.name))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("no such process id")?;
        kill(Pid::from_raw(pid), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it has not ended in time: then it is killed.
    pub fn terminate(self, limit: Duration) -> Result<Finished> {
        self.signal(Signal::SIGTERM)?;
        self.finish(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended in time: then it is killed.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let limit = patient(limit);
        // Its end closes its output, which wakes this; its status is there at once then.
        let lines = self.output.lock();
        let (lines, timeout) = self
            .output
            .news
            .wait_timeout_while(lines, limit, |lines| lines.open > 0)
            .unwrap_or_else(PoisonError::into_inner);
        drop(lines);
        if timeout.timed_out() {
            bail!(
                "{} has not ended within {limit:?}:\n{}",
                self.name,
                self.tail()
            );
        }
        let status = self.child.wait();
        let status = status.with_context(|| format!("cannot wait for {}", self.name))?;
        let lines = self.output.lock();
        Ok(Finished {
            status,
            stdout: lines.text(|from| from == From::Stdout),
            stderr: lines.text(|from| from == From::Stderr),
        })
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, child, .. } = self;
        f.debug_struct("Program")
            .field("name", name)
            .field("pid", &child.id())
            .finish_non_exhaustive()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if it has ended, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, from: From, stream: impl Read + Send + 'static) {
        let output = Arc::clone(self);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(read) if read > 0) {
                let text = String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned();
                output.lock().push(from, text);
                output.news.notify_all();
                line.clear();
            }
            output.lock().open -= 1;
            output.news.notify_all();
        });
    }
}

impl Lines {
    fn push(&mut self, from: From, line: String) {
        self.copy(&(line.clone() + "\n"));
        if self.kept.len() == MAX_LINES {
            self.kept.pop_front();
            self.forgotten += 1;
        }
        self.kept.push_back((from, line));
    }

    fn copy(&mut self, text: &str) {
        if let Some(file) = &mut self.copy {
            // A full disk loses the copy, not the program.
            let _ = file.write_all(text.as_bytes());
        }
    }

    fn end(&self) -> usize {
        self.forgotten + self.kept.len()
    }

    fn get(&self, at: usize) -> Option<&str> {
        let (_, line) = self.kept.get(at.checked_sub(self.forgotten)?)?;
        Some(line)
    }

    fn text(&self, of: impl Fn(From) -> bool) -> String {
        let lines = self.kept.iter().filter(|(from, _)| of(*from));
        lines.fold(String::new(), |text, (_, line)| text + line + "\n")
    }
}
