//! `cargo xtask clients`: AWS SDKs and other clients against kiam, in every state of it that
//! they can meet.
//!
//! Each client runs unmodified in a pod of its own, finds its credentials by itself, and signs
//! requests to the doubles of STS and S3. The doubles record the credentials that it signed with.

mod install;
mod list;
mod running;
mod state;
mod table;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use toolchain::{Consent, kernel, prepare};

pub(crate) use install::plan;
pub(crate) use list::Client;
use running::Turn;
pub(crate) use running::{Running, Surroundings};
use state::{Agents, State};
use table::{Cell, Table};

use testbed::doubles::sts::S3;
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::{Agent, Programs, Server, rust_client};
use testbed::sandbox;
use testbed::sandbox::{CONTROL_IP, NodeOptions, Pod};

const S3_PORT: u16 = 4567;
const PERMITTED: &str = "apps";
const FORBIDDEN: &str = "forbidden";
/// Number of clients that run at the same time.
const AT_ONCE: usize = 2;

/// Flags of `cargo xtask clients`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    consent: Consent,

    /// Run only these clients
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = client)]
    only: Vec<Client>,

    /// Run only these states
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    state: Vec<State>,

    /// Use kiam's programs in this folder instead of building them, such as those of another commit
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
}

fn client(name: &str) -> Result<Client, String> {
    Client::named(name).ok_or_else(|| {
        let names: Vec<_> = list::ALL.iter().map(|client| client.name).collect();
        format!("no such client; there are {}", names.join(", "))
    })
}

/// Runs the command.
///
/// # Errors
/// Fails when something cannot be set up, or a client fails that the real service would serve.
#[expect(clippy::print_stdout, reason = "its report")]
pub fn run(args: &Args) -> Result<()> {
    prepare(args.consent, |plan| {
        sandbox::plan(plan);
        kernel::plan(plan);
        install::plan(plan)
    })?;
    let programs = match &args.programs {
        Some(folder) => Programs::in_folder(folder)?,
        None => Programs::build()?,
    };
    let clients = chosen(&args.only, &list::ALL);
    let states = chosen(&args.state, &State::ALL);
    let matrix = Matrix::new(&programs)?;
    let mut table = Table::new(&clients);
    for agents in Agents::ALL {
        let states = states.iter().filter(|state| state.agents() == agents);
        matrix.run(agents, &clients, states.copied(), &mut table)?;
    }
    println!("{table}");
    let leaked = matrix.node.imds().traffic().bytes();
    ensure!(
        leaked == 0,
        "{leaked} bytes reached the node's metadata service"
    );
    if args.only.is_empty() && args.state.is_empty() && args.programs.is_none() {
        table.write()?;
    }
    table.check()
}

fn chosen<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen }.to_vec()
}

/// The node that clients run on.
struct Matrix {
    surroundings: Surroundings,
    _s3: S3,
    node: FileClusterNode,
    cluster: FileCluster,
}

/// Clients in a pod of their own.
struct ClientPod<'a> {
    client: &'a Client,
    running: Running,
    pod: Pod,
}

/// Result of a turn, and the keys that requests were signed with.
struct Outcome {
    turn: Turn,
    count: usize,
    keys: BTreeSet<String>,
}

/// The programs that clients are served by.
type Kiam = (Agent, Server);

impl Matrix {
    fn new(programs: &Programs) -> Result<Self> {
        let rust = rust_client()?;
        let cluster = FileCluster::new(programs)?;
        let node = cluster.node("node-1", NodeOptions::default())?;
        let objects = cluster.objects();
        objects.put_namespace(PERMITTED, Some(".*"))?;
        objects.put_namespace(FORBIDDEN, None)?;
        let address = SocketAddr::new(CONTROL_IP, S3_PORT);
        let s3 = cluster
            .sts()
            .s3(cluster.sandbox().control().netns().listen(address)?)?;
        Ok(Self {
            surroundings: Surroundings {
                rust,
                sts: cluster.sts().url(),
                s3: format!("http://{address}"),
            },
            _s3: s3,
            node,
            cluster,
        })
    }

    /// Tries clients in those states that need this agent.
    fn run(
        &self,
        agents: Agents,
        clients: &[Client],
        states: impl Iterator<Item = State>,
        table: &mut Table,
    ) -> Result<()> {
        let states: Vec<_> = states.collect();
        if states.is_empty() {
            return Ok(());
        }
        let mut kiam = self.start(agents)?;
        for state in states {
            let cells = match state {
                State::Restarted => {
                    let (cells, next) = self.restarted(clients, kiam, agents)?;
                    kiam = next;
                    cells
                }
                State::Many => each(clients, 1, |client| self.once(client, state, client.many)),
                _ => each(clients, AT_ONCE, |client| self.once(client, state, 1)),
            };
            for (client, cell) in clients.iter().zip(cells) {
                table.set(client, state, cell);
            }
        }
        Ok(())
    }

