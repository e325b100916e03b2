//! `cargo xtask sandbox`: nodes and pods for manual experiments.

use std::thread;

use anyhow::Result;

use testbed::sandbox::{NodeOptions, PodOptions, Sandbox};

/// Flags of `cargo xtask sandbox`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Number of nodes
    #[arg(long, default_value_t = 1)]
    nodes: u32,

    /// Number of pods on each node
    #[arg(long, default_value_t = 1)]
    pods: u32,

    /// Remove them at once instead of waiting for Ctrl-C
    #[arg(long)]
    exit: bool,
}

/// Runs the command.
///
/// # Errors
/// Fails when the sandbox cannot be made.
#[expect(clippy::print_stdout, reason = "a command for the terminal")]
pub fn run(args: &Args) -> Result<()> {
    let sandbox = Sandbox::new()?;
    let mut pods = Vec::new();
    for number in 1..=args.nodes {
        let node = sandbox.node(&format!("node-{number}"), NodeOptions::default())?;
        println!(
            "# {} ({})\n{}",
            node.name(),
            node.ip(),
            node.place().shell()
        );
        for number in 1..=args.pods {
            let pod = node.pod(PodOptions::default())?;
            println!("# its pod {number}, {}\n{}", pod.uid(), pod.place().shell());
            pods.push(pod);
        }
    }
    let scratch = sandbox.scratch().display();
    println!("made {} {scratch}", sandbox.cgroup().path().display());
    if !args.exit {
        println!("# removed when this is interrupted (Ctrl-C)");
        loop {
            thread::park();
        }
    }
    Ok(())
}
