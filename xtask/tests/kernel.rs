//! The kernel programs in a real kernel: what pods try, and what comes of it.
//!
//! Counted where it matters: by a witness that sees every packet on the node's interfaces, and by
//! a listener that stands for the agent and says whom the kernel named. The clients are Python's
//! sockets, which are the kernel's.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiam_agent::caller::{Identify as _, KernelIdentity};
use kiam_agent::kernel::cgroup::{Mount, Pods};
use kiam_agent::kernel::{Programs, Redirect, own_netns_cookie};
use kiam_ebpf::Verdict;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use socket2::{Domain, Protocol, Socket, Type};
use xtask::sandbox::{
    self, CgroupDriver, Node, NodeOptions, Place, Pod, PodOptions, Qos, Runtime, Sandbox,
};

const PORT: u16 = 8181;
const LIMIT: Duration = Duration::from_secs(20);
/// `ETH_P_ALL`: packets of every protocol.
const EVERY_PROTOCOL: u16 = 0x0003;

type Test = fn() -> anyhow::Result<()>;

fn main() -> ExitCode {
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::from_args()
    };
    let tests: [(&str, Test); 8] = [
        (
            "connects_are_redirected_and_attested",
            connects_are_redirected_and_attested,
        ),
        (
            "the_application_sees_the_address_that_it_asked_for",
            peernames,
        ),
        (
            "nothing_else_reaches_the_metadata_service",
            nothing_else_gets_out,
        ),
        (
            "without_a_configuration_everything_is_refused",
            unconfigured,
        ),
        ("forged_packets_attest_nobody", forged),
        (
            "a_child_cgroup_named_like_a_pod_is_still_its_pod_s",
            child_cgroups,
        ),
        (
            "the_node_s_own_network_keeps_the_real_service",
            host_network,
        ),
        ("every_driver_and_class_is_known", drivers_and_classes),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::ignorable_test(name, move || {
            if let Some(missing) = sandbox::missing() {
                return Ok(Completion::ignored_with(missing));
            }
            test()
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:?}")))
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A node whose agent is the programs and a listener that answers with the caller's pod.
struct Stage {
    a: Pod,
    b: Pod,
    programs: Option<Programs>,
    witnessed: Arc<AtomicU64>,
    node: Node,
    _sandbox: Sandbox,
}

impl Stage {
    fn bare(options: NodeOptions) -> anyhow::Result<Self> {
        let sandbox = Sandbox::new()?;
        let node = sandbox.node("node-1", options)?;
        let a = node.pod(PodOptions::default())?;
        let b = node.pod(PodOptions::default())?;
        let witnessed = witness(&node)?;
        for listener in node.listen_at_metadata_service()? {
            std::thread::spawn(move || while listener.accept().is_ok() {});
        }
        Ok(Self {
            a,
            b,
            programs: None,
            witnessed,
            node,
            _sandbox: sandbox,
        })
    }

    fn attached(options: NodeOptions) -> anyhow::Result<Self> {
        let mut stage = Self::bare(options)?;
        let cookie = stage.node.place().netns().run(own_netns_cookie)??;
        let programs = Programs::attach(&Redirect {
            pods: stage.pods_cgroup(),
            agent: stage.agent(),
            host_netns_cookie: cookie,
        })?;
        let mount = Mount::of(&stage.pods_cgroup())?;
        let pods = Pods::new(&mount, &stage.pods_cgroup())?;
        let identity = KernelIdentity::new(programs.attestor(), pods);
        let listener = stage.node.place().netns().listen(stage.agent().into())?;
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let answer = match identity.identify(peer) {
                    Ok(pod) => pod.to_string(),
                    Err(refusal) => refusal.as_label().to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        stage.programs = Some(programs);
        Ok(stage)
    }

    fn pods_cgroup(&self) -> std::path::PathBuf {
        self.node.kubepods().path().to_owned()
    }

    fn agent(&self) -> SocketAddrV4 {
        let IpAddr::V4(ip) = self.node.ip() else {
            unreachable!("nodes are on IPv4")
        };
        SocketAddrV4::new(ip, PORT)
    }

    /// What a place's Python prints: the answer, or the name of the error.
    fn python(&self, place: &Place, body: &str) -> anyhow::Result<String> {
        const FRAME: &str = "
import socket, struct, sys, os
def connect(address, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect(address)
        return s.recv(200).decode()
def attempt(what):
    try:
        print(what())
    except OSError as error:
        print(type(error).__name__)
";
        let agent = self.agent();
        let constants = format!("HOST, PORT = '{}', {}\n", agent.ip(), agent.port());
        let mut command = place.command("python3");
        command.args(["-c", &format!("{FRAME}{constants}{body}")]);
        let finished = sandbox::run("python3", command, LIMIT)?;
        anyhow::ensure!(finished.status.success(), "python3: {}", finished.stderr);
        Ok(finished.stdout.trim().to_owned())
    }

    fn count(&self, verdict: Verdict) -> anyhow::Result<u64> {
        let programs = self.programs.as_ref().expect("attached");
        let counts = programs.verdicts()?;
        Ok(counts
            .into_iter()
            .find(|(of, _)| *of == verdict)
            .map_or(0, |(_, count)| count))
    }

    fn witnessed(&self) -> u64 {
        // What was sent is on the interface when sendto returns; the witness then has to read it.
        std::thread::sleep(Duration::from_millis(100));
        self.witnessed.load(Ordering::SeqCst)
    }
}

/// Counts the packets to the metadata service on all interfaces of the node, of every kind.
fn witness(node: &Node) -> anyhow::Result<Arc<AtomicU64>> {
    let all = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
    let netns = node.place().netns();
    let socket = netns.run(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(all)))??;
    let count = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 128];
        while let Ok(length) = (&socket).read(&mut buffer) {
            let read = &buffer[..length];
            let v4 = read.get(16..20) == Some([169, 254, 169, 254].as_slice());
            let v6 = read.get(24..40)
                == Some([0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54].as_slice());
            if (read.first().is_some_and(|b| b >> 4 == 4) && v4)
                || (read.first().is_some_and(|b| b >> 4 == 6) && v6)
            {
                counting.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    Ok(count)
}

fn connects_are_redirected_and_attested() -> anyhow::Result<()> {
    let stage = Stage::attached(NodeOptions::default())?;
    let before = stage.witnessed();
    for pod in [&stage.a, &stage.b] {
        for connect in [
            "connect(('169.254.169.254', 80))",
            "connect(('::ffff:169.254.169.254', 80), socket.AF_INET6)",
            "connect(('fd00:ec2::254', 80), socket.AF_INET6)",
            // Who goes to the agent by himself is attested all the same.
            "connect((HOST, PORT))",
            "connect(('::ffff:' + HOST, PORT), socket.AF_INET6)",
        ] {
            let said = stage.python(pod.place(), &format!("attempt(lambda: {connect})"))?;
            assert_eq!(said, pod.uid(), "{connect}");
        }
    }
    // Bound first, connected without waiting, and connected once more on the same socket.
    let body = "
def bound():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', 0))
    s.setblocking(False)
    try:
        s.connect(('169.254.169.254', 80))
    except BlockingIOError:
        pass
    import select
    select.select([s], [], [], 5)
    s.setblocking(True)
    return s.recv(200).decode()
attempt(bound)
";
    assert_eq!(stage.python(stage.a.place(), body)?, stage.a.uid());
    // TCP Fast Open and Multipath TCP take other ways through the kernel.
    let fast_open = "
def fast_open():
    s = socket.socket()
    s.sendto(b'GET', socket.MSG_FASTOPEN, ('169.254.169.254', 80))
    return s.recv(200).decode()
attempt(fast_open)
";
    assert_eq!(stage.python(stage.a.place(), fast_open)?, stage.a.uid());
    let multipath = "
def multipath():
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    s.settimeout(5)
    s.connect(('169.254.169.254', 80))
    return s.recv(200).decode()
attempt(multipath)
";
    let said = stage.python(stage.a.place(), multipath)?;
    // A kernel may be built without it.
    assert!(said == stage.a.uid() || said == "OSError", "{said}");
    assert!(stage.count(Verdict::Redirected)? >= 8);
    // A process of the node goes where it wants; it is no pod.
    let said = stage.python(stage.node.place(), "attempt(lambda: connect((HOST, PORT)))")?;
    assert_eq!(said, "unattested");
    assert_eq!(stage.witnessed(), before);
    Ok(())
}

fn peernames() -> anyhow::Result<()> {
    let stage = Stage::attached(NodeOptions::default())?;
    for (family, asked, expected) in [
        ("AF_INET", "('169.254.169.254', 80)", "169.254.169.254 80"),
        (
            "AF_INET6",
            "('::ffff:169.254.169.254', 80)",
            "::ffff:169.254.169.254 80",
        ),
        ("AF_INET6", "('fd00:ec2::254', 80)", "fd00:ec2::254 80"),
        (
            "AF_INET",
            "(HOST, PORT)",
            &format!("{} {PORT}", stage.agent().ip()),
        ),
    ] {
        let body = format!(
            "
s = socket.socket(socket.{family})
s.connect({asked})
print(*s.getpeername()[:2])
"
        );
        assert_eq!(stage.python(stage.a.place(), &body)?, expected, "{asked}");
    }
    Ok(())
}

/// What else a pod can send to the metadata service, as Python.
const OTHER_WAYS: &str = r"
def udp(): return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x' * 9, ('169.254.169.254', 80))
def udp_mapped(): return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x' * 9, ('::ffff:169.254.169.254', 53))
def udp6(): return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x' * 9, ('fd00:ec2::254', 80))
def udp_connected():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(('169.254.169.254', 80))
    return s.send(b'x')
def icmp(): return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b'\x08\0\xf7\xff\0\0\0\0', ('169.254.169.254', 0))
def raw_tcp(): return socket.socket(socket.AF_INET, socket.SOCK_RAW, 6).sendto(struct.pack('!HHIIBBHHH', 999, 80, 1, 0, 80, 2, 999, 0, 0), ('169.254.169.254', 0))
def header_included():
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    ip = struct.pack('!BBHHHBBH4s4s', 69, 0, 40, 1, 0, 64, 6, 0, socket.inet_aton('0.0.0.0'), socket.inet_aton('169.254.169.254'))
    return s.sendto(ip + struct.pack('!HHIIBBHHH', 999, 80, 1, 0, 80, 2, 999, 0, 0), ('169.254.169.254', 0))
def options():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b'\x01' * 4)
    return s.sendto(b'x', ('169.254.169.254', 80))
def raw6(): return socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58).sendto(b'\x80\0\0\0\0\0\0\0', ('fd00:ec2::254', 0))
for way in [udp, udp_mapped, udp6, udp_connected, icmp, raw_tcp, header_included, options, raw6]:
    print(way.__name__, end=' ')
    attempt(way)
";

/// Other ports of TCP are refused where they connect.
const OTHER_PORTS: &str = "
for port in [79, 81, 443, 8181]:
    attempt(lambda: connect(('169.254.169.254', port)))
    attempt(lambda: connect(('fd00:ec2::254', port), socket.AF_INET6))
";

fn nothing_else_gets_out() -> anyhow::Result<()> {
    // First without the programs: the witness sees what is sent, so it would see a leak.
    let bare = Stage::bare(NodeOptions::default())?;
    let before = bare.witnessed();
    let said = bare.python(bare.a.place(), OTHER_WAYS)?;
    let sent = bare.witnessed() - before;
    assert!(sent >= 9, "the witness saw {sent} packets of:\n{said}");
    assert!(!said.contains("Error"), "{said}");
    drop(bare);

    let stage = Stage::attached(NodeOptions::default())?;
    let before = stage.witnessed();
    let said = stage.python(stage.a.place(), OTHER_WAYS)?;
    assert_eq!(said.matches("PermissionError").count(), 9, "{said}");
    let said = stage.python(stage.a.place(), OTHER_PORTS)?;
    assert_eq!(said.matches("PermissionError").count(), 8, "{said}");
    assert_eq!(stage.witnessed(), before);
    assert!(stage.count(Verdict::PacketDropped)? >= 8);
    assert!(stage.count(Verdict::ConnectRefused)? >= 9);
    // Others are reached as ever.
    let reached = "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(s.sendto(b'x', (HOST, 53)))
";
    assert_eq!(stage.python(stage.a.place(), reached)?, "1");
    Ok(())
}

fn unconfigured() -> anyhow::Result<()> {
    let mut stage = Stage::bare(NodeOptions::default())?;
    stage.programs = Some(Programs::attach_unconfigured(&stage.pods_cgroup())?);
    let before = stage.witnessed();
    for connect in [
        "connect(('169.254.169.254', 80))",
        "connect(('::ffff:169.254.169.254', 80), socket.AF_INET6)",
        "connect(('fd00:ec2::254', 80), socket.AF_INET6)",
    ] {
        let said = stage.python(stage.a.place(), &format!("attempt(lambda: {connect})"))?;
        assert_eq!(said, "PermissionError", "{connect}");
    }
    let said = stage.python(stage.a.place(), OTHER_WAYS)?;
    assert_eq!(said.matches("PermissionError").count(), 9, "{said}");
    assert_eq!(stage.witnessed(), before);
    assert!(stage.count(Verdict::Unconfigured)? >= 3);
    Ok(())
}

fn forged() -> anyhow::Result<()> {
    let stage = Stage::attached(NodeOptions::default())?;
    // From its own address and from the other pod's: a SYN that no TCP socket sent.
    let victim = stage.b.ip().expect("on the pod network");
    let body = format!(
        "
import array
def checksum(data):
    total = sum(array.array('H', data if len(data) % 2 == 0 else data + b'\\0'))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
def forge(source):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)
    src, dst = socket.inet_aton(source), socket.inet_aton(HOST)
    tcp = struct.pack('!HHIIBBHHH', 40000, PORT, 1, 0, 80, 2, 999, 0, 0)
    ip = struct.pack('!BBHHHBBH4s4s', 69, 0, 40, 1, 0, 64, 6, 0, src, dst)
    return s.sendto(ip + tcp, (HOST, 0))
attempt(lambda: forge('{own}'))
attempt(lambda: forge('{victim}'))
",
        own = stage.a.ip().expect("on the pod network"),
    );
    let said = stage.python(stage.a.place(), &body)?;
    assert_eq!(said, "PermissionError\nPermissionError");
    assert_eq!(stage.count(Verdict::Forged)?, 2);
    assert_eq!(stage.count(Verdict::Attested)?, 0);
    // The victim connects from that very port, and is itself.
    let connect = "
s = socket.socket()
s.bind(('', 40000))
s.connect(('169.254.169.254', 80))
print(s.recv(200).decode())
";
    assert_eq!(stage.python(stage.b.place(), connect)?, stage.b.uid());
    Ok(())
}

