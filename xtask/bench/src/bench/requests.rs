//! Requests of pods to the agent, by turns with the same to a bare hyper server beside it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::plot::Plot;
use super::report::{Aim, Figure, Section};
use super::{Against, Args, METADATA, ROLE_PATH, client_command};
use pod_client::flood::{How, Outcome};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::METADATA_PORT;
use testbed::sandbox::{NodeOptions, Place, Pod, Program};

/// A quarter of what the agent answers of one pod at once: no request is queued.
const PER_POD: usize = 16;
const CONNECTIONS: [usize; 3] = [1, 16, 128];
const LIMIT_PORT: u16 = 8182;
const PARROT_PORT: u16 = 8183;
const LONG: Duration = Duration::from_secs(30);

/// Service that the pods send requests to.
#[derive(Debug, Clone)]
struct Side {
    name: String,
    address: SocketAddr,
    path: String,
}

/// Kind of requests and number of connections.
type Kind = (How, usize);

/// Measurements of each, by turns.
type Outcomes = HashMap<(Kind, String), Vec<Outcome>>;

struct Bench<'a> {
    args: &'a Args,
    pod_client: &'a Path,
    pods: Vec<Pod>,
}

/// Measures.
///
/// # Errors
/// Fails when the sandbox fails, or an answer is not 200.
pub(super) fn measure(
    args: &Args,
    cluster: &FileCluster,
    pod_client: &Path,
) -> Result<Vec<Section>> {
    let node = cluster.node("node-1", NodeOptions::default())?;
    let pods = (1..=8)
        .map(|number| {
            let name = format!("worker-{number}");
            cluster.pod(&node, ("team-a", &name), Some("a-reader"))
        })
        .collect::<Result<_>>()?;
    let _agent = cluster.start_agent(&node, &[])?;
    let bench = Bench {
        args,
        pod_client,
        pods,
    };
    // Another node, whose agent uses the firewall in place of kernel programs.
    let other = cluster.node("node-2", NodeOptions::default())?;
    let pod = cluster.pod(&other, ("team-a", "worker-9"), Some("a-reader"))?;
    let _firewall = cluster.start_agent(&other, &["--redirect=iptables", "--host-interface=p+"])?;
    let firewalled = Bench {
        args,
        pod_client,
        pods: vec![pod],
    };
    let agent = Side {
        name: "agent".into(),
        address: METADATA,
        path: ROLE_PATH.into(),
    };
    let body = cluster.sandbox().scratch().join("body");
    bench.run((How::Connect, 1), &agent, Some(&body))?;
    let limit = bare(&node, &body, pod_client, LIMIT_PORT, false)?;
    let parrot = bare(&node, &body, pod_client, PARROT_PORT, true)?;
    let side = |name: &str, port| Side {
        name: name.into(),
        address: SocketAddr::new(node.node().ip(), port),
        path: ROLE_PATH.into(),
    };
    let direct = side("direct", METADATA_PORT);
    let firewall = Side {
        name: "iptables".into(),
        address: METADATA,
        path: ROLE_PATH.into(),
    };
    let mut sides = vec![
        agent,
        side("limit", LIMIT_PORT),
        side("parrot", PARROT_PORT),
    ];
    sides.extend(args.against.iter().map(
        |Against {
             name,
             address,
             path,
         }| Side {
            name: name.clone(),
            address: *address,
            path: path.clone(),
        },
    ));
    let mut outcomes = Outcomes::new();
    let kinds = || {
        let all = CONNECTIONS
            .map(|connections| [(How::Exchange, connections), (How::Connect, connections)]);
        all.into_iter().flatten()
    };
    for turn in 0..args.turns {
        sides.rotate_left(1);
        if turn % 2 == 1 {
            sides.reverse();
        }
        for kind in kinds() {
            for side in &sides {
                let outcome = bench.run(kind, side, None);
                let outcome = outcome.with_context(|| format!("{kind:?} with {}", side.name))?;
                outcomes
                    .entry((kind, side.name.clone()))
                    .or_default()
                    .push(outcome);
            }
        }
        // Past the redirection, and by the firewall's: what the kernel's rewriting costs.
        let kind = (How::Connect, 16);
        for (bench, side) in [(&bench, &direct), (&firewalled, &firewall)] {
            let outcome = bench.run(kind, side, None)?;
            outcomes
                .entry((kind, side.name.clone()))
                .or_default()
                .push(outcome);
        }
    }
    drop((limit, parrot));
    Ok(sections(args, &outcomes))
}

/// A bare server, until this is dropped.
struct Bare {
    _program: Program,
    // Its cgroup goes with the last of these.
    _place: Place,
}

