//! The sandbox itself: what its tests stand on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::probe::{Outcome, Prober};
use testbed::sandbox::{CgroupDriver, NodeOptions, PodOptions, Program, Qos, Sandbox, run};
use toolchain::exec;

use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "rooms::pods_reach_their_node_the_control_plane_and_other_nodes",
        Needs::Sandbox,
        reachable,
    ),
    (
        "rooms::a_program_runs_in_its_pod_s_namespace_and_cgroup",
        Needs::Sandbox,
        places,
    ),
    (
        "rooms::pods_come_and_go_and_an_address_is_free_at_once",
        Needs::Sandbox,
        come_and_go,
    ),
    (
        "rooms::host_network_pods_share_their_node_s_namespace",
        Needs::Sandbox,
        host_network,
    ),
    (
        "rooms::nothing_is_left_behind",
        Needs::Sandbox,
        nothing_left,
    ),
    (
        "rooms::a_killed_owner_s_sandbox_is_removed",
        Needs::Sandbox,
        killed_owner,
    ),
];

const LIMIT: Duration = Duration::from_secs(20);

fn prober() -> Result<Prober> {
    Prober::new()
}

/// Answers every connection with the address it came from.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let from = stream
                .peer_addr()
                .map_or_else(|e| e.to_string(), |a| a.ip().to_string());
            let length = from.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{from}"
            );
        }
    });
}

fn reachable() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let first = sandbox.node("node-1", NodeOptions::default())?;
    let second = sandbox.node("node-2", NodeOptions::default())?;
    let pod = first.pod(PodOptions::default())?;
    let other = second.pod(PodOptions::default())?;
    let (v4, v6) = (
        pod.ip().context("v4")?.to_string(),
        pod.ipv6().context("v6")?.to_string(),
    );

    for (netns, address, from) in [
        (sandbox.control().netns(), "10.0.0.1:80", &v4),
        (sandbox.control().netns(), "[fd00:10::1]:80", &v6),
        (first.place().netns(), "10.0.1.1:80", &v4),
        (second.place().netns(), "10.0.1.2:80", &v4),
        (other.place().netns(), "10.102.0.1:80", &v4),
        (other.place().netns(), "[fd00:10:2::1]:80", &v6),
    ] {
        let address: SocketAddr = address.parse()?;
        echo(netns.listen(address)?);
        let answer = prober()?
            .get(pod.place(), &format!("http://{address}/"))?
            .answer();
        let answer = answer.with_context(|| format!("asking {address}"))?;
        ensure!(
            answer.body == *from,
            "{address} saw {}, not {from}",
            answer.body
        );
    }
    // No redirection is there yet: the node's own metadata service would be reached.
    for listener in first.listen_at_metadata_service()? {
        let address = listener.local_addr()?;
        echo(listener);
        let answer = prober()?
            .get(pod.place(), &format!("http://{address}/"))?
            .answer()?;
        ensure!(answer.status == 200, "{answer:?}");
        let none = prober()?.get(other.place(), &format!("http://{address}/"))?;
        ensure!(
            matches!(none, Outcome::Failure(_)),
            "a node's is only its pods'"
        );
    }
    Ok(())
}

fn places() -> Result<()> {
    let sandbox = Sandbox::new()?;
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let name = format!("{driver:?}").to_lowercase();
        let node = sandbox.node(
            &name,
            NodeOptions {
                driver,
                ..Default::default()
            },
        )?;
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = node.pod(PodOptions {
                qos,
                ..Default::default()
            })?;
            let mut command = pod.place().command("sh");
            command.args([
                "-c",
                "cat /proc/self/cgroup; ip -brief address; echo $0 $PPID",
                "a b",
            ]);
            let ended = run("sh", command, LIMIT)?;
            ensure!(ended.status.success(), "{ended:?}");
            let cgroup = pod.place().cgroup().path();
            let own = cgroup.strip_prefix(mount_of(cgroup)?)?;
            ensure!(
                ended.stdout.contains(&format!("0::/{}\n", own.display())),
                "{ended:?}"
            );
            ensure!(own.starts_with(node.kubepods().path().strip_prefix(mount_of(cgroup)?)?));
            let ip = pod.ip().context("it has an address")?.to_string();
            ensure!(
                ended.stdout.contains(&ip) && ended.stdout.contains("a b "),
                "{ended:?}"
            );
        }
    }
    Ok(())
}

