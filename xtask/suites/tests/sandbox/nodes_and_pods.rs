//! The sandbox itself, on which the other tests rely.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::fixture::{eventually, get, try_get};
use testbed::probe::Outcome;
use testbed::sandbox::{CgroupDriver, NodeOptions, PodOptions, Program, Qos, Sandbox, run};
use toolchain::exec;

const LIMIT: Duration = Duration::from_secs(20);

/// Answers every connection with the address of its peer.
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

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pods_reach_their_node_the_control_plane_and_other_nodes() {
    let sandbox = Sandbox::new().unwrap();
    let first = sandbox.node("node-1", NodeOptions::default()).unwrap();
    let second = sandbox.node("node-2", NodeOptions::default()).unwrap();
    let pod = first.pod(PodOptions::default()).unwrap();
    let other = second.pod(PodOptions::default()).unwrap();
    let (v4, v6) = (
        pod.ip().context("v4").unwrap().to_string(),
        pod.ipv6().context("v6").unwrap().to_string(),
    );

    for (netns, address, from) in [
        (sandbox.control().netns(), "10.0.0.1:80", &v4),
        (sandbox.control().netns(), "[fd00:10::1]:80", &v6),
        (first.place().netns(), "10.0.1.1:80", &v4),
        (second.place().netns(), "10.0.1.2:80", &v4),
        (other.place().netns(), "10.102.0.1:80", &v4),
        (other.place().netns(), "[fd00:10:2::1]:80", &v6),
    ] {
        let address: SocketAddr = address.parse().unwrap();
        echo(netns.listen(address).unwrap());
        let answer = try_get(pod.place(), &format!("http://{address}/")).answer();
        let answer = answer.with_context(|| format!("asking {address}")).unwrap();
        assert!(
            answer.body == *from,
            "{address} saw {}, not {from}",
            answer.body
        );
    }
    // Nothing is redirected yet: a pod reaches the metadata service of its node.
    for listener in first.listen_at_metadata_service().unwrap() {
        let address = listener.local_addr().unwrap();
        echo(listener);
        let answer = get(pod.place(), &format!("http://{address}/"));
        assert!(answer.status == 200, "{answer:?}");
        let none = try_get(other.place(), &format!("http://{address}/"));
        assert!(
            matches!(none, Outcome::Failure(_)),
            "a node's is only its pods'"
        );
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_program_runs_in_the_namespace_and_cgroup_of_its_pod() {
    let sandbox = Sandbox::new().unwrap();
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let name = format!("{driver:?}").to_lowercase();
        let node = sandbox
            .node(
                &name,
                NodeOptions {
                    driver,
                    ..Default::default()
                },
            )
            .unwrap();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = node
                .pod(PodOptions {
                    qos,
                    ..Default::default()
                })
                .unwrap();
            let mut command = pod.place().command("sh");
            command.args([
                "-c",
                "cat /proc/self/cgroup; ip -brief address; echo $0 $PPID",
                "a b",
            ]);
            let ended = run("sh", command, LIMIT).unwrap();
            assert!(ended.status.success(), "{ended:?}");
            let cgroup = pod.place().cgroup().path();
            let own = cgroup.strip_prefix(mount_of(cgroup)).unwrap();
            assert!(
                ended.stdout.contains(&format!("0::/{}\n", own.display())),
                "{ended:?}"
            );
            assert!(
                own.starts_with(
                    node.kubepods()
                        .path()
                        .strip_prefix(mount_of(cgroup))
                        .unwrap()
                )
            );
            let ip = pod.ip().context("it has an address").unwrap().to_string();
            assert!(
                ended.stdout.contains(&ip) && ended.stdout.contains("a b "),
                "{ended:?}"
            );
        }
    }
}

