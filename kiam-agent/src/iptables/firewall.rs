//! The firewall rules of the agent: installed, restored when other programs change them, removed.

use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use tokio_util::sync::CancellationToken;

use super::error::IptablesError;
use super::plan::{self, Family, Rules, Table};
use super::tool::{Tool, Variant};
use super::variant::{Variants, table_of};
use crate::netlink::{Changes, Subject, has_ipv6};
use crate::reconcile::{self, Reconcile};

/// Maximum time that removing the rules may delay the agent's shutdown.
const REMOVAL: Duration = Duration::from_millis(1500);

/// `kiam_iptables_checks_total`.
#[derive(Debug, Clone)]
pub struct FirewallMetrics(IntCounterVec);

impl FirewallMetrics {
    /// Creates the counter, with all labels at zero.
    pub fn new() -> prometheus::Result<Self> {
        let opts = Opts::new(
            "kiam_iptables_checks_total",
            "Checks of the agent's firewall rules: intact, restored (another program had changed them) or failed.",
        );
        let checks = IntCounterVec::new(opts, &["family", "outcome"])?;
        for family in [Family::V4, Family::V6] {
            for outcome in ["intact", "restored", "failed"] {
                checks.with_label_values(&[family.as_label(), outcome]);
            }
        }
        Ok(Self(checks))
    }

    /// Returns the collector to register.
    pub fn collector(&self) -> IntCounterVec {
        self.0.clone()
    }

    fn count(&self, family: Family, outcome: &str) {
        self.0
            .with_label_values(&[family.as_label(), outcome])
            .inc();
    }
}

/// The agent's rules in one table, as iptables printed them after the installation.
#[derive(Debug)]
struct Installed {
    tool: Tool,
    table: Table,
    rules: Vec<String>,
}

/// The agent's rules in the tables of the node. They stay when this value is dropped.
#[derive(Debug)]
pub struct Firewall {
    rules: Rules,
    variant: Variant,
    installed: Vec<Installed>,
    metrics: FirewallMetrics,
    changes: Changes,
}

impl Firewall {
    /// Installs the rules in place of those that earlier agents, kiam or kube2iam have left. If a
    /// program is missing or fails, the rules that were installed until then stay: they only
    /// refuse.
    pub async fn install(rules: Rules, metrics: FirewallMetrics) -> Result<Self, IptablesError> {
        let variants = Variants::detect().await?;
        if let Some(other) = variants.other {
            sweep(other).await?;
        }
        // Before the first check, so that no later change is missed.
        let changes = Changes::watch(Subject::Firewall);
        let mut firewall = Self {
            rules,
            variant: variants.own,
            installed: Vec::new(),
            metrics,
            changes,
        };
        for table in Table::ALL {
            for family in families() {
                let variant = variants.own;
                let mut installed = Installed {
                    tool: Tool { variant, family },
                    table,
                    rules: Vec::new(),
                };
                firewall.put(&mut installed).await?;
                firewall.installed.push(installed);
            }
        }
        Ok(firewall)
    }

    /// Returns the variant of iptables that holds the rules.
    pub const fn variant(&self) -> Variant {
        self.variant
    }

    /// Keeps the rules in effect until `stop`, then removes them if `remove` is set; otherwise pods
    /// are refused until an agent runs again.
    pub async fn run(self, stop: CancellationToken, remove: bool) {
        reconcile::run(self, stop, remove).await;
    }

    /// Restores a table if it was changed, and returns whether it was intact.
    async fn check_table(&self, installed: &mut Installed) -> Result<bool, IptablesError> {
        let now = installed.tool.list(installed.table).await?;
        let intact = now.ours() == installed.rules && now.stale().next().is_none();
        if !intact {
            self.put(installed).await?;
        }
        Ok(intact)
    }