fn child_cgroups() -> anyhow::Result<()> {
    let stage = Stage::attached(NodeOptions::default())?;
    let other = format!(
        "kubepods-burstable-pod{}.slice",
        stage.b.uid().replace('-', "_")
    );
    let inner = stage
        .a
        .place()
        .cgroup()
        .child(&other)?
        .child("cri-containerd-x.scope")?;
    let place = stage.a.place().with_cgroup(inner);
    let said = stage.python(&place, "attempt(lambda: connect(('169.254.169.254', 80)))")?;
    assert_eq!(said, stage.a.uid());
    Ok(())
}

fn host_network() -> anyhow::Result<()> {
    let stage = Stage::attached(NodeOptions::default())?;
    let pod = stage.node.pod(PodOptions {
        host_network: true,
        ..PodOptions::default()
    })?;
    let reached = "
s = socket.socket()
s.settimeout(5)
s.connect(('169.254.169.254', 80))
print(*s.getpeername())
";
    assert_eq!(stage.python(pod.place(), reached)?, "169.254.169.254 80");
    assert_eq!(stage.count(Verdict::HostNetwork)?, 1);
    assert_eq!(stage.count(Verdict::Redirected)?, 0);
    Ok(())
}

fn drivers_and_classes() -> anyhow::Result<()> {
    for (driver, runtime) in [
        (CgroupDriver::Systemd, Runtime::Containerd),
        (CgroupDriver::Systemd, Runtime::Crio),
        (CgroupDriver::Systemd, Runtime::Docker),
        (CgroupDriver::Cgroupfs, Runtime::Containerd),
    ] {
        let stage = Stage::attached(NodeOptions { driver, runtime })?;
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = stage.node.pod(PodOptions {
                qos,
                ..PodOptions::default()
            })?;
            let body = "attempt(lambda: connect(('169.254.169.254', 80)))";
            assert_eq!(
                stage.python(pod.place(), body)?,
                pod.uid(),
                "{driver:?} {qos:?}"
            );
        }
    }
    Ok(())
}
