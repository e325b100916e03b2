//! Tests in the sandbox: real network namespaces, cgroups, kernel programs, and kiam's programs.
//!
//! Each test has a sandbox of its own. Where root, cgroup2 or BPF is missing, or nothing was built
//! or installed for them, they are skipped and say why; `cargo xtask test`, which builds and
//! installs, counts that.

mod attach;
mod attack;
mod bad_input;
mod bad_peer;
mod commands;
mod core_files;
mod credentials;
mod guards;
mod host_network;
mod iptables;
mod load;
mod play;
mod restarts;
mod rooms;
mod sdk;
mod self_check;
mod surface;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Where a test stands, and the test.
type Test = (&'static str, Needs, fn() -> anyhow::Result<()>);

/// What a test needs beside the sandbox.
#[derive(Clone, Copy)]
enum Needs {
    Sandbox,
    Programs,
    Sdk,
    Browser,
}

fn main() -> std::process::ExitCode {
    let args = Arguments::from_args();
    let tests = [
        rooms::TESTS,
        credentials::TESTS,
        guards::TESTS,
        iptables::TESTS,
        bad_input::TESTS,
        bad_peer::TESTS,
        sdk::TESTS,
        surface::TESTS,
        commands::TESTS,
        core_files::TESTS,
        load::TESTS,
        attach::TESTS,
        attack::TESTS,
        host_network::TESTS,
        restarts::TESTS,
        self_check::TESTS,
    ]
    .concat();
    libtest_mimic::run(&args, tests.into_iter().map(trial).collect()).exit_code()
}

fn trial((name, needs, test): Test) -> Trial {
    Trial::ignorable_test(name, move || match missing(needs) {
        Some(missing) => Ok(Completion::ignored_with(format!("needs {missing}"))),
        None => match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    })
}

fn missing(needs: Needs) -> Option<String> {
    let programs = || play::programs().err().map(|error| error.to_string());
    let sdk = || {
        let installed = testbed::sdk::are_installed();
        (!installed).then(|| "AWS's SDKs, which `cargo xtask test` installs".to_owned())
    };
    let browser = || {
        let missing = toolchain::find_program("chromium").is_none();
        missing.then(|| "chromium, which `cargo xtask test` installs".to_owned())
    };
    testbed::sandbox::missing().or_else(|| match needs {
        Needs::Sandbox => None,
        Needs::Programs => programs(),
        Needs::Sdk => programs().or_else(sdk),
        Needs::Browser => programs().or_else(browser),
    })
}