/// The cgroup2 mount of a sandbox's cgroup: the parent of `kiam-test-…`.
#[track_caller]
fn mount_of(cgroup: &Path) -> &Path {
    let top = cgroup.ancestors().find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("kiam-test-"))
    });
    top.and_then(Path::parent).expect("a cgroup of a sandbox")
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_removed_pod_frees_its_address_at_once() {
    let sandbox = Sandbox::new().unwrap();
    let node = sandbox.node("node-1", NodeOptions::default()).unwrap();
    echo(
        sandbox
            .control()
            .netns()
            .listen("10.0.0.1:80".parse().unwrap())
            .unwrap(),
    );
    let pods = (0..20)
        .map(|_| node.pod(PodOptions::default()))
        .collect::<Result<Vec<_>>>()
        .unwrap();
    let ip = pods[7].ip();
    let mut sleeper = Program::start("sleep", {
        let mut command = pods[7].place().command("sleep");
        command.arg("60");
        command
    })
    .unwrap();
    let gone = pods[7].place().cgroup().path().to_owned();
    assert!(sleeper.try_status().unwrap().is_none());
    drop(pods);
    let ended = sleeper.finish(LIMIT).unwrap();
    assert!(!ended.status.success(), "it was killed with its pod");
    assert!(!gone.exists(), "{} is still there", gone.display());

    let again = node
        .pod(PodOptions {
            ip,
            ..Default::default()
        })
        .unwrap();
    let answer = get(again.place(), "http://10.0.0.1/");
    assert!(Some(answer.body.as_str()) == ip.map(|ip| ip.to_string()).as_deref());
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn host_network_pods_share_the_namespace_of_their_node() {
    let sandbox = Sandbox::new().unwrap();
    let node = sandbox.node("node-1", NodeOptions::default()).unwrap();
    echo(
        sandbox
            .control()
            .netns()
            .listen("10.0.0.1:80".parse().unwrap())
            .unwrap(),
    );
    let pod = node
        .pod(PodOptions {
            host_network: true,
            ..Default::default()
        })
        .unwrap();
    let answer = get(pod.place(), "http://10.0.0.1/");
    assert!(answer.body == node.ip().to_string(), "{answer:?}");
    assert!(
        pod.place()
            .cgroup()
            .path()
            .starts_with(node.kubepods().path())
    );
}

/// Namespaces of sandboxes of this process, and this sandbox if it exists.
#[track_caller]
fn remains(pid: u32, sandbox: &Path) -> Vec<String> {
    let mut remains = Vec::new();
    let netns = exec(Command::new("ip").args(["netns", "list"])).unwrap();
    let ours = netns
        .lines()
        .filter(|name| name.starts_with(&format!("kiam-{pid}-")));
    remains.extend(ours.map(str::to_owned));
    if sandbox.exists() {
        remains.push(sandbox.display().to_string());
    }
    remains
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_dropped_sandbox_leaves_nothing_behind() {
    // In another process, because other tests of this one have sandboxes, too.
    let (pid, cgroup, scratch, owner) = owned_by_another(&["--exit"]);
    let ended = owner.finish(LIMIT).unwrap();
    assert!(ended.status.success(), "{ended:?}");
    for path in [&cgroup, &scratch] {
        assert!(
            remains(pid, Path::new(path)).is_empty(),
            "{:?}",
            remains(pid, Path::new(path))
        );
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_sandbox_of_a_killed_process_is_removed() {
    let (pid, cgroup, scratch, owner) = owned_by_another(&[]);
    assert!(
        !remains(pid, Path::new(&cgroup)).is_empty(),
        "there is something to remove"
    );
    owner.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    // Nothing reports the end of the janitor of another process.
    eventually(|| {
        let left = [
            remains(pid, Path::new(&cgroup)),
            remains(pid, Path::new(&scratch)),
        ];
        let left = left.concat();
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok(())
    });
}

/// Starts a process that owns a sandbox with a pod. Returns its id, the sandbox's cgroup and
/// scratch folder, and the process.
#[track_caller]
fn owned_by_another(exit: &[&str]) -> (u32, String, String, Program) {
    let mut command = Command::new(testbed::kiam::xtask().unwrap());
    command.args(["sandbox"]).args(exit);
    let owner = Program::start("xtask sandbox", command).unwrap();
    let line = owner
        .wait_for("sandbox", LIMIT, |line| {
            line.strip_prefix("made ").map(str::to_owned)
        })
        .unwrap();
    let (cgroup, scratch) = line.split_once(' ').context("two paths").unwrap();
    (owner.pid(), cgroup.to_owned(), scratch.to_owned(), owner)
}
