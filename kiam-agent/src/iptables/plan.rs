//! Rules of the firewall, and the scripts that install them. Computes scripts; runs nothing.
//!
//! ```text
//! nat     PREROUTING ──► KIAM-METADATA    TCP port 80: redirected to the agent
//! filter  INPUT, FORWARD ──► KIAM-METADATA    any other packet to the metadata addresses: rejected
//! ```
//!
//! Each change is one script of `iptables-restore --noflush` for one table: the kernel applies all
//! of it or nothing, so that the rules are in effect at all times while they are replaced.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use kiam_common::metadata_address::{METADATA_V4, METADATA_V6};

use super::HostInterface;

/// Name of the agent's chain in each table.
pub const CHAIN: &str = "KIAM-METADATA";

/// IP version; each has its own programs and tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `iptables`
    V4,
    /// `ip6tables`
    V6,
}

/// A table with rules of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Redirects connections to the agent.
    Nat,
    /// Rejects everything else.
    Filter,
}

impl Family {
    /// Returns the value of the label `family`.
    pub(crate) const fn as_label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Returns the address of the metadata service as iptables prints it.
    fn metadata(self) -> String {
        match self {
            Self::V4 => format!("{METADATA_V4}/32"),
            Self::V6 => format!("{METADATA_V6}/128"),
        }
    }

    const fn unreachable(self) -> &'static str {
        match self {
            Self::V4 => "icmp-port-unreachable",
            Self::V6 => "icmp6-port-unreachable",
        }
    }
}

impl Table {
    /// All tables, in the order of installation: rejected first, then redirected.
    pub(crate) const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// Returns the name for `-t`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// Returns the built-in chains that jump to the agent's.
    pub(crate) const fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Nat => &["PREROUTING"],
            Self::Filter => &["INPUT", "FORWARD"],
        }
    }
}

/// The relevant rules of a table, as `iptables -S` prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Rules of the chains that jump to the agent's.
    pub(crate) hooks: Vec<String>,
    /// Rules of the agent's chain, if it exists.
    pub(crate) chain: Option<Vec<String>>,
}

impl Listing {
    /// Extracts the rules from the output of `iptables -S`.
    pub(crate) fn rules(printed: &str) -> impl Iterator<Item = String> {
        let rules = printed.lines().filter(|line| line.starts_with("-A "));
        rules.map(|line| line.trim_end().to_owned())
    }

    /// Adds a line of the output of `iptables-save` for the table.
    pub(super) fn take_saved(&mut self, line: &str, table: Table) {
        let is_of = |chain: &str| line.starts_with(&format!("-A {chain} "));
        if line.starts_with(&format!(":{CHAIN} ")) {
            self.chain.get_or_insert_default();
        } else if is_of(CHAIN) {
            self.chain.get_or_insert_default().push(line.to_owned());
        } else if table.hooks().iter().any(|hook| is_of(hook)) {
            self.hooks.push(line.to_owned());
        }
    }

    /// Returns the agent's rules in order, for comparison with a later listing.
    pub(crate) fn ours(&self) -> Vec<&str> {
        let jumps = self.hooks.iter().filter(|rule| is_jump(rule));
        let chain = self.chain.iter().flatten();
        jumps.chain(chain).map(String::as_str).collect()
    }

    /// Returns rules in the form of kiam's and kube2iam's: they redirect the same connections, and
    /// the first matching rule wins.
    pub(crate) fn stale(&self) -> impl Iterator<Item = &str> {
        let rules = self.hooks.iter().map(String::as_str);
        rules.filter(|rule| is_stale(rule))
    }
}

/// The rules to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Interfaces that pods' packets arrive on.
    pub interface: HostInterface,
    /// Address that they are redirected to.
    pub agent: SocketAddr,
    /// A second address whose port 80 is redirected, for SDKs in containers.
    pub container: Option<Ipv4Addr>,
}

impl Rules {
    /// Returns the number of rules of the agent in a table.
    pub(crate) fn count(&self, family: Family, table: Table) -> usize {
        self.jumps(family, table).len() + self.chain(family, table).len()
    }

