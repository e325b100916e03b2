//! Counts of passed, failed and skipped tests, read from the output of `cargo test`.

use std::fmt;

/// Counts of tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed. A test program that ended without a result counts as one.
    pub failed: u32,
    /// Tests that were ignored.
    pub skipped: u32,
    begun: u32,
    ended: u32,
}

impl Outcome {
    /// Reads a line that cargo or a test program printed.
    pub fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let mut counts = counts.split([';', '.']).map(str::trim);
                let found = counts.find_map(|count| count.strip_suffix(what));
                found.and_then(|count| count.trim().parse::<u32>().ok())
            };
            self.ended += 1;
            self.passed += count("passed").unwrap_or_default();
            self.failed += count("failed").unwrap_or_default();
            self.skipped += count("ignored").unwrap_or_default();
        } else if line.starts_with("Running ") || line.starts_with("Doc-tests ") {
            self.begun += 1;
        }
    }

    /// Ends the count; `success` is that of cargo.
    pub fn end(&mut self, success: bool) {
        // A test program that crashed prints no result; neither does one that did not compile.
        self.failed += self.begun.saturating_sub(self.ended);
        if !success && self.failed == 0 {
            self.failed = 1;
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> String {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.read(line));
        outcome.end(success);
        outcome.to_string()
    }

    const RESULT: &str = "   Running unittests src/lib.rs (target/debug/deps/a-1)\n\
        running 4 tests\n\
        test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";

    #[test]
    fn results_are_added_up() {
        assert_eq!(read(RESULT, true), "2 passed, 0 failed, 1 skipped");
        let more = "   Doc-tests a\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out; finished in 1s\n";
        assert_eq!(
            read(&format!("{RESULT}{more}"), false),
            "5 passed, 2 failed, 1 skipped"
        );
    }

    #[test]
    fn what_ended_without_a_result_has_failed() {
        let crashed =
            format!("{RESULT}   Running tests/b.rs (target/debug/deps/b-1)\nrunning 2 tests\n");
        assert_eq!(read(&crashed, false), "2 passed, 1 failed, 1 skipped");
        assert_eq!(
            read("error: could not compile `a`\n", false),
            "0 passed, 1 failed, 0 skipped"
        );
    }
}