    fn start(&self, agents: Agents) -> Result<(Agent, Server)> {
        let server = self.cluster.start_server(&[])?;
        let agent = self.cluster.start_agent(&self.node, agents.flags())?;
        Ok((agent, server))
    }

    /// One turn of clients in a pod.
    fn once(&self, client: &Client, state: State, count: usize) -> Result<Cell> {
        let mut client_pod = self.enter(client, state, count)?;
        let outcome = self.turn(&mut client_pod);
        let cell = if state.serves() {
            outcome.served()
        } else if outcome.turn.good > 0 || !outcome.keys.is_empty() {
            Cell::Failed(format!("{} requests were signed", outcome.keys.len()))
        } else {
            Cell::Good(outcome.turn.error)
        };
        self.leave(client_pod, state)?;
        Ok(cell)
    }

    /// Clients that live on while the agent is restarted, and the server too, which then hands out
    /// other credentials.
    fn restarted(
        &self,
        clients: &[Client],
        (agent, server): Kiam,
        agents: Agents,
    ) -> Result<(Vec<Result<Cell>>, Kiam)> {
        let state = State::Restarted;
        let mut before = Vec::new();
        for client in clients {
            let mut client_pod = self.enter(client, state, 1)?;
            let first = self.turn(&mut client_pod);
            before.push((client_pod, first));
        }
        agent.stop()?;
        server.stop()?;
        let next = self.start(agents)?;
        let mut cells = Vec::new();
        for (mut client_pod, first) in before {
            let second = self.turn(&mut client_pod);
            cells.push(Ok(match (first.served(), second.served()) {
                (Cell::Good(_), Cell::Good(_)) if !first.keys.is_disjoint(&second.keys) => {
                    Cell::Failed("it signs with the old credentials".to_owned())
                }
                (Cell::Failed(error), _) => Cell::Failed(format!("before: {error}")),
                (_, Cell::Failed(error)) => Cell::Failed(format!("after: {error}")),
                (Cell::Good(_), good) => good,
            }));
            self.leave(client_pod, state)?;
        }
        Ok((cells, next))
    }

    /// Starts clients in a pod of their own.
    fn enter<'a>(&self, client: &'a Client, state: State, count: usize) -> Result<ClientPod<'a>> {
        let role = (state != State::NoRole).then_some(client.name);
        let (namespace, name) = pod_name(client, state);
        let pod = self.cluster.pod(&self.node, (namespace, &name), role)?;
        let (around, set) = (&self.surroundings, state.environment());
        let running = Running::start(client, pod.place(), count, around, set)?;
        Ok(ClientPod {
            client,
            running,
            pod,
        })
    }

    fn turn(&self, client_pod: &mut ClientPod<'_>) -> Outcome {
        let turn = client_pod.running.turn();
        let signed = self.cluster.sts().take_signed(client_pod.client.name);
        Outcome {
            turn,
            count: client_pod.running.count(),
            keys: signed.into_iter().map(|signed| signed.access_key).collect(),
        }
    }

    fn leave(&self, client_pod: ClientPod<'_>, state: State) -> Result<()> {
        let ClientPod {
            client,
            running,
            pod,
        } = client_pod;
        drop((running, pod));
        let (namespace, name) = pod_name(client, state);
        self.cluster.objects().remove_pod((namespace, &name))
    }
}

/// Namespace and name.
fn pod_name(client: &Client, state: State) -> (&'static str, String) {
    let namespace = match state {
        State::Refused => FORBIDDEN,
        _ => PERMITTED,
    };
    let name = format!("{}-{state:?}", client.name).to_lowercase();
    (namespace, name)
}

impl Outcome {
    /// Checks that every client was served, and signed with credentials of its pod's role.
    fn served(&self) -> Cell {
        let (good, count) = (self.turn.good, self.count);
        let many = count > 1;
        if good < count && many {
            Cell::Failed(format!("{good} of {count}: {}", self.turn.error))
        } else if good < count {
            Cell::Failed(self.turn.error.clone())
        } else if self.keys.is_empty() {
            Cell::Failed("it reports that it was served, but signed nothing".to_owned())
        } else {
            Cell::Good(if many {
                count.to_string()
            } else {
                String::new()
            })
        }
    }
}

/// Does something with each client, some at once; in their order.
fn each(
    clients: &[Client],
    at_once: usize,
    one: impl Fn(&Client) -> Result<Cell> + Sync,
) -> Vec<Result<Cell>> {
    let left = Mutex::new(clients.iter().enumerate());
    let next = || left.lock().ok()?.next();
    let mut cells: Vec<_> = std::thread::scope(|scope| {
        let worker = || {
            std::iter::from_fn(next)
                .map(|(at, client)| (at, one(client)))
                .collect()
        };
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    cells.sort_by_key(|(at, _)| *at);
    cells.into_iter().map(|(_, cell)| cell).collect()
}