    /// Returns the script that installs the rules in a table; `None` if nothing is to be changed.
    pub(crate) fn install(&self, family: Family, table: Table, now: &Listing) -> Option<String> {
        let jumps = self.jumps(family, table);
        if jumps.is_empty() {
            return remove(table, now);
        }
        let mut script = begin(table);
        let _ = writeln!(script, ":{CHAIN} - [0:0]");
        delete(&mut script, now);
        for rule in self.chain(family, table) {
            let _ = writeln!(script, "-A {CHAIN} {rule}");
        }
        for (hook, rule) in jumps {
            let _ = writeln!(script, "-I {hook} 1 {rule}");
        }
        Some(end(script))
    }

    fn jumps(&self, family: Family, table: Table) -> Vec<(&'static str, String)> {
        if table == Table::Nat && !self.redirects(family) {
            return Vec::new();
        }
        let mut from = vec![family.metadata()];
        if (family, table) == (Family::V4, Table::Nat) {
            from.extend(self.container.map(|address| format!("{address}/32")));
        }
        let interface = self.interface.rule();
        let jump = |to: &String| format!("-d {to} {interface} -j {CHAIN}");
        let jumps = from.iter().map(jump).collect::<Vec<_>>();
        let of = |&hook| jumps.iter().map(move |jump| (hook, jump.clone()));
        table.hooks().iter().flat_map(of).collect()
    }

    fn chain(&self, family: Family, table: Table) -> Vec<String> {
        match table {
            Table::Nat if self.redirects(family) => {
                let to = self.agent;
                vec![format!(
                    "-p tcp -m tcp --dport 80 -j DNAT --to-destination {to}"
                )]
            }
            Table::Nat => Vec::new(),
            Table::Filter => vec![
                // `!eth0` matches this interface too, and the node's own packets arrive on it where
                // a metadata address is assigned to the node.
                "-i lo -j RETURN".to_owned(),
                "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
                format!("-j REJECT --reject-with {}", family.unreachable()),
            ],
        }
    }

    /// The agent listens on one address, and only packets of its family can be redirected there.
    const fn redirects(&self, family: Family) -> bool {
        matches!(
            (family, &self.agent),
            (Family::V4, SocketAddr::V4(_)) | (Family::V6, SocketAddr::V6(_))
        )
    }
}

/// Returns the script that removes all rules of the agent, kiam and kube2iam, if there are any.
pub(super) fn remove(table: Table, now: &Listing) -> Option<String> {
    if now.ours().is_empty() && now.chain.is_none() && now.stale().next().is_none() {
        return None;
    }
    let mut script = begin(table);
    delete(&mut script, now);
    if now.chain.is_some() {
        let _ = write!(script, "-F {CHAIN}\n-X {CHAIN}\n");
    }
    Some(end(script))
}

/// Deletes jumps and stale rules, each as often as it occurs.
fn delete(script: &mut String, now: &Listing) {
    for rule in &now.hooks {
        if is_jump(rule) || is_stale(rule) {
            let _ = writeln!(script, "{}", rule.replacen("-A ", "-D ", 1));
        }
    }
}

fn begin(table: Table) -> String {
    format!("*{}\n", table.name())
}

fn end(script: String) -> String {
    script + "COMMIT\n"
}

fn is_jump(rule: &str) -> bool {
    has(rule, &["-j", CHAIN])
}

fn is_stale(rule: &str) -> bool {
    let to = |family: Family| has(rule, &["-d", &family.metadata()]);
    (to(Family::V4) || to(Family::V6))
        && has(rule, &["--dport", "80"])
        && has(rule, &["-j", "DNAT"])
        && !has(rule, &["!", "-d"])
}

/// Returns whether a rule contains these words in sequence.
fn has(rule: &str, words: &[&str]) -> bool {
    let all: Vec<_> = rule.split_ascii_whitespace().collect();
    all.windows(words.len()).any(|window| window == words)
}

#[cfg(test)]
mod tests;