/// The cgroup2 mount that a cgroup of a sandbox is in: above `kiam-test-…`.
fn mount_of(cgroup: &Path) -> Result<&Path> {
    let top = cgroup.ancestors().find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("kiam-test-"))
    });
    top.and_then(Path::parent).context("no cgroup of a sandbox")
}

fn come_and_go() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let node = sandbox.node("node-1", NodeOptions::default())?;
    echo(sandbox.control().netns().listen("10.0.0.1:80".parse()?)?);
    let pods = (0..20)
        .map(|_| node.pod(PodOptions::default()))
        .collect::<Result<Vec<_>>>()?;
    let ip = pods[7].ip();
    let mut sleeper = Program::start("sleep", {
        let mut command = pods[7].place().command("sleep");
        command.arg("60");
        command
    })?;
    let gone = pods[7].place().cgroup().path().to_owned();
    ensure!(sleeper.try_status()?.is_none());
    drop(pods);
    let ended = sleeper.finish(LIMIT)?;
    ensure!(!ended.status.success(), "it was killed with its pod");
    ensure!(!gone.exists(), "{} is still there", gone.display());

    let again = node.pod(PodOptions {
        ip,
        ..Default::default()
    })?;
    let answer = prober()?.get(again.place(), "http://10.0.0.1/")?.answer()?;
    ensure!(Some(answer.body.as_str()) == ip.map(|ip| ip.to_string()).as_deref());
    Ok(())
}

fn host_network() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let node = sandbox.node("node-1", NodeOptions::default())?;
    echo(sandbox.control().netns().listen("10.0.0.1:80".parse()?)?);
    let pod = node.pod(PodOptions {
        host_network: true,
        ..Default::default()
    })?;
    let answer = prober()?.get(pod.place(), "http://10.0.0.1/")?.answer()?;
    ensure!(answer.body == node.ip().to_string(), "{answer:?}");
    ensure!(
        pod.place()
            .cgroup()
            .path()
            .starts_with(node.kubepods().path())
    );
    Ok(())
}

/// What there is of a sandbox with this process id.
fn remains(pid: u32, sandbox: &Path) -> Result<Vec<String>> {
    let mut remains = Vec::new();
    let netns = exec(Command::new("ip").args(["netns", "list"]))?;
    let ours = netns
        .lines()
        .filter(|name| name.starts_with(&format!("kiam-{pid}-")));
    remains.extend(ours.map(str::to_owned));
    if sandbox.exists() {
        remains.push(sandbox.display().to_string());
    }
    Ok(remains)
}

fn nothing_left() -> Result<()> {
    // In a process of its own: others of this one have theirs.
    let (pid, cgroup, scratch, owner) = owned_by_another(&["--exit"])?;
    let ended = owner.finish(LIMIT)?;
    ensure!(ended.status.success(), "{ended:?}");
    for path in [&cgroup, &scratch] {
        ensure!(
            remains(pid, Path::new(path))?.is_empty(),
            "{:?}",
            remains(pid, Path::new(path))?
        );
    }
    Ok(())
}

fn killed_owner() -> Result<()> {
    let (pid, cgroup, scratch, owner) = owned_by_another(&[])?;
    ensure!(
        !remains(pid, Path::new(&cgroup))?.is_empty(),
        "there is something to remove"
    );
    owner.signal(nix::sys::signal::Signal::SIGKILL)?;
    let left = || {
        Ok::<_, anyhow::Error>(
            [
                remains(pid, Path::new(&cgroup))?,
                remains(pid, Path::new(&scratch))?,
            ]
            .concat(),
        )
    };
    // Nothing tells when another's janitor is done.
    for _ in 0..200 {
        if left()?.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("still there: {:?}", left()?)
}

/// A process that owns a sandbox with a pod and a program in it.
fn owned_by_another(exit: &[&str]) -> Result<(u32, String, String, Program)> {
    let mut command = Command::new(testbed::kiam::xtask()?);
    command.args(["sandbox"]).args(exit);
    let owner = Program::start("xtask sandbox", command)?;
    let line = owner.wait_for("sandbox", LIMIT, |line| {
        line.strip_prefix("made ").map(str::to_owned)
    })?;
    let (cgroup, scratch) = line.split_once(' ').context("two paths")?;
    Ok((owner.pid(), cgroup.to_owned(), scratch.to_owned(), owner))
}
