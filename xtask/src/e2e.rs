//! `cargo xtask e2e`: the whole path against a real Kubernetes API.
//!
//! etcd and kube-apiserver are the real ones, moto is STS, and this command plays users,
//! scheduler and kubelet. kiam-server has its kubeconfig and the rights that `deploy/` gives it;
//! each agent runs as a pod of the host's network and proves its node by its pod's token.

mod checks;
mod world;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use crate::kiam::Programs;
use crate::sandbox;
use crate::setup::{self, Consent, Need};
use world::World;

/// Flags of `cargo xtask e2e`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,
}

/// Runs the command.
///
/// # Errors
/// When something cannot be set up, or a check fails.
#[expect(clippy::print_stdout, reason = "a command for the terminal")]
pub fn run(args: &Args) -> Result<()> {
    if let Some(missing) = sandbox::missing() {
        println!("\n0 passed, 0 failed, {} skipped", checks::ALL.len());
        anyhow::bail!("nothing was checked: {missing}");
    }
    let needs = [
        Need::Sandbox,
        Need::Kernel,
        Need::Aws,
        Need::Moto,
        Need::Cluster,
    ];
    setup::prepare(&needs, args.consent)?;
    let programs = Programs::build()?;

    let began = Instant::now();
    println!("\nstarting etcd, kube-apiserver and moto");
    let mut world = World::prepare(&programs)?;
    let netns = world.sandbox.control().netns().clone();
    let (mut passed, mut failed) = (0_usize, 0_usize);
    netns.block_on(async || -> Result<()> {
        world.begin().await?;
        println!("  the API serves, after {:.1?}\n", began.elapsed());
        for (name, check) in checks::ALL {
            let began = Instant::now();
            // They build on each other: what one has left undone makes others fail too.
            match check(&mut world).await {
                Ok(detail) => {
                    passed += 1;
                    println!("  ✓ {name} ({:.1?}){detail}", began.elapsed());
                }
                Err(error) => {
                    failed += 1;
                    println!("  ✗ {name}\n    {error:?}");
                }
            }
        }
        Ok(())
    })??;
    if failed > 0 {
        println!("\nthe server's last words:\n{}", world.server_tail());
    }
    world.end()?;
    println!(
        "\n  All of it took {:.1?}.\n\n{passed} passed, {failed} failed, 0 skipped",
        began.elapsed()
    );
    ensure!(failed == 0, "checks failed");
    Ok(())
}
