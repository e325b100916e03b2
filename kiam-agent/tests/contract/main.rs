//! The expiry contract: for days, by clocks that are moved, AWS's own SDKs are given credentials
//! as this system renews them. They never sign with expired ones, and never ask in a loop.
//!
//! The SDKs are the real ones, with their own caches and windows, and so is the metadata service.
//! The server is simulated: sessions of an hour, renewed with half an hour left. `--show-output`
//! shows how often each SDK asked.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod day;
mod service;

/// The tests of one SDK.
macro_rules! contract {
    ($name:ident, $sdk:expr) => {
        mod $name {
            use testbed::sdk::Sdk;

            use crate::day::{Course, simulate};

            #[test]
            #[ignore = "needs AWS's SDKs: cargo xtask test"]
            fn a_day() {
                simulate($sdk, Course::Well);
            }

            #[test]
            #[ignore = "needs AWS's SDKs: cargo xtask test"]
            fn a_day_with_short_outages_of_sts() {
                simulate($sdk, Course::ShortOutages);
            }

            #[test]
            #[ignore = "needs AWS's SDKs: cargo xtask test"]
            fn two_hours_without_sts() {
                simulate($sdk, Course::LongOutage);
            }
        }
    };
}

contract!(python, Sdk::Python);
contract!(go, Sdk::Go);
contract!(js, Sdk::Js);

#[test]
fn every_sdk_whose_clock_can_be_moved_has_tests() {
    use testbed::sdk::Sdk;
    assert_eq!(Sdk::WITH_CLOCK, [Sdk::Python, Sdk::Go, Sdk::Js]);
}
