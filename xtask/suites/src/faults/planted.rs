//! Defects that are planted into kiam, to see that they are detected.

#![expect(clippy::print_stdout, reason = "the command's result")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::table;
use super::world::World;
use super::{LIFE, NEW_POD_LIMIT, broken, in_sandbox};
use testbed::kiam::Programs;

const HOLD: Duration = Duration::from_secs(8);

/// A defect: a feature of kiam-agent that is in no release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Planted {
    /// A pod keeps its credentials when its role changes
    RoleKept,
    /// Credentials are handed out that have ended
    ExpiredServed,
    /// A pod is taken for whoever had its address before
    AddressTrusted,
}

impl Planted {
    /// The feature, and the fault that shows it.
    const fn of(self) -> (&'static str, &'static str) {
        match self {
            Self::RoleKept => ("planted-role-kept", "a pod's role is changed"),
            Self::ExpiredServed => ("planted-expired-served", "credentials end while STS fails"),
            Self::AddressTrusted => (
                "planted-address-trusted",
                "a pod's address is another's while its object is still there",
            ),
        }
    }
}

/// Plays the fault that shows a defect.
///
/// # Errors
/// When it is not detected: no answer was wrong.
pub(super) fn detect(planted: Planted) -> Result<()> {
    let (feature, name) = planted.of();
    let faults = table::all();
    let fault = faults.iter().find(|fault| fault.name == name);
    let fault = fault.context("the defect's fault is not in the table")?;
    let programs = Programs::build_planted(feature)?;
    in_sandbox(async |sandbox| {
        let mut world = World::begin(sandbox, &programs, LIFE).await?;
        world.canaries(NEW_POD_LIMIT).await?;
        let row = broken(&mut world, &[fault], HOLD).await?;
        world.end()?;
        println!("{feature}:\n{}", row.line());
        ensure!(row.wrong > 0, "{feature} was not detected");
        println!("{feature} was detected: {} wrong answers", row.wrong);
        Ok(())
    })
}
