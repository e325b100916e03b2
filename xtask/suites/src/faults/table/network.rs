//! Faults of the network between agents and servers, and of DNS. The kernels of the build machines
//! have no `netem`: loss is nftables', delay a proxy's.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use toolchain::exec;

use super::{Fault, KEEPALIVE, RECONNECT};
use crate::faults::fixture::{Fixture, SLOW_PORT, here};
use crate::faults::servers::ADDRESSES;
use testbed::doubles::dns::Reply;
use testbed::kiam::SERVER_PORT;
use testbed::sandbox::Netns;

const GROUP: &str = "network";
const DELAY: Duration = Duration::from_millis(500);

pub(super) const FAULTS: &[Fault] = &[
    Fault::new(
        "the servers refuse connections (RST)",
        GROUP,
        |w| async { rules(w, "tcp dport 9610 reject with tcp reset", "") }.boxed_local(),
        |w| async { restore(w) }.boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(RECONNECT),
    Fault::new(
        "the network swallows everything (half-open)",
        GROUP,
        |w| async { rules(w, "tcp dport 9610 drop", "tcp sport 9610 drop") }.boxed_local(),
        |w| async { restore(w) }.boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(KEEPALIVE),
    Fault::new(
        "30 % of the packets are lost, both ways",
        GROUP,
        |w| async { lossy(w) }.boxed_local(),
        |w| async { restore(w) }.boxed_local(),
    )
    .recovers_within(KEEPALIVE),
    Fault::new(
        "500 ms of delay, each way",
        GROUP,
        |w| delay(w).boxed_local(),
        |w| fast_again(w).boxed_local(),
    )
    .serves_new_pods()
    .recovers_within(RECONNECT),
    Fault::new(
        "DNS does not answer, and connections break",
        GROUP,
        |w| dns(w, Reply::Nothing).boxed_local(),
        |w| dns_again(w).boxed_local(),
    )
    .starves_new_pods()
    // A lookup under way is given up after 10 s.
    .recovers_within(KEEPALIVE),
    Fault::new(
        "DNS fails, and connections break",
        GROUP,
        |w| dns(w, Reply::Failure).boxed_local(),
        |w| dns_again(w).boxed_local(),
    )
    .starves_new_pods()
    .recovers_within(RECONNECT),
];

async fn dns_again(fixture: &mut Fixture) -> Result<()> {
    fixture.dns.reply_with(here());
    restore(fixture)
}

fn lossy(fixture: &Fixture) -> Result<()> {
    let lost = |end: &str| format!("tcp {end} 9610 numgen random mod 100 < 30 drop");
    rules(fixture, &lost("dport"), &lost("sport"))
}

/// Adds a rule for packets that nodes send, and one for packets that they receive.
fn rules(fixture: &Fixture, output: &str, input: &str) -> Result<()> {
    let rules = format!(
        "table inet faults {{
            chain output {{ type filter hook output priority 0; {output}; }}
            chain input {{ type filter hook input priority 0; {input}; }}
        }}"
    );
    let mut nodes = fixture.nodes.iter();
    nodes.try_for_each(|node| nft(node.netns(), &rules))
}

fn restore(fixture: &Fixture) -> Result<()> {
    let mut nodes = fixture.nodes.iter();
    // Made if it is not there, so that it can be deleted.
    nodes.try_for_each(|node| {
        nft(
            node.netns(),
            "table inet faults {}\ndelete table inet faults",
        )
    })
}

/// Breaks the connections to the servers, and lets new ones go a slow way.
async fn delay(fixture: &mut Fixture) -> Result<()> {
    for way in &fixture.slow_ways {
        way.delay(DELAY);
    }
    cut(fixture)?;
    let ways = ADDRESSES.map(|server| {
        format!("ip daddr {server} tcp dport {SERVER_PORT} dnat ip to {server}:{SLOW_PORT}\n")
    });
    let slow = format!(
        "table inet faults {{\nchain output {{\ntype nat hook output priority -100\n{}}}\n}}\n",
        ways.concat()
    );
    let mut nodes = fixture.nodes.iter();
    nodes.try_for_each(|node| nft(node.netns(), &slow))
}

/// Removes the delay of the proxies; connections through them stay.
async fn fast_again(fixture: &mut Fixture) -> Result<()> {
    for way in &fixture.slow_ways {
        way.delay(Duration::ZERO);
    }
    restore(fixture)
}

async fn dns(fixture: &mut Fixture, reply: Reply) -> Result<()> {
    fixture.dns.reply_with(reply);
    cut(fixture)
}

/// Breaks the connections that there are: as the kernel does when an interface is gone.
pub(super) fn cut(fixture: &Fixture) -> Result<()> {
    for node in &fixture.nodes {
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .arg(format!("--net={}", node.netns().path().display()))
            .args(["ss", "-K", "-t", &format!("dport = :{SERVER_PORT}")]);
        exec(&mut command)?;
    }
    Ok(())
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    let mut child = Command::new("/usr/bin/nsenter")
        .arg(format!("--net={}", netns.path().display()))
        .args(["nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start nft (Debian's package nftables)")?;
    let mut stdin = child.stdin.take().context("it has an input")?;
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    let ended = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "nft: {stderr}\n{rules}");
    Ok(())
}
