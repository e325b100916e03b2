//! `cargo xtask bench-ebpf`: the cost of the kernel programs to other traffic.
//!
//! A pod works with an address outside of its node, over real network namespaces, by turns with
//! nothing on the node, with the real agent's programs attached, and with an iptables rule like
//! kiam's in their place. The report has the medians, and the medians of the ratios within each
//! turn: other load of the machine affects both sides of a ratio.

mod counts;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use socket2::SockRef;
use toolchain::exec;

pub use counts::Count;
pub use pod_client::work::Work;

use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{self, METADATA_PORT, Programs};
use testbed::sandbox::{CONTROL_IP, NodeOptions, Place, Pod, Program, run as run_program};

const BULK_PORT: u16 = 7001;
const CONNECT_PORT: u16 = 7004;
const UDP_PORT: u16 = 7002;
const ACCEPT_PORT: u16 = 7003;
const LIMIT: Duration = Duration::from_secs(20);

/// Flags of `cargo xtask bench-ebpf`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Number of measurements of each kind
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub turns: u32,

    /// Duration of each measurement
    #[arg(long, default_value_t = 250, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(50..=5000))]
    pub time: u64,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Programs or rules on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Setting {
    Nothing,
    Ebpf,
    Iptables,
}

/// The figures. Ratios of work that a rate measures as time: above one is slower.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// TCP connect and close.
    pub tcp_connect_ratio: f64,
    /// Sending 16 bytes by UDP.
    pub udp_send_ratio: f64,
    /// Throughput of a TCP connection: below one is slower.
    pub bulk_tcp_ratio: f64,
    /// Connecting a UDP socket.
    pub udp_connect_ratio: f64,
    /// Accepting connections.
    pub tcp_accept_ratio: f64,
    /// All kinds of work.
    pub rows: Vec<Row>,
    /// Counts of the kernel for each program, from a run of their own: counting costs time.
    pub programs: Vec<Count>,
}

/// One kind of work.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Kind of work.
    pub work: &'static str,
    /// The median rate with nothing on the node, in one second.
    pub nothing: f64,
    /// With the programs.
    pub ebpf: f64,
    /// With a rule of iptables in their place.
    pub iptables: f64,
    /// Programs against nothing, by turns: a quarter is below, half, three quarters.
    pub ebpf_ratio: [f64; 3],
    /// The rule against nothing, by turns.
    pub iptables_ratio: [f64; 3],
    /// Target for the programs' ratio.
    pub target: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// Fails when the sandbox fails.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    let programs = Programs::build()?;
    let report = measure(args, &programs)?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

/// Measures.
///
/// # Errors
/// Fails when the sandbox fails.
pub fn measure(args: &Args, programs: &Programs) -> Result<Report> {
    let cluster = FileCluster::new(programs)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    cluster.objects().put_namespace("team-a", Some(".*"))?;
    let pod = cluster.pod(&node, ("team-a", "worker"), Some("a-reader"))?;
    let _server = cluster.start_server(&[])?;
    let _sinks = sinks(cluster.sandbox().control())?;
    let mut rates: HashMap<(Work, Setting), Vec<f64>> = HashMap::new();
    for turn in 0..args.turns {
        // None is always the first after something else.
        let mut settings = [Setting::Nothing, Setting::Ebpf, Setting::Iptables];
        settings.rotate_left((turn % 3) as usize);
        for setting in settings {
            with(setting, &cluster, &node, || {
                for work in Work::ALL {
                    let rate = once(work, args, &cluster, &pod)
                        .with_context(|| format!("{work:?} with {setting:?}"))?;
                    rates.entry((work, setting)).or_default().push(rate);
                }
                Ok(())
            })?;
        }
    }
    let row = |work| Row::new(work, |setting| &rates[&(work, setting)]);
    let rows = Work::ALL.map(row).to_vec();
    let kinds: Vec<_> = Work::ALL
        .into_iter()
        .zip(rows.iter().map(|row| row.work))
        .collect();
    let mut counted = Vec::new();
    with(Setting::Ebpf, &cluster, &node, || {
        counted = counts::of(&kinds, |work| once(work, args, &cluster, &pod).map(drop))?;
        Ok(())
    })?;
    Ok(Report::new(rows, counted))
}

