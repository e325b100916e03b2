//! Flags of `cargo xtask node --cluster`.

use std::path::PathBuf;

use anyhow::Result;
use testbed::cluster;
use toolchain::{Plan, helm};

use super::pods::IdentifiedBy;
use super::worker::Settings;
use crate::node::Kernel;

/// Flags of level 2.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "cluster-args")]
pub(in crate::node) struct Args {
    /// Create a Kubernetes cluster of machines, install kiam with helm, and check the credentials
    /// of pods
    #[arg(long)]
    pub(super) cluster: bool,

    /// Run only checks with this in their name, and those that they need
    #[arg(long, value_name = "PART", requires = "cluster")]
    pub(super) check: Vec<String>,

    /// Run only the short checks, which suit every change
    #[arg(long)]
    pub(super) short: bool,

    /// Plant a wrong expectation into each check, which must then fail
    #[arg(long, requires = "cluster")]
    pub(super) planted: bool,

    /// Archive of kiam's image, in place of the one that `cargo xtask image` made
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub(super) image: Option<PathBuf>,

    /// Archive of the image that is installed first, and then upgraded to the other under load
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub(super) before: Option<PathBuf>,

    /// Nodes of the cluster
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "cluster")]
    pub(super) nodes: u8,

    /// Set a value of the chart, as in agent.redirect=iptables
    #[arg(long, value_name = "VALUE", requires = "cluster")]
    pub(super) set: Vec<String>,

    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Args {
    /// Returns whether a cluster is requested.
    pub(in crate::node) const fn is_wanted(&self) -> bool {
        self.cluster
    }

    /// Returns whether only the short checks are requested, of either level.
    pub(in crate::node) const fn short(&self) -> bool {
        self.short
    }

    /// Returns how agents identify pods, by the chart's values.
    pub(super) fn identified_by(&self) -> IdentifiedBy {
        if self.set.iter().any(|it| it == "agent.redirect=iptables") {
            IdentifiedBy::Address
        } else {
            IdentifiedBy::Cgroup
        }
    }

    /// Title of the table's column: the kernel, and every setting that is not the default.
    pub(super) fn title(&self, kernel: &Kernel) -> String {
        let mut words = vec![kernel.release.clone()];
        words.extend(self.settings.words());
        words.extend(self.set.iter().cloned());
        if self.nodes > 1 {
            words.push(format!("{} nodes", self.nodes));
        }
        words.join(", ")
    }

    /// Adds the tools that a cluster needs in addition to machines.
    pub(in crate::node) fn plan(&self, plan: &mut Plan) -> Result<()> {
        if self.cluster {
            plan.program("cc", "gcc", "compiles the program of nodes' pods");
            cluster::plan_components(plan)?;
            toolchain::kubectl::plan(plan);
            helm::plan(plan);
        }
        Ok(())
    }
}