/// A bare server on the node, in a place as the agent's.
fn bare(
    node: &FileClusterNode,
    body: &Path,
    pod_client: &Path,
    port: u16,
    bare: bool,
) -> Result<Bare> {
    let place = node.node().service(&format!("bench-limit-{port}"))?;
    let mut command = place.command(pod_client);
    command.arg("limit");
    command.arg(SocketAddr::new(node.node().ip(), port).to_string());
    command.arg(body);
    command.args(bare.then_some("--bare"));
    let program = Program::start("the limit", command)?;
    program.wait_for("that it listens", LONG, |line| {
        (line == "listening").then_some(())
    })?;
    Ok(Bare {
        _program: program,
        _place: place,
    })
}

impl Bench<'_> {
    /// Sends requests from as many pods as the number of connections needs.
    fn run(&self, (how, connections): Kind, side: &Side, save: Option<&Path>) -> Result<Outcome> {
        let pods = connections.div_ceil(PER_POD);
        let mut clients = Vec::new();
        for pod in self.pods.iter().take(pods) {
            let mut command = client_command(pod, self.pod_client, how, side.address, &side.path);
            command.arg(format!("--connections={}", connections / pods));
            command.arg(format!("--time={}", self.args.time));
            if let Some(save) = save {
                command.arg("--save").arg(save);
            }
            clients.push(Program::start("the pod's client", command)?);
        }
        let mut all = Outcome::default();
        for client in clients {
            let ended = client.finish(LONG)?;
            ensure!(
                ended.status.success(),
                "the client failed: {}",
                ended.stderr
            );
            let one: Outcome = serde_json::from_str(ended.stdout.trim())?;
            all.seconds = one.seconds;
            all.cpu_seconds += one.cpu_seconds;
            all.times.merge(&one.times);
        }
        Ok(all)
    }
}

/// The agent and the limit by connections.
pub(super) fn plots(sections: &[Section]) -> Vec<Plot> {
    let find = |key: &str| {
        let mut figures = sections.iter().flat_map(|section| &section.figures);
        figures
            .find(|figure| figure.key() == key)
            .map(Figure::median)
    };
    let curve = |name: &str, what: &str, side: &str| {
        let points = CONNECTIONS.iter().filter_map(|connections| {
            let value = find(&format!("{name}_{side}_{what}_{connections}"))?;
            Some((*connections as f64, value))
        });
        (side.to_owned(), points.collect())
    };
    let plot = |name, of: &str, what: &str, title, y| Plot {
        name,
        title,
        x: "connections",
        y,
        curves: vec![curve(of, what, "agent"), curve(of, what, "limit")],
    };
    vec![
        plot(
            "exchange-rate",
            "exchange",
            "rate",
            "Exchanges of IMDSv2",
            "a second",
        ),
        plot(
            "exchange-p99",
            "exchange",
            "p99",
            "Exchanges of IMDSv2: p99",
            "µs",
        ),
        plot(
            "connect-rate",
            "connect",
            "rate",
            "Requests on connections of their own",
            "a second",
        ),
        plot(
            "connect-p99",
            "connect",
            "p99",
            "Requests on connections of their own: p99",
            "µs",
        ),
    ]
}

