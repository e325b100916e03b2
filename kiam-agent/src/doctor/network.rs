//! Checks of the node's network: its address, leftover firewall rules, the real metadata service.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http_body_util::Empty;
use kiam_common::http_client::{self, HttpError};
use kiam_common::metadata_address::{METADATA_SERVICE, METADATA_V4};
use nix::sched::{CloneFlags, setns};

use super::Finding;
use crate::args::{DoctorArgs, Redirect};
use crate::iptables::CHAIN;
use crate::kernel::cgroup::Mount;

const LIMIT: Duration = Duration::from_secs(2);
/// Maximum size of the answer; the list of the real service is much shorter.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Maximum number of processes to inspect for one in a pod.
const MAX_PROCESSES: usize = 1000;

pub(super) async fn findings(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(host) = args.host {
        findings.push(address(host));
        if let Some(pods) = pods(args) {
            findings.push(from_a_pod(&pods, SocketAddr::new(host, args.node.port)));
        }
    }
    findings.push(rules(args.redirect));
    findings.push(metadata_service().await);
    findings
}

fn pods(args: &DoctorArgs) -> Option<PathBuf> {
    match &args.node.pods_cgroup {
        Some(given) => Mount::of(given).ok().map(|_mount| given.clone()),
        None => Mount::find().ok()?.pods().ok(),
    }
}

fn address(host: IpAddr) -> Finding {
    const CHECK: &str = "address";
    if !host.is_ipv4() || host.is_loopback() || host.is_unspecified() {
        return Finding::fail(
            CHECK,
            format!("pods cannot reach {host}"),
            "set --host to an IPv4 address of the node other than loopback",
        );
    }
    match UdpSocket::bind((host, 0)) {
        Ok(_) => Finding::ok(CHECK, format!("{host} is an address of this node")),
        Err(error) => Finding::fail(
            CHECK,
            format!("{host} is not an address of this node: {error}"),
            "set HOST_IP from status.hostIP, and hostNetwork: true",
        ),
    }
}

/// Connects to the agent from the network namespace of a pod.
fn from_a_pod(pods: &Path, agent: SocketAddr) -> Finding {
    const CHECK: &str = "agent from a pod";
    const ENTER: &str =
        "run doctor as root on the node to check this (CAP_SYS_ADMIN and the node's process ids)";
    let Some(netns) = netns_of_a_pod(pods) else {
        return Finding::warn(CHECK, "the network of pods is not visible from here", ENTER);
    };
    let connect = move || -> Result<io::Result<TcpStream>, nix::Error> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(TcpStream::connect_timeout(&agent, LIMIT))
    };
    // setns(2) affects the calling thread only.
    match std::thread::spawn(connect).join() {
        Ok(Ok(Ok(_))) => Finding::ok(CHECK, format!("{agent} answers")),
        Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::fail(
            CHECK,
            format!("{agent} is reachable, but no process listens there"),
            "start the agent; until then pods are refused",
        ),
        Ok(Ok(Err(error))) => Finding::fail(
            CHECK,
            format!("cannot reach {agent}: {error}"),
            "let pods connect to it in the firewall and network policies of the node",
        ),
        Ok(Err(error)) => Finding::warn(
            CHECK,
            format!("cannot enter the network namespace of a pod: {error}"),
            ENTER,
        ),
        Err(_panic) => Finding::warn(CHECK, "the check panicked", ENTER),
    }
}

/// Returns the network namespace of the first pod that has its own.
fn netns_of_a_pod(pods: &Path) -> Option<std::fs::File> {
    let own = std::fs::metadata("/proc/self/ns/net").ok()?.ino();
    let mut seen = HashSet::new();
    let mut folders = vec![pods.to_owned()];
    while let Some(folder) = folders.pop() {
        let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            if seen.len() >= MAX_PROCESSES || !seen.insert(process.to_owned()) {
                return None;
            }
            let path = format!("/proc/{process}/ns/net");
            let Ok(file) = std::fs::File::open(path) else {
                continue;
            };
            if file.metadata().is_ok_and(|found| found.ino() != own) {
                return Some(file);
            }
        }
        let below = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
    None
}

/// Looks for rules of kiam's and kube2iam's agents, which may override those of this agent.
fn rules(redirect: Redirect) -> Finding {
    const CHECK: &str = "iptables";
    let saved = Command::new("iptables-save").args(["-t", "nat"]).output();
    match saved {
        Ok(output) if output.status.success() => {
            let rules = redirects(&String::from_utf8_lossy(&output.stdout), redirect);
            if rules.is_empty() {
                return Finding::ok(CHECK, "no rules for the metadata service");
            }
            Finding::warn(
                CHECK,
                format!("rules for the metadata service: {}", rules.join("; ")),
                "these are of another agent (kiam, kube2iam) that runs here or has left them; once it is gone, remove them with \
                `iptables -t nat -D …`. The kernel programs redirect before any firewall rule applies",
            )
        }
        Ok(output) => Finding::warn(
            CHECK,
            format!(
                "iptables-save failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            "run doctor as root on the node to look for rules of other agents",
        ),
        Err(_) => Finding::ok(
            CHECK,
            "no iptables-save here: rules of other agents were not looked for",
        ),
    }
}

/// Returns the rules of other agents. With `--redirect=iptables` the agent's own are left out.
fn redirects(saved: &str, redirect: Redirect) -> Vec<String> {
    let own = format!("-j {CHAIN}");
    let metadata = METADATA_V4.to_string();
    let rules = saved.lines().filter(|line| line.starts_with("-A "));
    let rules = rules.filter(|rule| rule.contains(&metadata) && rule.contains("-j "));
    let others = rules.filter(|rule| redirect == Redirect::Ebpf || !rule.ends_with(&own));
    others.map(str::to_owned).collect()
}

async fn metadata_service() -> Finding {
    const CHECK: &str = "metadata service";
    let asked = tokio::time::timeout(LIMIT, status()).await;
    match asked {
        Ok(Ok(401)) => Finding::ok(
            CHECK,
            "the node's service is present and requires IMDSv2; keep its hop limit at 1 (HttpPutResponseHopLimit)",
        ),
        Ok(Ok(status)) => Finding::warn(
            CHECK,
            format!("the node's service is present and answers without a token ({status})"),
            "require IMDSv2 with a hop limit of 1, which stops what the guards do not see (AF_PACKET, other CNIs): aws ec2 \
            modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 1",
        ),
        Ok(Err(error)) => Finding::ok(CHECK, format!("not present on this node ({error})")),
        Err(_) => Finding::ok(CHECK, "not present on this node (no answer)"),
    }
}

async fn status() -> Result<u16, HttpError> {
    let request = http::Request::get("/latest/meta-data/")
        .header(http::header::HOST, METADATA_V4.to_string())
        .body(Empty::new())
        .expect("a path and a host always form a request");
    let answer = http_client::send(METADATA_SERVICE, request, MAX_ANSWER_BYTES).await?;
    Ok(answer.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_other_agents_are_found() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181\n\
            -A PREROUTING -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA\n\
            -A PREROUTING -m comment --comment kube-proxy -j KUBE-SERVICES\nCOMMIT\n";
        let found = redirects(saved, Redirect::Iptables);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("DNAT"), "{found:?}");
        // Left by an agent with --redirect=iptables.
        let found = redirects(saved, Redirect::Ebpf);
        assert_eq!(found.len(), 2);
        assert!(found[1].contains(CHAIN), "{found:?}");
    }
}
