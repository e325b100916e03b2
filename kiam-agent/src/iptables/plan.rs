//! Which rules there are to be, and what brings a table there. Computes; runs nothing.
//!
//! ```text
//! nat     PREROUTING ──► KIAM-METADATA    TCP port 80: to the agent
//! filter  INPUT, FORWARD ──► KIAM-METADATA    what still goes to the metadata addresses: refused
//! ```
//!
//! A change is one script of `iptables-restore --noflush` for one table: the kernel takes all of
//! it or none, so that there is no moment without the rules while they are replaced.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use super::HostInterface;

/// The chain of ours in each table.
pub const CHAIN: &str = "KIAM-METADATA";

/// IPv4 or IPv6: each has programs and tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `iptables`
    V4,
    /// `ip6tables`
    V6,
}

/// A table that holds rules of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// Where connections are brought to the agent.
    Nat,
    /// Where everything else is refused.
    Filter,
}

impl Family {
    /// For logs and metrics.
    #[must_use]
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// The metadata service's address, as iptables prints it.
    const fn metadata(self) -> &'static str {
        match self {
            Self::V4 => "169.254.169.254/32",
            Self::V6 => "fd00:ec2::254/128",
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
    /// What is refused is refused before anything is redirected, and until nothing is.
    pub const ALL: [Self; 2] = [Self::Filter, Self::Nat];

    /// As `-t` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// The built-in chains that lead to ours.
    #[must_use]
    pub const fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Nat => &["PREROUTING"],
            Self::Filter => &["INPUT", "FORWARD"],
        }
    }
}

/// What a table holds, of what matters here: rules as `iptables -S` prints them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Of the chains that lead to ours.
    pub hooks: Vec<String>,
    /// Of our chain, if there is one.
    pub chain: Option<Vec<String>>,
}

impl Listing {
    /// Takes the rules out of what `iptables -S` printed of a chain.
    pub fn rules(printed: &str) -> impl Iterator<Item = String> {
        let rules = printed.lines().filter(|line| line.starts_with("-A "));
        rules.map(|line| line.trim_end().to_owned())
    }

    /// Takes in a line of what `iptables-save` printed of the table.
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

    /// All that is of our making, in its order: what a later look is compared with.
    #[must_use]
    pub fn ours(&self) -> Vec<&str> {
        let jumps = self.hooks.iter().filter(|rule| is_jump(rule));
        let chain = self.chain.iter().flatten();
        jumps.chain(chain).map(String::as_str).collect()
    }

    /// Rules of kiam's and kube2iam's form, by whomever: they send the same connections
    /// elsewhere, and the first one wins.
    pub fn stale(&self) -> impl Iterator<Item = &str> {
        let rules = self.hooks.iter().map(String::as_str);
        rules.filter(|rule| is_stale(rule))
    }
}

/// The rules that there are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Where pods' packets come in.
    pub interface: HostInterface,
    /// Where they are brought.
    pub agent: SocketAddr,
    /// Another address whose port 80 is brought there: where containers' SDKs ask.
    pub container: Option<Ipv4Addr>,
}

impl Rules {
    /// How many rules of ours a table has.
    #[must_use]
    pub fn count(&self, family: Family, table: Table) -> usize {
        self.jumps(family, table).len() + self.chain(family, table).len()
    }

    /// The script that brings a table from where it is to where it is to be, if it need one.
    #[must_use]
    pub fn install(&self, family: Family, table: Table, now: &Listing) -> Option<String> {
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
        let mut from = vec![family.metadata().to_owned()];
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
                // `!eth0` means this one as well, and the node's own packets come by it where a
                // metadata address is the node's.
                "-i lo -j RETURN".to_owned(),
                "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
                format!("-j REJECT --reject-with {}", family.unreachable()),
            ],
        }
    }

    /// The agent listens on one address, and only its family's packets can be brought there.
    const fn redirects(&self, family: Family) -> bool {
        matches!(
            (family, &self.agent),
            (Family::V4, SocketAddr::V4(_)) | (Family::V6, SocketAddr::V6(_))
        )
    }
}

/// The script that removes all that is ours, or of kiam's form, if there is any.
#[must_use]
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

/// Deletes jumps and stale rules, each as often as it is there.
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
    let to = |family: Family| has(rule, &["-d", family.metadata()]);
    (to(Family::V4) || to(Family::V6))
        && has(rule, &["--dport", "80"])
        && has(rule, &["-j", "DNAT"])
        && !has(rule, &["!", "-d"])
}

/// Whether these words stand in a rule, one after the other.
fn has(rule: &str, words: &[&str]) -> bool {
    let all: Vec<_> = rule.split_ascii_whitespace().collect();
    all.windows(words.len()).any(|window| window == words)
}

#[cfg(test)]
mod tests;