/// Does something with a setting on the node, and takes it away again.
fn with(
    setting: Setting,
    cluster: &FileCluster,
    node: &FileClusterNode,
    what: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let place = node.node().place();
    match setting {
        Setting::Nothing => what(),
        Setting::Ebpf => {
            let agent = cluster.start_agent(node, &[])?;
            what()?;
            agent.stop()?;
            let mut cleanup = place.command(cluster.programs().agent());
            cleanup.arg("cleanup");
            cleanup.arg(format!("--bpffs={}", node.node().bpffs().path().display()));
            exec(&mut cleanup).map(drop)
        }
        Setting::Iptables => {
            let rule = |action: &str| {
                let mut command = place.command("/usr/sbin/iptables");
                command.args(["-w", "-t", "nat", action, "PREROUTING", "-p", "tcp"]);
                command.args(["-d", "169.254.169.254", "--dport", "80", "-j", "DNAT"]);
                command.arg("--to-destination");
                command.arg(format!("{}:{METADATA_PORT}", node.node().ip()));
                exec(&mut command).map(drop)
            };
            rule("-A")?;
            let done = what();
            rule("-D")?;
            done
        }
    }
}

/// One measurement: how often in a second.
fn once(work: Work, args: &Args, cluster: &FileCluster, pod: &Pod) -> Result<f64> {
    let ip = pod.ip().context("a pod has an address")?;
    let address = match work {
        Work::TcpConnect => SocketAddr::new(CONTROL_IP, CONNECT_PORT),
        Work::TcpBulk => SocketAddr::new(CONTROL_IP, BULK_PORT),
        Work::UdpSend | Work::UdpConnect => SocketAddr::new(CONTROL_IP, UDP_PORT),
        Work::TcpAccept => SocketAddr::new(IpAddr::V4(ip), ACCEPT_PORT),
    };
    let name = clap::ValueEnum::to_possible_value(&work).context("all have names")?;
    let mut command = pod.place().command(kiam::pod_client()?);
    command.args(["work", name.get_name(), &address.to_string()]);
    command.arg(format!("--time={}", args.time));
    let ended = if work == Work::TcpAccept {
        let program = Program::start("the pod's work", command)?;
        program.wait_for("that it listens", LIMIT, |line| {
            (line == "listening").then_some(())
        })?;
        let done = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&done);
        let netns = cluster.sandbox().control().netns().clone();
        let client = std::thread::spawn(move || {
            netns.run(|| {
                while !ends.load(Ordering::Relaxed) {
                    if let Ok(stream) = TcpStream::connect_timeout(&address, LIMIT) {
                        drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
                    }
                }
            })
        });
        let ended = program.finish(LIMIT);
        done.store(true, Ordering::Relaxed);
        drop(client.join());
        ended?
    } else {
        run_program("the pod's work", command, LIMIT)?
    };
    ensure!(ended.status.success(), "the work failed: {}", ended.stderr);
    let rate = ended.stdout.lines().last().unwrap_or_default();
    rate.parse()
        .with_context(|| format!("{rate:?} is not a rate"))
}

/// Peers of the pod, until this is dropped.
struct Sinks(Arc<AtomicBool>);

impl Drop for Sinks {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sinks(control: &Place) -> Result<Sinks> {
    let netns = control.netns();
    let bulk = netns.listen(SocketAddr::new(CONTROL_IP, BULK_PORT))?;
    let connect = netns.listen(SocketAddr::new(CONTROL_IP, CONNECT_PORT))?;
    bulk.set_nonblocking(false)?;
    connect.set_nonblocking(false)?;
    let udp = netns.run(|| UdpSocket::bind((CONTROL_IP, UDP_PORT)))??;
    udp.set_read_timeout(Some(Duration::from_millis(100)))?;
    let done = Arc::new(AtomicBool::new(false));
    // They end with the process: nothing wakes an accept.
    std::thread::spawn(move || {
        bulk.incoming()
            .flatten()
            .for_each(pod_client::work::swallow);
    });
    std::thread::spawn(move || connect.incoming().flatten().for_each(drop));
    let ends = Arc::clone(&done);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while !ends.load(Ordering::Relaxed) {
            // A read timeout without a packet is not an error.
            let _ = udp.recv(&mut buffer);
        }
    });
    Ok(Sinks(done))
}

