//! Tests in the sandbox: real network namespaces, cgroups and kernel programs.
//!
//! Each test has a sandbox of its own. Where root, cgroup2 or BPF is missing they are skipped and
//! say so; `cargo xtask test` and `.ci/run` count that.

mod rooms;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

type Test = fn() -> anyhow::Result<()>;

fn main() -> std::process::ExitCode {
    let args = Arguments::from_args();
    let tests = rooms::TESTS.iter();
    let trials = tests.map(|(name, test)| trial(name, *test)).collect();
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial(name: &str, test: Test) -> Trial {
    Trial::ignorable_test(name, move || match xtask::sandbox::missing() {
        Some(missing) => Ok(Completion::ignored_with(format!("needs {missing}"))),
        None => match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:?}"))),
        },
    })
}
