//! The stream protocol and the credential store, simulated: real servers' sessions and stores, real
//! agents' streams and views, and between them a network, an API and an STS that a seed plays.
//!
//! Time is tokio's paused clock, so that hours pass in milliseconds. After each step the invariants
//! are checked, and now and then, when all is well again, that all is as it should be.
//!
//! ```text
//! world    what is true, the replicas that learn of it, the agent, and the invariants
//! network  what the agent's calls go through
//! sts      who issues credentials, or does not
//! ```
//!
//! `KIAM_SIMULATION_RUNS` says how many runs, `KIAM_SIMULATION_SEED` repeats one.
#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

mod network;
mod sts;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use world::{Tally, World};

/// Runs, unless told otherwise.
const RUNS: u64 = 500;
const STEPS: u32 = 40;

/// A defect that is planted, to see that the invariants find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A message that takes something away is lost on its way.
    LosesRevocations,
    /// A message arrives for another node.
    Misdelivers,
    /// Credentials are of a role that sounds alike.
    WrongRole,
}

thread_local! {
    /// All that is left to chance comes from here.
    static CHANCE: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// A number in 0..1, of the seed's.
fn chance() -> f64 {
    CHANCE.with_borrow_mut(rand::RngExt::random::<f64>)
}

/// A number below `end`, of the seed's.
fn below(end: u64) -> u64 {
    CHANCE.with_borrow_mut(|rng| rng.random_range(0..end))
}

/// Plays one run.
fn play(seed: u64, planted: Planted) -> Tally {
    CHANCE.with_borrow_mut(|rng| *rng = StdRng::seed_from_u64(seed));
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async {
            let mut world = World::begin(planted).await;
            for step in 0..STEPS {
                world.step().await;
                world.check();
                if step % 20 == 19 {
                    world.heal().await;
                    world.check();
                    world.settled();
                }
            }
            world.end().await
        })
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_breaks_pods_have_their_own_and_no_other_and_keep_it() {
    let seeds = match from_environment("KIAM_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("KIAM_SIMULATION_RUNS").unwrap_or(RUNS),
    };
    let (began, mut all) = (tokio::time::Instant::now(), Tally::default());
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| play(seed, Planted::Nothing))) {
            Ok(tally) => all.add(&tally),
            Err(panic) => {
                println!("repeat it with KIAM_SIMULATION_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!(
        "{} runs in {:.1} s: {all:?}",
        seeds.end - seeds.start,
        began.elapsed().as_secs_f64()
    );
    // It has met what it is about.
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
fn planted_defects_are_found_and_found_again() {
    for planted in [
        Planted::LosesRevocations,
        Planted::Misdelivers,
        Planted::WrongRole,
    ] {
        let fails = |seed| catch_unwind(AssertUnwindSafe(|| play(seed, planted))).is_err();
        let found = (0..200).find(|seed| fails(*seed));
        let seed = found.unwrap_or_else(|| panic!("{planted:?} is not found"));
        assert!(
            (0..5).all(|_| fails(seed)),
            "{planted:?}: not each time, with seed {seed}"
        );
    }
}
