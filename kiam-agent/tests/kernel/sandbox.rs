//! A node and its pods, of network namespaces and cgroups that are removed with them.
//!
//! ```text
//! node    10.99.0.1  fd99::1   the agent; 169.254.169.254 and fd00:ec2::254 on its loopback
//! pods    10.99.0.2, .3, …     their default route is the node
//! ```

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kiam_agent::kernel::cgroup::Mount;
use kiam_agent::kernel::own_netns_cookie;
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;
use testbed::sandbox::{Bpffs, patient};
use tokio_util::sync::CancellationToken;

use crate::Test;

const CLIENT: &str = include_str!("client.py");
const MARKER: u16 = 9;
/// Longer than anything here takes.
pub(crate) fn patience() -> Duration {
    patient(Duration::from_secs(10))
}

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const AGENT: SocketAddrV4 = SocketAddrV4::new(NODE, 8181);
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const METADATA_V6: &str = "fd00:ec2::254";

pub(crate) const TESTS: &[Test] = &[("ends_what_runs_beside_steps_that_panic", steps_that_panic)];

fn steps_that_panic() {
    let panicked = std::panic::catch_unwind(|| {
        let runs = |stop: CancellationToken| {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(stop.cancelled());
        };
        beside(runs, || panic!("the reason"));
    });
    let reason = panicked.unwrap_err();
    assert_eq!(reason.downcast_ref(), Some(&"the reason"));
}

/// What is missing on this machine, if anything.
pub(crate) fn missing() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("root is needed".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF".to_owned());
    }
    for tool in [
        "ip -V",
        "nsenter -V",
        "setpriv -V",
        "python3 -V",
        "iptables-nft -V",
        "iptables-legacy -V",
    ] {
        let mut words = tool.split(' ');
        let found = Command::new(words.next()?).args(words).output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Some(format!("`{tool}` does not work"));
        }
    }
    Mount::find().err().map(|error| error.to_string())
}

/// Runs something on a thread beside a test's steps, until these end: also by a panic, which the
/// thread's end would be awaited after, for ever.
pub(crate) fn beside<T>(
    runs: impl FnOnce(CancellationToken) + Send,
    steps: impl FnOnce() -> T,
) -> T {
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let _stop = stop.clone().drop_guard();
        scope.spawn(move || runs(stop));
        steps()
    })
}

/// A pod's network namespace and cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) address: Ipv4Addr,
    pub(crate) uid: &'static str,
}

/// A node. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    cgroup: PathBuf,
    bpffs: Bpffs,
    pods: u8,
}

/// What the client reports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) peer: Option<(String, u16)>,
    pub(crate) local: Option<(String, u16)>,
    pub(crate) heard: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) count: Option<u32>,
}

/// A client that is running.
#[derive(Debug)]
pub(crate) struct Client(Child);