fn sections(args: &Args, outcomes: &Outcomes) -> Vec<Section> {
    let of = |kind: Kind, side: &str, what: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
        let all = outcomes.get(&(kind, side.to_owned()));
        all.map_or_else(Vec::new, |all| all.iter().map(what).collect())
    };
    let rate = |outcome: &Outcome| outcome.times.count() as f64 / outcome.seconds;
    let p50 = |outcome: &Outcome| outcome.times.quantile(0.5);
    let p99 = |outcome: &Outcome| outcome.times.quantile(0.99);
    let p999 = |outcome: &Outcome| outcome.times.quantile(0.999);
    let ratio = |kind: Kind, one: &str, other: &str, what: &dyn Fn(&Outcome) -> f64| {
        let pairs = of(kind, one, what).into_iter().zip(of(kind, other, what));
        pairs.map(|(one, other)| one / other).collect::<Vec<_>>()
    };
    let mut sections = Vec::new();
    for (how, name, title) in [
        (
            How::Exchange,
            "exchange",
            "What clients do: token, role and credentials, each on a connection of its own",
        ),
        (
            How::Connect,
            "connect",
            "Credentials, each on a connection of its own",
        ),
    ] {
        let mut figures = Vec::new();
        let mut worst: [Option<Vec<f64>>; 2] = [None, None];
        for connections in CONNECTIONS {
            let kind = (how, connections);
            let mut sides = vec!["agent", "limit"];
            sides.extend(args.against.iter().map(|against| &*against.name));
            for side in sides {
                for (what, unit, of_one) in [
                    ("rate", "a second", &rate as &dyn Fn(&Outcome) -> f64),
                    ("p50", "µs", &p50),
                    ("p99", "µs", &p99),
                    ("p999", "µs", &p999),
                ] {
                    let key = format!("{name}_{side}_{what}_{connections}");
                    let text = format!("{side}, {connections} connections: {what}");
                    figures.push(Figure::of(&key, &text, unit, &of(kind, side, of_one)));
                }
            }
            for (index, what, of_one, lower_is_worse) in [
                (0, "throughput", &rate as &dyn Fn(&Outcome) -> f64, true),
                (1, "p99", &p99, false),
            ] {
                let ratios = ratio(kind, "agent", "limit", of_one);
                let key = format!("{name}_{what}_ratio_{connections}");
                let text = format!("agent ÷ limit, {connections} connections: {what}");
                let figure = Figure::of(&key, &text, "", &ratios);
                let now = figure.median();
                figures.push(figure);
                let before = &mut worst[index];
                let is_worse = before.as_deref().is_none_or(|before| {
                    let before = super::report::quartiles(before)[1];
                    (now < before) == lower_is_worse
                });
                if is_worse {
                    *before = Some(ratios);
                }
            }
        }
        let aims = (how == How::Exchange).then_some([Aim::AtLeast(0.9), Aim::AtMost(1.25)]);
        for (index, what) in ["throughput", "p99"].into_iter().enumerate() {
            let key = format!("{name}_{what}_ratio");
            let text = format!("**agent ÷ limit, the worst of these: {what}**");
            let values = worst[index].take().unwrap_or_default();
            let figure = Figure::of(&key, &text, "", &values);
            figures.push(match aims {
                Some(aims) => figure.aiming(aims[index]),
                None => figure,
            });
        }
        sections.push(Section {
            title,
            path: "From pods' namespaces over veth, by the kernel's rewriting of 169.254.169.254:80, to `kiam-agent` (release). The limit is a bare hyper server on the same node, on the same runtime, with the same answer, over the same veth, and without rewriting. Each answer ends its connection, there as here. 128 at once are of eight pods.".into(),
            figures,
        });
    }
    let headroom = (How::Connect, 16);
    let direct = (How::Connect, 16);
    let exchange = (How::Exchange, 1);
    let cpu = |outcome: &Outcome| outcome.cpu_seconds / outcome.seconds;
    sections.push(Section {
        title: "The exchange of IMDSv2, and what measures",
        path: "An exchange is a token, the role's name and the credentials, each on a connection of its own, one after the other, to the agent as above; at the limit these are three requests alike. The parrot answers the same bytes without HTTP: what the client can do at most.".into(),
        figures: vec![
            Figure::of("imdsv2_exchange_p50", "agent, p50", "µs", &of(exchange, "agent", &p50)),
            Figure::of("imdsv2_exchange_p99", "agent, p99", "µs", &of(exchange, "agent", &p99)),
            Figure::of("imdsv2_limit_p50", "limit, p50", "µs", &of(exchange, "limit", &p50)),
            Figure::of("imdsv2_exchange_ratio", "**agent ÷ limit, p50**", "", &ratio(exchange, "agent", "limit", &p50)).aiming(Aim::AtMost(1.3)),
            Figure::of("redirect_connect_ratio", "agent with rewriting ÷ agent by its own address, new connections: throughput", "", &ratio(direct, "agent", "direct", &rate)),
            Figure::of("metadata_connect_ebpf_rate", "agent by kernel programs, 16 at once, new connections", "a second", &of(direct, "agent", &rate)),
            Figure::of("metadata_connect_iptables_rate", "agent by iptables' DNAT (`--redirect=iptables`), the same", "a second", &of(direct, "iptables", &rate)),
            Figure::of("metadata_connect_direct_rate", "agent by its own address, no redirection, the same", "a second", &of(direct, "direct", &rate)),
            Figure::of("metadata_connect_ebpf_iptables_ratio", "kernel programs ÷ iptables: throughput", "", &ratio(direct, "agent", "iptables", &rate)),
            Figure::of("generator_headroom_ratio", "parrot ÷ limit, 16 at once, new connections: throughput", "", &ratio(headroom, "parrot", "limit", &rate)),
            Figure::of("generator_cpu_cores", "CPU of the client, 16 at once, new connections to the agent", "cores", &of(headroom, "agent", &cpu)),
        ],
    });
    sections
}
