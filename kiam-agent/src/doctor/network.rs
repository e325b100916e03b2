//! The node's network: its address, the rules that others have left, the real metadata service.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http_body_util::Empty;
use nix::sched::{CloneFlags, setns};

use super::Finding;
use crate::args::{DoctorArgs, Redirect};
use crate::iptables::CHAIN;
use crate::kernel::cgroup::Mount;
use kiam_common::http_client::{self, HttpError};

const LIMIT: Duration = Duration::from_secs(2);
const METADATA: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254)), 80);
/// The real service's list is far shorter.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Processes that are looked at, to find one in a pod.
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
            format!("{host} is no address that pods reach"),
            "--host must be an IPv4 address of the node, and not its loopback",
        );
    }
    match UdpSocket::bind((host, 0)) {
        Ok(_) => Finding::ok(CHECK, format!("{host} is this node's")),
        Err(error) => Finding::fail(
            CHECK,
            format!("{host} is not this node's: {error}"),
            "set HOST_IP from status.hostIP, and hostNetwork: true",
        ),
    }
}

/// Connects from a pod's network namespace to the agent.
fn from_a_pod(pods: &Path, agent: SocketAddr) -> Finding {
    const CHECK: &str = "agent from a pod";
    const ENTER: &str =
        "run this as root on the node to try it (CAP_SYS_ADMIN and the node's process ids)";
    let Some(netns) = netns_of_a_pod(pods) else {
        return Finding::warn(CHECK, "no pod's network can be seen from here", ENTER);
    };
    let connect = move || -> Result<io::Result<TcpStream>, nix::Error> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(TcpStream::connect_timeout(&agent, LIMIT))
    };
    // A thread's namespace is its own.
    match std::thread::spawn(connect).join() {
        Ok(Ok(Ok(_))) => Finding::ok(CHECK, format!("{agent} answers")),
        Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::fail(
            CHECK,
            format!("{agent} is reached, and nobody listens"),
            "start the agent; until then pods are refused",
        ),
        Ok(Ok(Err(error))) => Finding::fail(
            CHECK,
            format!("{agent} is not reached: {error}"),
            "a firewall or network policy of the node must let pods connect to it",
        ),
        Ok(Err(error)) => Finding::warn(
            CHECK,
            format!("cannot enter a pod's network: {error}"),
            ENTER,
        ),
        Err(_panic) => Finding::warn(CHECK, "the attempt has failed", ENTER),
    }
}

/// The first pod's that has one of its own.
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

/// Rules that kiam's and kube2iam's agents make, which would win over, or be in the way.
fn rules(redirect: Redirect) -> Finding {
    const CHECK: &str = "iptables";
    let saved = Command::new("iptables-save").args(["-t", "nat"]).output();
    match saved {
        Ok(output) if output.status.success() => {
            let rules = redirects(&String::from_utf8_lossy(&output.stdout), redirect);
            if rules.is_empty() {
                return Finding::ok(CHECK, "no rule for the metadata service");
            }
            Finding::warn(
                CHECK,
                format!("rules for the metadata service: {}", rules.join("; ")),
                "another agent (kiam, kube2iam) runs here or has left them; once it is gone, remove them with \
                 `iptables -t nat -D …`. The kernel programs redirect before any rule is asked",
            )
        }
        Ok(output) => Finding::warn(
            CHECK,
            format!(
                "iptables-save failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            "run this as root on the node to look for rules of other agents",
        ),
        Err(_) => Finding::ok(
            CHECK,
            "no iptables-save here to look for other agents' rules with",
        ),
    }
}

/// With `--redirect=iptables` an agent's own rules are not others'.
fn redirects(saved: &str, redirect: Redirect) -> Vec<String> {
    let own = format!("-j {CHAIN}");
    let rules = saved.lines().filter(|line| line.starts_with("-A "));
    let rules = rules.filter(|rule| rule.contains("169.254.169.254") && rule.contains("-j "));
    let others = rules.filter(|rule| redirect == Redirect::Ebpf || !rule.ends_with(&own));
    others.map(str::to_owned).collect()
}

async fn metadata_service() -> Finding {
    const CHECK: &str = "metadata service";
    let asked = tokio::time::timeout(LIMIT, status()).await;
    match asked {
        Ok(Ok(401)) => Finding::ok(
            CHECK,
            "the node's own is there and takes IMDSv2 only; keep its hop limit at 1 (HttpPutResponseHopLimit)",
        ),
        Ok(Ok(status)) => Finding::warn(
            CHECK,
            format!("the node's own is there and answers without a token ({status})"),
            "what the guard does not see (AF_PACKET, other CNIs) is stopped by IMDSv2 with a hop limit of 1: aws ec2 \
             modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 1",
        ),
        Ok(Err(error)) => Finding::ok(CHECK, format!("the node has none ({error})")),
        Err(_) => Finding::ok(CHECK, "the node has none (no answer)"),
    }
}

async fn status() -> Result<u16, HttpError> {
    let request = http::Request::get("/latest/meta-data/")
        .header(http::header::HOST, METADATA.ip().to_string())
        .body(Empty::new())
        .expect("a path and a host are always a request");
    let answer = http_client::send(METADATA, request, MAX_ANSWER_BYTES).await?;
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
        // Left by an agent that redirected so.
        let found = redirects(saved, Redirect::Ebpf);
        assert_eq!(found.len(), 2);
        assert!(found[1].contains(CHAIN), "{found:?}");
    }
}