    /// Brings a table to its rules, and remembers how iptables prints them.
    async fn put(&self, installed: &mut Installed) -> Result<(), IptablesError> {
        let Installed { tool, table, rules } = installed;
        let now = tool.list(*table).await?;
        for rule in now.stale() {
            tracing::warn!(
                rule,
                variant = tool.variant.as_label(),
                "replacing a firewall rule of kiam or kube2iam"
            );
        }
        let Some(script) = self.rules.install(tool.family, *table, &now) else {
            return Ok(());
        };
        tool.restore(&script).await?;
        let there = tool.list(*table).await?;
        *rules = there.ours().into_iter().map(str::to_owned).collect();
        let (expected, found) = (self.rules.count(tool.family, *table), rules.len());
        if expected == found {
            return Ok(());
        }
        Err(IptablesError::NotThere {
            family: tool.family,
            table: *table,
            expected,
            found,
        })
    }

    /// Removes the rules: what is refused stays refused until nothing is redirected.
    async fn remove_rules(&self) -> Result<(), IptablesError> {
        for Installed { tool, table, .. } in self.installed.iter().rev() {
            let now = tool.list(*table).await?;
            if let Some(script) = plan::remove(*table, &now) {
                tool.restore(&script).await?;
            }
        }
        Ok(())
    }
}

impl Reconcile for Firewall {
    async fn changed(&mut self) {
        self.changes.next().await;
    }

    async fn reconcile(&mut self) {
        let mut installed = std::mem::take(&mut self.installed);
        for installed in &mut installed {
            let family = installed.tool.family;
            let outcome = match self.check_table(installed).await {
                Ok(true) => "intact",
                Ok(false) => {
                    tracing::warn!(
                        family = family.as_label(),
                        table = installed.table.name(),
                        "another program changed the firewall rules; they are restored"
                    );
                    "restored"
                }
                Err(error) => {
                    tracing::error!("cannot check the firewall rules: {error}");
                    "failed"
                }
            };
            self.metrics.count(family, outcome);
        }
        self.installed = installed;
    }

    async fn remove(&mut self) {
        match tokio::time::timeout(REMOVAL, self.remove_rules()).await {
            Ok(Ok(())) => tracing::info!("removed the firewall rules (--iptables-remove)"),
            Ok(Err(error)) => {
                tracing::warn!("cannot remove the firewall rules, which refuse pods: {error}");
            }
            Err(_elapsed) => {
                tracing::warn!(
                    "the firewall rules stay, and refuse pods: they were not removed in time"
                );
            }
        }
    }
}

/// Removes the rules of any agent, kiam or kube2iam, in all variants. Returns the number of tables
/// that had some.
pub async fn cleanup() -> Result<usize, IptablesError> {
    let Variants { own, other } = Variants::detect().await?;
    let mut swept = sweep(own).await?;
    if let Some(other) = other {
        swept += sweep(other).await?;
    }
    Ok(swept)
}

/// Removes the rules from the tables that a variant has, without creating any table.
async fn sweep(variant: Variant) -> Result<usize, IptablesError> {
    let mut swept = 0;
    for family in families() {
        let tool = Tool { variant, family };
        let saved = match tool.save().await {
            Ok(saved) => saved,
            Err(IptablesError::Failed { stderr, .. }) => {
                tracing::debug!(said = stderr, "this variant of iptables is not in use");
                continue;
            }
            Err(error) => return Err(error),
        };
        for table in Table::ALL.into_iter().rev() {
            let now = table_of(&saved, table);
            let Some(script) = plan::remove(table, &now) else {
                continue;
            };
            tool.restore(&script).await?;
            tracing::warn!(
                variant = variant.as_label(),
                family = family.as_label(),
                table = table.name(),
                "removed firewall rules of an earlier agent, or of kiam or kube2iam"
            );
            swept += 1;
        }
    }
    Ok(swept)
}

/// Returns IPv4, and IPv6 if the kernel supports it.
fn families() -> impl Iterator<Item = Family> {
    [Some(Family::V4), has_ipv6().then_some(Family::V6)]
        .into_iter()
        .flatten()
}
