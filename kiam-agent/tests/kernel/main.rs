//! The kernel programs, loaded, attached and attacked: with real network namespaces and cgroups.
//!
//! Where root, cgroup2 or BPF is missing, all of it is reported as ignored.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod agent;
mod attest;
mod bypass_counter;
mod capabilities;
mod guard;
mod iptables;
mod pins;
mod redirect;
mod route_guard;
mod sandbox;

use libtest_mimic::{Arguments, Trial};

fn main() -> std::process::ExitCode {
    if capabilities::child() {
        return std::process::ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let missing = sandbox::missing();
    if let Some(missing) = &missing {
        #[expect(clippy::print_stderr, reason = "says why the tests are ignored")]
        {
            eprintln!("ignored: {missing}");
        }
    } else {
        sandbox::sweep();
    }
    let trials = [
        sandbox::TESTS,
        redirect::TESTS,
        guard::TESTS,
        attest::TESTS,
        pins::TESTS,
        iptables::TESTS,
        route_guard::TESTS,
        bypass_counter::TESTS,
        capabilities::TESTS,
    ]
    .concat()
    .into_iter()
    .map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_ignored_flag(missing.is_some())
    })
    .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test and its name.
type Test = (&'static str, fn());
