//! Commands for everything that is deployed: the chart and the files made from it, checked with the
//! real tools.

mod admission;
pub(crate) mod alerts;
pub(crate) mod book;
mod chart;
pub(crate) mod helm;
mod manifests;
pub(crate) mod reference;
pub(crate) mod workflows;

use anyhow::{Result, bail, ensure};
use testbed::cluster;
use testbed::sandbox;
use toolchain::{Consent, prepare};

/// Flags of `cargo xtask chart`.
#[derive(Debug, Clone, clap::Args)]
pub struct ChartArgs {
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `cargo xtask manifests`.
#[derive(Debug, Clone, clap::Args)]
pub struct ManifestsArgs {
    #[command(flatten)]
    consent: Consent,

    /// Only check that the manifests match the chart
    #[arg(long)]
    check: bool,
}

/// Flags of `cargo xtask docs`.
#[derive(Debug, Clone, clap::Args)]
pub struct DocsArgs {
    /// Only check that the pages match the programs
    #[arg(long)]
    check: bool,
}

/// Makes the reference pages from the programs, or checks them.
///
/// # Errors
/// Fails when they differ, or cannot be made.
pub fn docs(args: &DocsArgs) -> Result<()> {
    if args.check {
        reference::check()
    } else {
        reference::write()
    }
}

/// Flags of `cargo xtask alerts`.
#[derive(Debug, Clone, clap::Args)]
pub struct AlertsArgs {
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `cargo xtask book`.
#[derive(Debug, Clone, clap::Args)]
pub struct BookArgs {
    #[command(flatten)]
    consent: Consent,
}

/// Makes a book of the pages in `docs`.
///
/// # Errors
/// Fails when it cannot be made.
pub fn book(args: &BookArgs) -> Result<()> {
    prepare(args.consent, |plan| {
        book::plan(plan);
        Ok(())
    })?;
    book::terraform()?;
    book::make()
}

/// Flags of `cargo xtask workflows`.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkflowsArgs {
    #[command(flatten)]
    consent: Consent,
}

/// Checks the workflows of `.github` by actionlint and zizmor.
///
/// # Errors
/// Fails when something is wrong with them, or they cannot be checked.
pub fn workflows(args: &WorkflowsArgs) -> Result<()> {
    prepare(args.consent, workflows::plan)?;
    workflows::check()
}

/// Checks alerts and dashboards by promtool, and that every metric they name exists.
///
/// # Errors
/// Fails when something is wrong with them, or they cannot be checked.
pub fn alerts(args: &AlertsArgs) -> Result<()> {
    prepare(args.consent, |plan| {
        alerts::plan(plan);
        Ok(())
    })?;
    alerts::check()
}

/// Checks the chart: `helm lint`, all value sets rendered and taken by a real kube-apiserver, bad
/// values refused with the fix, values in the fields that they are for, the plain manifests equal
/// to it, and its admission policy asked about pods.
///
/// # Errors
/// Fails when something is wrong with it, or it cannot be checked.
pub fn chart(args: &ChartArgs) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        cluster::plan(plan)?;
        toolchain::helm::plan(plan);
        Ok(())
    })?;
    if let Some(missing) = testbed::sandbox::missing() {
        bail!("the chart is checked by a real kube-apiserver, which needs {missing}");
    }
    let rendered = chart::render_all()?;
    chart::refusals()?;
    chart::values_reach_fields()?;
    manifests::check()?;
    chart::dry_run(&rendered)
}

/// Makes the plain manifests from the chart, or checks them.
///
/// # Errors
/// Fails when they differ, or cannot be made.
pub fn manifests(args: &ManifestsArgs) -> Result<()> {
    prepare(args.consent, |plan| {
        toolchain::helm::plan(plan);
        Ok(())
    })?;
    if args.check {
        manifests::check()
    } else {
        manifests::write()
    }
}

/// Compares a generated file with its current content.
fn is_current(path: &std::path::Path, made: &str, command: &str) -> Result<()> {
    let there = std::fs::read_to_string(path).unwrap_or_default();
    let differs = there.lines().zip(made.lines()).position(|(a, b)| a != b);
    ensure!(
        there == made,
        "{} is not as it would be made now (line {}); run {command}",
        path.display(),
        differs.unwrap_or_else(|| there.lines().count().min(made.lines().count())) + 1
    );
    Ok(())
}
