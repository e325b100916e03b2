//! The expiry contract: for days, by clocks that are moved, AWS's own SDKs are given credentials
//! as this system renews them. They never sign with dead ones, and never ask in a loop.
//!
//! The SDKs are the real ones, with their own caches and windows, and so is the metadata service.
//! The server is played: sessions of an hour, renewed with half an hour left.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(
    clippy::print_stdout,
    reason = "how often each SDK asked is worth knowing"
)]

mod day;
mod service;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use testbed::sdk::{self, Sdk};

use day::{Course, play};

fn main() -> std::process::ExitCode {
    let args = Arguments::from_args();
    let courses = [
        ("a_day", Course::Well),
        ("a_day_with_short_outages_of_sts", Course::ShortOutages),
        ("two_hours_without_sts", Course::LongOutage),
    ];
    let trials = Sdk::WITH_CLOCK.into_iter().flat_map(|sdk| {
        courses.map(|(name, course)| {
            Trial::ignorable_test(format!("{sdk:?}::{name}").to_lowercase(), move || {
                if !sdk::are_installed() {
                    let needs = "needs the SDKs, which `cargo xtask test` installs";
                    return Ok(Completion::ignored_with(needs));
                }
                play(sdk, course).map_err(|why| Failed::from(format!("{}: {why}", sdk.name())))?;
                Ok(Completion::Completed)
            })
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}
