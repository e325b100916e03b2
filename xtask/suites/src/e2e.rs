//! `cargo xtask e2e`: the whole path on real parts.
//!
//! etcd, kube-apiserver with RBAC, moto as STS, kiam's two programs, real kernel programs, and the
//! AWS CLI in pods. Namespaces, accounts, nodes and pods are made through the API; the sandbox
//! plays controllers, scheduler and kubelets.

mod checks;
mod dashboard;
mod docs;
mod picture;
mod prometheus;
mod report;
mod world;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use tokio::time::Instant;
use toolchain::{Consent, MOTO, kernel, kubectl, prepare};

use checks::{CHECKS, NamedCheck};
use report::{Facts, Report};
use testbed::cluster;
use testbed::container;
use testbed::container::Containers;
use testbed::image;
use testbed::kiam::Programs;
use testbed::sandbox::{self, Sandbox};
use testbed::sdk;
use toolchain::helm;
pub use world::World;

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

    /// Run the commands of docs/getting-started.md instead, with the image that `cargo xtask image` has made
    #[arg(long, conflicts_with_all = ["image", "name"])]
    docs: bool,

    /// Run only the checks whose names contain this
    name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When a check fails, or none could run; with `CI=true` also when one was skipped.
#[expect(clippy::print_stderr, reason = "says why nothing runs")]
pub fn run(args: &Args) -> Result<()> {
    if args.docs {
        set_up(args)?;
        return docs::play();
    }
    let wanted = |name: &str| args.name.as_ref().is_none_or(|part| name.contains(part));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    let names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    ensure!(
        !checks.is_empty(),
        "no check has that in its name; they are\n  {}",
        names.join("\n  ")
    );
    let mut report = Report::default();
    match set_up(args) {
        Ok(()) => play(&checks, args.image, &mut report),
        Err(missing) => {
            eprintln!("the checks cannot run: {missing:#}\n");
            report.skip(UP);
            skip(&checks, &mut report);
        }
    }
    report.conclude()
}

/// Installs what is needed. What this machine cannot have is an error.
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
        Some(missing) => bail!("they need {missing}"),
        None => Ok(()),
    }
}

fn play(checks: &[&NamedCheck], image: bool, report: &mut Report) {
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
    let played = control.block_on(async || {
        let world = in_world(&sandbox, &programs, checks, report).await;
        let begin = Instant::now();
        (begin, world.map_or(Ok(()), World::end))
    });
    let (begin, ended) = played.unwrap_or_else(|error| (Instant::now(), Err(error)));
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

/// Returns the world as the checks left it, if it came up.
#[expect(clippy::print_stderr, reason = "for whoever looks for the cause")]
async fn in_world(
    sandbox: &Sandbox,
    programs: &Programs,
    checks: &[&NamedCheck],
    report: &mut Report,
) -> Option<World> {
    let begin = Instant::now();
    let mut world = match World::begin(sandbox, programs).await {
        Ok(world) => world,
        Err(error) => {
            report.add(UP, begin.elapsed(), &Err(error));
            checks.iter().for_each(|(name, _)| report.skip(name));
            return None;
        }
    };
    let facts = world.facts().await;
    report.add(UP, begin.elapsed(), &facts);
    for (name, check) in checks {
        let begin = Instant::now();
        let outcome = tokio::time::timeout(checks::LIMIT, check(&mut world)).await;
        let outcome = outcome.unwrap_or_else(|_elapsed| bail!("no end within {:?}", checks::LIMIT));
        report.add(name, begin.elapsed(), &outcome);
    }
    if report.has_failed() {
        eprintln!("\n{}", world.logs());
    }
    Some(world)
}

fn skip(checks: &[&NamedCheck], report: &mut Report) {
    checks.iter().for_each(|(name, _)| report.skip(name));
    report.skip(DOWN);
}