impl Node {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kiam-test-{}-{number}", std::process::id());
        let cgroup = Mount::find().unwrap().path().join(&name);
        let node = Self {
            name,
            cgroup,
            bpffs: Bpffs::new().unwrap(),
            pods: 0,
        };
        fs::create_dir_all(node.pods_cgroup()).unwrap();
        ip(&format!("netns add {}", node.netns()));
        node.ip("link set lo up");
        node.ip("link add br0 type bridge");
        node.ip("link set br0 up");
        for address in ["10.99.0.1/24", "fd99::1/64 nodad"] {
            node.ip(&format!("addr add {address} dev br0"));
        }
        for address in ["169.254.169.254/32", "fd00:ec2::254/128 nodad"] {
            node.ip(&format!("addr add {address} dev lo"));
        }
        node
    }

    pub(crate) fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    pub(crate) fn netns(&self) -> String {
        format!("{}-node", self.name)
    }

    pub(crate) fn ip(&self, command: &str) {
        ip(&format!("-n {} {command}", self.netns()));
    }

    /// The cgroup of all pods.
    pub(crate) fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("kubepods.slice")
    }

    /// A cgroup of the node's own, beside the pods'.
    pub(crate) fn other_cgroup(&self) -> PathBuf {
        let other = self.cgroup.join("system.slice");
        fs::create_dir_all(&other).unwrap();
        other
    }

    /// Adds a pod, in the cgroup that the systemd driver gives it.
    pub(crate) fn pod(&mut self, uid: &'static str) -> Pod {
        self.pods += 1;
        let number = self.pods;
        let netns = format!("{}-pod{number}", self.name);
        let mac = format!("02:00:00:00:00:{number:02x}");
        ip(&format!("netns add {netns}"));
        self.ip(&format!(
            "link add pod{number} type veth peer name eth0 address {mac} netns {netns}"
        ));
        self.ip(&format!("link set pod{number} master br0 up"));
        let address = Ipv4Addr::new(10, 99, 0, 1 + number);
        // As CNIs do that hand out addresses: no pod answers for another's.
        self.ip(&format!("neigh add {address} lladdr {mac} dev br0"));
        for command in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {address}/24 dev eth0"),
            format!("addr add fd99::{}/64 dev eth0 nodad", 1 + number),
            "route add default via 10.99.0.1".to_owned(),
            "-6 route add default via fd99::1".to_owned(),
        ] {
            ip(&format!("-n {netns} {command}"));
        }
        let dashed = uid.replace('-', "_");
        let cgroup = self.pods_cgroup().join(format!(
            "kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-{number}.scope"
        ));
        fs::create_dir_all(&cgroup).unwrap();
        Pod {
            netns,
            cgroup,
            address,
            uid,
        }
    }

    /// A process of a `hostNetwork` pod.
    pub(crate) fn host_network_pod(&mut self, uid: &'static str) -> Pod {
        let pod = self.pod(uid);
        Pod {
            netns: self.netns(),
            address: NODE,
            ..pod
        }
    }

    /// Does something in the node's network namespace.
    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        run_in(&self.netns(), what)
    }

    /// Moves the metadata service out of the node, to where the node sends packets for it as it
    /// does to any other: a network namespace, whose name this is.
    pub(crate) fn move_metadata_away(&mut self) -> String {
        let service = self.pod("the-metadata-service");
        self.run(|| {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
            }
        });
        let last = service.address.octets()[3];
        for (family, address, via) in [
            ("-4", "169.254.169.254/32", service.address.to_string()),
            ("-6", "fd00:ec2::254/128", format!("fd99::{last:x}")),
        ] {
            self.ip(&format!("addr del {address} dev lo"));
            self.ip(&format!("{family} route add {address} via {via}"));
            service.ip(&format!("addr add {address} dev lo"));
        }
        service.netns
    }

    pub(crate) fn netns_cookie(&self) -> u64 {
        self.run(|| own_netns_cookie().unwrap())
    }

    /// Accepts connections in the node's network namespace.
    pub(crate) fn listen(&self, address: impl Into<SocketAddr>) -> Listener {
        let address = address.into();
        let listener = self.run(|| TcpListener::bind(address).unwrap());
        Listener::new(listener)
    }

    /// Counts the packets to the metadata service that arrive at the node while `pod` does
    /// something.
    pub(crate) fn count(&self, pod: &Pod, what: impl FnOnce()) -> u32 {
        let netns = self.netns();
        let mut sniffer = start(
            &netns,
            &self.other_cgroup(),
            &["sniff", &MARKER.to_string()],
        );
        let mut lines = BufReader::new(sniffer.0.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        what();
        let marker = pod.run(&["udp", &NODE.to_string(), &MARKER.to_string()]);
        assert_eq!(marker.error, None);
        let report: Report = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        sniffer.0.wait().unwrap();
        report.count.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Processes first: a namespace lives as long as one.
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for netns in (1..=self.pods)
            .map(|number| format!("{}-pod{number}", self.name))
            .chain([self.netns()])
        {
            let _ = Command::new("ip").args(["netns", "del", &netns]).output();
        }
        for _ in 0..100 {
            remove_tree(&self.cgroup);
            if !self.cgroup.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Does something in a network namespace.
pub(crate) fn run_in<T: Send>(netns: &str, what: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(format!("/run/netns/{netns}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        });
        thread.join().unwrap()
    })
}

/// Removes what test processes have left that were killed.
pub(crate) fn sweep() {
    let Ok(mount) = Mount::find() else { return };
    let dead = |name: &str| {
        let id = name.strip_prefix("kiam-test-")?.split('-').next()?;
        let id: u32 = id.parse().ok()?;
        (!Path::new(&format!("/proc/{id}")).exists()).then_some(())
    };
    let left = |folder: &Path| -> Vec<String> {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| dead(name).is_some())
            .collect()
    };
    for name in left(mount.path()) {
        let cgroup = mount.path().join(name);
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        remove_tree(&cgroup);
    }
    for name in left(Path::new("/run/netns")) {
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

impl Pod {
    /// Runs the client in the pod, to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Report {
        self.start(args).end()
    }

    /// Starts the client in the pod.
    pub(crate) fn start(&self, args: &[&str]) -> Client {
        start(&self.netns, &self.cgroup, args)
    }

    /// The same pod's network, but a process in another cgroup.
    pub(crate) fn within(&self, cgroup: &Path) -> Self {
        fs::create_dir_all(cgroup).unwrap();
        Self {
            cgroup: cgroup.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn ip(&self, command: &str) {
        ip(&format!("-n {} {command}", self.netns));
    }

    pub(crate) fn cgroup_id(&self) -> u64 {
        fs::metadata(&self.cgroup).unwrap().ino()
    }
}

impl Client {
    pub(crate) fn end(self) -> Report {
        let output = self.0.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let report = said
            .lines()
            .last()
            .and_then(|line| serde_json::from_str(line).ok());
        report.unwrap_or_else(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            panic!("the client failed ({}): {said}{error}", output.status)
        })
    }
}

fn start(netns: &str, cgroup: &Path, args: &[&str]) -> Client {
    // The shell moves itself before the client makes a socket: that is when a socket gets its
    // cgroup.
    let script = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;
    let child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(cgroup)
        .args(["nsenter", &format!("--net=/run/netns/{netns}")])
        .args(["/usr/bin/env", "python3", "-I", "-S", "-c", CLIENT])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Client(child.unwrap())
}

fn ip(command: &str) {
    let output = Command::new("ip")
        .args(command.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Accepts connections; dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    accepted: Receiver<(TcpStream, SocketAddr)>,
}

impl Listener {
    fn new(socket: TcpListener) -> Self {
        let (send, accepted) = channel();
        let accepting = socket.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok(connection) = accepting.accept() {
                if send.send(connection).is_err() {
                    return;
                }
            }
        });
        Self { socket, accepted }
    }

    pub(crate) fn accept(&self) -> (TcpStream, SocketAddr) {
        self.accepted.recv_timeout(patience()).unwrap()
    }

    /// Whether nobody has come.
    pub(crate) fn is_lonely(&self) -> bool {
        self.accepted.try_recv().is_err()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd as _;
        let _ =
            nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}
