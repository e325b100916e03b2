//! Simulation of the stream protocol and the credential store: the sessions and stores of real
//! servers, the stream and view of a real agent, and between them a network, an API and an STS
//! whose faults are drawn from a seed.
//!
//! Time is tokio's paused clock, so that hours pass in milliseconds. The invariants are checked
//! after each step, and the complete state at times when all faults are over.
//!
//! ```text
//! fixture  the true state, the replicas that watch it, the agent, and the invariants
//! network  the network between the agent and the replicas
//! sts      the issuer of credentials
//! ```
//!
//! `KIAM_SIMULATION_RUNS` sets the number of runs, `KIAM_SIMULATION_SEED` repeats one run.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
mod network;
mod sts;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fixture::{Fixture, Tally};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The default number of runs.
const RUNS: u64 = 500;
const STEPS: u32 = 40;

/// A defect that the invariants must detect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// Messages that revoke something are lost.
    LosesRevocations,
    /// Streams are delivered to another node.
    Misdelivers,
    /// Credentials belong to a role with a similar name.
    WrongRole,
}

thread_local! {
    /// The source of all random numbers.
    static CHANCE: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// Returns a random number in 0..1.
fn chance() -> f64 {
    CHANCE.with_borrow_mut(rand::RngExt::random::<f64>)
}

/// Returns a random number below `end`.
fn below(end: u64) -> u64 {
    CHANCE.with_borrow_mut(|rng| rng.random_range(0..end))
}

/// Simulates one run.
fn simulate(seed: u64, planted: Planted) -> Tally {
    CHANCE.with_borrow_mut(|rng| *rng = StdRng::seed_from_u64(seed));
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async {
            let mut fixture = Fixture::new(planted).await;
            for step in 0..STEPS {
                fixture.step().await;
                fixture.check();
                if step % 20 == 19 {
                    fixture.heal().await;
                    fixture.check();
                    fixture.check_complete();
                }
            }
            fixture.end().await
        })
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn pods_get_and_keep_only_their_own_credentials_under_any_fault() {
    let seeds = match from_environment("KIAM_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("KIAM_SIMULATION_RUNS").unwrap_or(RUNS),
    };
    let (began, mut all) = (tokio::time::Instant::now(), Tally::default());
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| simulate(seed, Planted::Nothing))) {
            Ok(tally) => all.add(&tally),
            Err(panic) => {
                println!("repeat this run with KIAM_SIMULATION_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!(
        "{} runs in {:.1} s: {all:?}",
        seeds.end - seeds.start,
        began.elapsed().as_secs_f64()
    );
    // The runs have covered the relevant events.
    if seeds.end - seeds.start > 100 {
        assert!(
            all.streams > 1000 && all.cut > 100 && all.restarts > 100,
            "{all:?}"
        );
        assert!(
            all.served > 1000 && all.kept > 500 && all.failed_calls > 100,
            "{all:?}"
        );
    }
}

#[test]
fn planted_defects_are_found_reproducibly() {
    for planted in [
        Planted::LosesRevocations,
        Planted::Misdelivers,
        Planted::WrongRole,
    ] {
        let fails = |seed| catch_unwind(AssertUnwindSafe(|| simulate(seed, planted))).is_err();
        let found = (0..200).find(|seed| fails(*seed));
        let seed = found.unwrap_or_else(|| panic!("{planted:?} was not found"));
        assert!(
            (0..5).all(|_| fails(seed)),
            "{planted:?} is not reproducible with seed {seed}"
        );
    }
}
