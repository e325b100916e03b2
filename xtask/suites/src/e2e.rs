//! `cargo xtask e2e`: the whole path on real parts.
//!
//! etcd, kube-apiserver with RBAC, moto as STS, kiam's two programs, real kernel programs, and the
//! AWS CLI in pods. Namespaces, accounts, nodes and pods are created through the API; the sandbox
//! stands in for controllers, scheduler and kubelets.

mod checks;
mod dashboard;
mod docs;
mod fixture;
mod picture;
mod prometheus;
mod report;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;
use toolchain::{Consent, MOTO, kernel, kubectl, prepare};

use checks::{CHECKS, NamedCheck};
pub use fixture::Fixture;
use report::{Facts, Report};
use testbed::cluster;
use testbed::container;
use testbed::container::Containers;
use testbed::image;
use testbed::kiam::Programs;
use testbed::sandbox::{self, Sandbox};
use testbed::sdk;
use toolchain::helm;

const UP: &str = "etcd, kube-apiserver, moto, kiam-server and an agent come up";
const DOWN: &str = "everything ends in order, and nothing of it is left";

/// Flags of `cargo xtask e2e`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Run kiam's programs in containers of the image that `cargo xtask image` has made
    #[arg(long)]
    image: bool,

    /// Run the commands of docs/getting-started.md instead, with the image that `cargo xtask image`
    /// has made
    #[arg(long, conflicts_with_all = ["image", "name"])]
    docs: bool,

    /// Run only the checks whose names contain this
    name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// Fails when a check fails, or none could run; with `CI=true` also when one was skipped.
#[expect(clippy::print_stderr, reason = "reports why no check runs")]
pub fn run(args: &Args) -> Result<()> {
    if args.docs {
        set_up(args)?;
        return docs::run_page();
    }
    let wanted = |name: &str| args.name.as_ref().is_none_or(|part| name.contains(part));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    let names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    ensure!(
        !checks.is_empty(),
        "no check has this in its name; the checks are\n  {}",
        names.join("\n  ")
    );
    let mut report = Report::default();
    match set_up(args) {
        Ok(()) => run_suite(&checks, args.image, &mut report),
        Err(missing) => {
            eprintln!("the checks cannot run: {missing:#}\n");
            report.skip(UP);
            skip(&checks, &mut report);
        }
    }
    report.conclude()
}

/// Installs missing parts. Fails if this machine cannot run the checks.
fn set_up(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        sdk::plan(plan)?;
        MOTO.plan(plan)?;
        cluster::plan(plan)?;
        plan.program("promtool", "prometheus", "reads the programs' metrics");
        if args.image || args.docs {
            container::plan(plan);
        }
        if args.docs {
            helm::plan(plan);
            kubectl::plan(plan);
        }
        Ok(())
    })?;
    match sandbox::missing() {
        Some(missing) => bail!("the checks need {missing}"),
        None => Ok(()),
    }
}

fn run_suite(checks: &[&NamedCheck], image: bool, report: &mut Report) {
    let begin = Instant::now();
    let (programs, sandbox) = match begin_with(image) {
        Ok(begun) => begun,
        Err(error) => {
            report.add(UP, begin.elapsed(), &Err(error));
            skip(checks, report);
            return;
        }
    };
    let control = sandbox.control().netns().clone();
    let traces = [sandbox.cgroup().path(), sandbox.scratch(), control.path()].map(Path::to_owned);
    let outcome = control.block_on(async || {
        let fixture = run_checks(&sandbox, &programs, checks, report).await;
        let begin = Instant::now();
        (begin, fixture.map_or(Ok(()), Fixture::end))
    });
    let (begin, ended) = outcome.unwrap_or_else(|error| (Instant::now(), Err(error)));
    // The last clones of it: now it is removed.
    drop((control, programs, sandbox));
    let gone = ended.and_then(|()| {
        let left = traces.iter().find(|trace| trace.exists());
        left.map_or(Ok(Facts::new()), |left| bail!("{} is left", left.display()))
    });
    report.add(DOWN, begin.elapsed(), &gone);
}

fn begin_with(image: bool) -> Result<(Programs, Sandbox)> {
    if image {
        let image = image::made()?;
        let sandbox = Sandbox::new()?;
        let containers = Containers::start(&sandbox, &image)?;
        return Ok((Programs::in_image(containers), sandbox));
    }
    Ok((Programs::build()?, Sandbox::new()?))
}

/// Returns the fixture as the checks left it, if it came up.
#[expect(clippy::print_stderr, reason = "for the terminal")]
async fn run_checks(
    sandbox: &Sandbox,
    programs: &Programs,
    checks: &[&NamedCheck],
    report: &mut Report,
) -> Option<Fixture> {
    let begin = Instant::now();
    let mut fixture = match Fixture::begin(sandbox, programs).await {
        Ok(fixture) => fixture,
        Err(error) => {
            report.add(UP, begin.elapsed(), &Err(error));
            checks.iter().for_each(|(name, _)| report.skip(name));
            return None;
        }
    };
    let facts = fixture.facts().await;
    report.add(UP, begin.elapsed(), &facts);
    for (name, check) in checks {
        let begin = Instant::now();
        let outcome = tokio::time::timeout(checks::LIMIT, check(&mut fixture)).await;
        let outcome = outcome
            .unwrap_or_else(|_elapsed| bail!("the check did not end within {:?}", checks::LIMIT));
        report.add(name, begin.elapsed(), &outcome);
    }
    if report.has_failed() {
        eprintln!("\n{}", fixture.logs());
    }
    Some(fixture)
}

fn skip(checks: &[&NamedCheck], report: &mut Report) {
    checks.iter().for_each(|(name, _)| report.skip(name));
    report.skip(DOWN);
}
