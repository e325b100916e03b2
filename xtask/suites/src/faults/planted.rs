//! Defects planted into kiam, each of which must be detected.

#![expect(clippy::print_stdout, reason = "the command's result")]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::fixture::Fixture;
use super::table;
use super::{LIFE, NEW_POD_LIMIT, broken, in_sandbox};
use crate::patched::Patch;

const HOLD: Duration = Duration::from_secs(8);

/// A defect of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Planted {
    /// A pod keeps its credentials when its role changes
    RoleKept,
    /// Expired credentials are served
    ExpiredServed,
    /// A pod is identified by an address that another pod had before
    AddressTrusted,
}

impl Planted {
    /// The patch, and the fault that shows the defect.
    const fn of(self) -> (Patch, &'static str) {
        match self {
            Self::RoleKept => (Patch::RoleKept, "a pod's role is changed"),
            Self::ExpiredServed => (Patch::ExpiredServed, "credentials end while STS fails"),
            Self::AddressTrusted => (
                Patch::AddressTrusted,
                "a pod's address is another's while its object is still there",
            ),
        }
    }
}

/// Plays the fault that shows a defect.
///
/// # Errors
/// Fails when it is not detected: no answer was wrong.
pub(super) fn detect(planted: Planted) -> Result<()> {
    let (patch, name) = planted.of();
    let defect = patch.name();
    let faults = table::all();
    let fault = faults.iter().find(|fault| fault.name == name);
    let fault = fault.context("the defect's fault is not in the table")?;
    let programs = patch.build_beside()?.patched(defect)?;
    in_sandbox(async |sandbox| {
        let mut fixture = Fixture::begin(sandbox, &programs, LIFE).await?;
        fixture.canaries(NEW_POD_LIMIT).await?;
        let row = broken(&mut fixture, &[fault], HOLD).await?;
        fixture.end()?;
        println!("{defect}:\n{}", row.line());
        ensure!(row.wrong > 0, "{defect} was not detected");
        println!("{defect} was detected: {} wrong answers", row.wrong);
        Ok(())
    })
}
