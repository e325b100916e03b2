//! The node's firewall: our rules put there, looked after, and removed.

use std::time::Duration;

use prometheus::{IntCounterVec, Opts};
use tokio_util::sync::CancellationToken;

use super::error::IptablesError;
use super::plan::{self, Family, Rules, Table};
use super::tool::{Tool, Variant};
use super::variant::{Variants, table_of};
use crate::netlink::{Changes, News, has_ipv6};

/// Rules are looked at this often where nothing tells of changes: the older variant does not.
const LOOK: Duration = Duration::from_secs(10);
/// And not more often than this, whatever changes.
const REST: Duration = Duration::from_secs(1);
/// How long removing them may hold up the agent's end.
const REMOVAL: Duration = Duration::from_millis(1500);

/// `kiam_iptables_checks_total`.
#[derive(Debug, Clone)]
pub struct FirewallMetrics(IntCounterVec);

impl FirewallMetrics {
    /// Counts from nothing.
    ///
    /// # Errors
    /// When the metric's name is no name.
    pub fn new() -> prometheus::Result<Self> {
        let opts = Opts::new(
            "kiam_iptables_checks_total",
            "Looks at the agent's firewall rules: intact, restored (another program had changed them) or failed.",
        );
        let checks = IntCounterVec::new(opts, &["family", "outcome"])?;
        for family in [Family::V4, Family::V6] {
            for outcome in ["intact", "restored", "failed"] {
                checks.with_label_values(&[family.as_label(), outcome]);
            }
        }
        Ok(Self(checks))
    }

    /// To be registered.
    #[must_use]
    pub fn collector(&self) -> IntCounterVec {
        self.0.clone()
    }

    fn count(&self, family: Family, outcome: &str) {
        self.0
            .with_label_values(&[family.as_label(), outcome])
            .inc();
    }
}

/// Our rules in one table, as they were when they were put there.
#[derive(Debug)]
struct Installed {
    tool: Tool,
    table: Table,
    rules: Vec<String>,
}

/// Our rules in the node's tables. They stay when this is dropped.
#[derive(Debug)]
pub struct Firewall {
    rules: Rules,
    variant: Variant,
    installed: Vec<Installed>,
    metrics: FirewallMetrics,
    changes: Changes,
}

impl Firewall {
    /// Puts the rules there, in the place of all that earlier runs, kiam or kube2iam have left.
    ///
    /// # Errors
    /// When one of the programs is missing or fails. What was put there until then stays: it only
    /// refuses.
    pub async fn install(rules: Rules, metrics: FirewallMetrics) -> Result<Self, IptablesError> {
        let variants = Variants::detect().await?;
        if let Some(other) = variants.other {
            sweep(other).await?;
        }
        // Before the first look: nothing that changes after it is missed.
        let changes = Changes::watch(News::Firewall);
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

    /// Which variant of iptables has them.
    #[must_use]
    pub const fn variant(&self) -> Variant {
        self.variant
    }

    /// Looks after the rules until `stop`: puts back what others have removed. Then removes
    /// them, if it shall; else pods are refused until there is an agent again.
    pub async fn keep(mut self, stop: CancellationToken, remove: bool) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.changes.next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            self.check().await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(REST) => {}
            }
        }
        if !remove {
            return;
        }
        match tokio::time::timeout(REMOVAL, self.remove()).await {
            Ok(Ok(())) => tracing::info!("the firewall rules are removed (--iptables-remove)"),
            Ok(Err(error)) => tracing::warn!("the firewall rules stay, and refuse pods: {error}"),
            Err(_elapsed) => {
                tracing::warn!(
                    "the firewall rules stay, and refuse pods: no time was left to remove them"
                );
            }
        }
    }

    /// One look at everything.
    async fn check(&mut self) {
        let mut installed = std::mem::take(&mut self.installed);
        for installed in &mut installed {
            let family = installed.tool.family;
            let outcome = match self.check_table(installed).await {
                Ok(true) => "intact",
                Ok(false) => {
                    tracing::warn!(
                        family = family.as_label(),
                        table = installed.table.name(),
                        "another program had changed the firewall rules; they are back"
                    );
                    "restored"
                }
                Err(error) => {
                    tracing::error!("cannot look after the firewall rules: {error}");
                    "failed"
                }
            };
            self.metrics.count(family, outcome);
        }
        self.installed = installed;
    }

    /// Whether a table was as it should be. It is so afterwards.
    async fn check_table(&self, installed: &mut Installed) -> Result<bool, IptablesError> {
        let now = installed.tool.list(installed.table).await?;
        let intact = now.ours() == installed.rules && now.stale().next().is_none();
        if !intact {
            self.put(installed).await?;
        }
        Ok(intact)
    }

    /// Brings one table to where it is to be, and remembers how iptables itself shows that.
    async fn put(&self, installed: &mut Installed) -> Result<(), IptablesError> {
        let Installed { tool, table, rules } = installed;
        let now = tool.list(*table).await?;
        for rule in now.stale() {
            tracing::warn!(
                rule,
                variant = tool.variant.as_label(),
                "a firewall rule of kiam's or kube2iam's is replaced"
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

    /// What is refused is refused until nothing is redirected.
    async fn remove(&self) -> Result<(), IptablesError> {
        for Installed { tool, table, .. } in self.installed.iter().rev() {
            let now = tool.list(*table).await?;
            if let Some(script) = plan::remove(*table, &now) {
                tool.restore(&script).await?;
            }
        }
        Ok(())
    }
}

/// Removes all rules of ours, and of kiam's form, in whichever variant they are. Tells in how
/// many tables there were any.
///
/// # Errors
/// When there is no iptables, or it fails.
pub async fn cleanup() -> Result<usize, IptablesError> {
    let Variants { own, other } = Variants::detect().await?;
    let mut swept = sweep(own).await?;
    if let Some(other) = other {
        swept += sweep(other).await?;
    }
    Ok(swept)
}

/// Looks into the tables that a variant has, without making any, and removes what is ours.
async fn sweep(variant: Variant) -> Result<usize, IptablesError> {
    let mut swept = 0;
    for family in families() {
        let tool = Tool { variant, family };
        let saved = match tool.save().await {
            Ok(saved) => saved,
            Err(IptablesError::Failed { said, .. }) => {
                tracing::debug!(said, "this variant of iptables is not in use");
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
                "firewall rules of an earlier agent, or of kiam or kube2iam, are removed"
            );
            swept += 1;
        }
    }
    Ok(swept)
}

/// IPv6, unless the kernel does without.
fn families() -> impl Iterator<Item = Family> {
    [Some(Family::V4), has_ipv6().then_some(Family::V6)]
        .into_iter()
        .flatten()
}
