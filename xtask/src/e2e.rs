//! `cargo xtask e2e`: the whole path on real parts.
//!
//! etcd, kube-apiserver with RBAC, moto as STS, kiam's two programs, real kernel programs, and the
//! AWS CLI in pods. Namespaces, accounts, nodes and pods are made through the API; the sandbox
//! plays controllers, scheduler and kubelets.

mod checks;
mod world;

use anyhow::{Result, bail};
use tokio::time::Instant;

use crate::kiam::Programs;
use crate::sandbox::Sandbox;
use crate::setup::{self, Consent, Need};
use checks::CHECKS;
pub use world::World;

/// Flags of `cargo xtask e2e`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Run only the checks whose names contain this
    name: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be set up or a check fails.
#[expect(clippy::print_stdout, reason = "the command's result")]
pub fn run(args: &Args) -> Result<()> {
    let needs = [
        Need::Sandbox,
        Need::Kernel,
        Need::Aws,
        Need::Moto,
        Need::Cluster,
    ];
    setup::prepare(&needs, args.consent)?;
    let programs = Programs::build()?;
    let sandbox = Sandbox::new()?;
    let control = sandbox.control().netns().clone();
    let (passed, failed) = control.block_on(async || {
        let begin = Instant::now();
        let mut world = World::begin(&sandbox, &programs).await?;
        println!(
            "etcd, kube-apiserver, moto and kiam are up in {:.1?}\n",
            begin.elapsed()
        );
        let (mut passed, mut failed) = (0, 0);
        for (name, check) in CHECKS {
            if !args.name.as_ref().is_none_or(|part| name.contains(part)) {
                continue;
            }
            let begin = Instant::now();
            match check(&mut world).await {
                Ok(()) => {
                    passed += 1;
                    println!("ok      {name} ({:.1?})", begin.elapsed());
                }
                Err(error) => {
                    failed += 1;
                    println!("FAILED  {name}: {error:#}");
                }
            }
        }
        if failed > 0 {
            println!("\n{}", world.logs());
        }
        world.end()?;
        anyhow::Ok((passed, failed))
    })??;
    println!("\n{passed} passed, {failed} failed, 0 skipped");
    match (passed, failed) {
        (0, 0) => bail!("there is no such check"),
        (_, 0) => Ok(()),
        _ => bail!("the end-to-end test failed"),
    }
}