impl Row {
    fn new<'a>(work: Work, rates: impl Fn(Setting) -> &'a Vec<f64>) -> Self {
        let (nothing, ebpf, iptables) = (
            rates(Setting::Nothing),
            rates(Setting::Ebpf),
            rates(Setting::Iptables),
        );
        // Throughput is compared as a rate, everything else as the time of one operation.
        let ratio = |with: &[f64]| {
            let pairs = with.iter().zip(nothing);
            let ratios = pairs.map(|(with, without)| match work {
                Work::TcpBulk => with / without,
                _ => without / with,
            });
            quartiles(ratios.collect())
        };
        let (name, target) = match work {
            Work::TcpConnect => ("TCP connect + close", Some(1.05)),
            Work::UdpSend => ("UDP send, 16 bytes", Some(1.05)),
            Work::TcpBulk => ("TCP bulk, bytes/s", Some(0.99)),
            Work::UdpConnect => ("UDP connect", None),
            Work::TcpAccept => ("TCP accept", Some(1.02)),
        };
        Self {
            work: name,
            nothing: quartiles(nothing.clone())[1],
            ebpf: quartiles(ebpf.clone())[1],
            iptables: quartiles(iptables.clone())[1],
            ebpf_ratio: ratio(ebpf),
            iptables_ratio: ratio(iptables),
            target,
        }
    }
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| {
        let index = (values.len().saturating_sub(1)) as f64 * part;
        values
            .get(index.round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    [at(0.25), at(0.5), at(0.75)]
}

impl Report {
    fn new(rows: Vec<Row>, programs: Vec<Count>) -> Self {
        let ratio = |index: usize| rows.get(index).map_or(f64::NAN, |row| row.ebpf_ratio[1]);
        Self {
            tcp_connect_ratio: ratio(0),
            udp_send_ratio: ratio(1),
            bulk_tcp_ratio: ratio(2),
            udp_connect_ratio: ratio(3),
            tcp_accept_ratio: ratio(4),
            rows,
            programs,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<21}{:>14}{:>14}{:>14}  {:<26}{:<26}target",
            "a second", "nothing", "eBPF", "iptables", "eBPF ratio (quartiles)", "iptables ratio"
        )?;
        for row in &self.rows {
            let ratio = |[low, middle, high]: [f64; 3]| format!("{middle:.3} ({low:.3}–{high:.3})");
            let target = row
                .target
                .map_or(String::new(), |target| target.to_string());
            writeln!(
                f,
                "{:<21}{:>14.0}{:>14.0}{:>14.0}  {:<26}{:<26}{target}",
                row.work,
                row.nothing,
                row.ebpf,
                row.iptables,
                ratio(row.ebpf_ratio),
                ratio(row.iptables_ratio)
            )?;
        }
        writeln!(f, "\nby the kernel's own count, in a turn of its own:")?;
        for Count {
            program,
            instructions,
            runs,
        } in &self.programs
        {
            writeln!(f, "{program:<14}{instructions:>5} instructions")?;
            for (work, times, each) in runs {
                writeln!(f, "    {work:<21}{times:>10} runs{each:>8.0} ns each")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_is_above_one_but_for_throughput() {
        let rates = |setting| match setting {
            Setting::Nothing => vec![100.0, 200.0, 400.0],
            Setting::Ebpf => vec![50.0, 100.0, 200.0],
            Setting::Iptables => vec![100.0, 200.0, 200.0],
        };
        let all = [Setting::Nothing, Setting::Ebpf, Setting::Iptables].map(rates);
        let of = |setting| &all[setting as usize];
        let row = Row::new(Work::TcpConnect, of);
        assert_eq!(row.ebpf_ratio, [2.0, 2.0, 2.0]);
        assert_eq!(row.iptables_ratio, [1.0, 1.0, 2.0]);
        assert_eq!(row.nothing, 200.0);
        assert_eq!(Row::new(Work::TcpBulk, of).ebpf_ratio[1], 0.5);
    }
}
