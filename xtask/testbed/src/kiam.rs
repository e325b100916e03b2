//! kiam itself: a server and agents, run as child processes in the sandbox.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::doubles::sigv4::Keys;
use crate::pki::PemFiles;
use crate::sandbox::{CONTROL_IP, Finished, Netns, Node, Place, Program, patient};
use pod_client::probe;

mod programs;

use programs::Rights;
pub use programs::last_executable;
pub use programs::{
    ImagePrograms, PROGRAMS, Programs, pod_client, requests_release, rust_client, xtask,
    xtask_release,
};

/// The server's address for agents, in the sandbox.
pub const SERVER_ADDRESS: &str = "10.0.0.1:9610";
/// Port of the server for agents.
pub const SERVER_PORT: u16 = 9610;
/// Port of the agent for pods.
pub const METADATA_PORT: u16 = 8181;
/// Admin port of the server, in the control namespace.
pub const SERVER_ADMIN_PORT: u16 = 9611;
/// Admin port of the agent, in its node.
pub const AGENT_ADMIN_PORT: u16 = 9612;

const READY_LIMIT: Duration = Duration::from_secs(30);
const READY_PAUSE: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Source of the cluster's objects.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file or folder.
    Files(PathBuf),
    /// The Kubernetes API, by this kubeconfig.
    Kubernetes(PathBuf),
}

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions<'a> {
    /// Its certificate.
    pub tls: &'a PemFiles,
    /// The cluster.
    pub source: Source,
    /// `--node-authorization`
    pub node_authorization: &'a str,
    /// STS.
    pub sts_url: &'a str,
    /// Its keys at STS.
    pub sts_keys: &'a Keys,
    /// More flags.
    pub flags: &'a [&'a str],
    /// Program and arguments that start it, followed by the command of the server.
    pub starter: &'a [String],
}

/// A server that runs in the control namespace. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    program: Program,
    admin_port: u16,
    // Its cgroup goes with the last of these.
    place: Place,
}

impl Server {
    /// Starts a server at the control plane's address.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(programs: &Programs, place: &Place, options: &ServerOptions<'_>) -> Result<Self> {
        let bind = SocketAddr::new(CONTROL_IP, SERVER_PORT);
        Self::start_at(
            programs,
            place,
            "kiam-server",
            bind,
            SERVER_ADMIN_PORT,
            options,
        )
    }

    /// Starts one more, elsewhere.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_at(
        programs: &Programs,
        place: &Place,
        name: &str,
        bind: SocketAddr,
        admin_port: u16,
        options: &ServerOptions<'_>,
    ) -> Result<Self> {
        let ServerOptions {
            tls,
            source,
            node_authorization,
            sts_url,
            sts_keys,
            flags,
            starter,
        } = options;
        let mut command = Command::new(programs.server());
        command
            .env("RUST_BACKTRACE", "1")
            .env("AWS_ENDPOINT_URL_STS", sts_url)
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_ACCESS_KEY_ID", &sts_keys.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &sts_keys.secret_key)
            .arg(format!("--bind={bind}"))
            .args(tls_flags(tls))
            .arg(format!("--node-authorization={node_authorization}"))
            .arg(format!("--prometheus-listen-addr=127.0.0.1:{admin_port}"));
        match source {
            Source::Files(path) => command.arg(format!("--source=file:{}", path.display())),
            Source::Kubernetes(path) => command.arg(format!("--kubeconfig={}", path.display())),
        };
        command.args(*flags);
        let tls = tls.cert.parent();
        let (Source::Files(cluster) | Source::Kubernetes(cluster)) = source;
        let folders: Vec<_> = tls.into_iter().chain(cluster.parent()).collect();
        let command = programs.launch(place, starter, &command, Rights::Server(&folders))?;
        Ok(Self {
            program: Program::start(name, command)?,
            admin_port,
            place: place.clone(),
        })
    }

    /// Waits until it has read the cluster.
    ///
    /// # Errors
    /// When it does not in time, or ends.
    pub fn ready(&mut self) -> Result<()> {
        ready(&mut self.program, self.place.netns(), self.admin_port)
    }

    /// Its process and what it logs.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Answer of its admin port to a path.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn admin(&self, path: &str) -> Result<probe::Answer> {
        fetch(self.place.netns(), self.admin_port, path)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time: then it is killed.
    pub fn finish(self, limit: Duration) -> Result<Finished> {
        self.program.finish(limit)
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> Result<Finished> {
        self.program.terminate(STOP_LIMIT)
    }
}

/// Options of an agent.
#[derive(Debug, Clone)]
pub struct AgentOptions<'a> {
    /// Its certificate.
    pub tls: &'a PemFiles,
    /// Its token.
    pub token_file: Option<&'a Path>,
    /// The server: host and port.
    pub server: &'a str,
    /// More flags.
    pub flags: &'a [&'a str],
    /// Program and arguments that start it, followed by the command of the agent.
    pub starter: &'a [String],
}

/// An agent that runs on a node. It is killed when dropped.
#[derive(Debug)]
pub struct Agent {
    program: Program,
    // Its cgroup goes with the last of these.
    place: Place,
}

impl Agent {
    /// Starts an agent in a place on the node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        programs: &Programs,
        node: &Node,
        place: &Place,
        options: &AgentOptions<'_>,
    ) -> Result<Self> {
        let AgentOptions {
            tls,
            token_file,
            server,
            flags,
            starter,
        } = options;
        let mut command = Command::new(programs.agent());
        command
            .env("RUST_BACKTRACE", "1")
            // As images have it.
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("NODE_NAME", node.name())
            .env("HOST_IP", node.ip().to_string())
            .arg(format!("--port={METADATA_PORT}"))
            .arg(format!("--server-address={server}"))
            .args(tls_flags(tls))
            .arg(format!(
                "--pods-cgroup={}",
                node.kubepods().path().display()
            ))
            .arg(format!("--bpffs={}", node.bpffs().path().display()))
            .arg(format!(
                "--prometheus-listen-addr=127.0.0.1:{AGENT_ADMIN_PORT}"
            ));
        if let Some(token) = token_file {
            command.arg(format!("--token-file={}", token.display()));
        }
        command.args(*flags);
        let folders: Vec<_> = [Some(tls.cert.as_path()), *token_file]
            .into_iter()
            .filter_map(|file| file?.parent())
            .collect();
        let command = programs.launch(place, starter, &command, Rights::Agent(&folders))?;
        Ok(Self {
            program: Program::start(&format!("kiam-agent of {}", node.name()), command)?,
            place: place.clone(),
        })
    }

    /// Waits until it guards the node and knows its pods.
    ///
    /// # Errors
    /// When it does not in time, or ends.
    pub fn ready(&mut self) -> Result<()> {
        ready(&mut self.program, self.place.netns(), AGENT_ADMIN_PORT)
    }

    /// Its process and what it logs.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Answer of its admin port to a path.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn admin(&self, path: &str) -> Result<probe::Answer> {
        fetch(self.place.netns(), AGENT_ADMIN_PORT, path)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time: then it is killed.
    pub fn finish(self, limit: Duration) -> Result<Finished> {
        self.program.finish(limit)
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> Result<Finished> {
        self.program.terminate(STOP_LIMIT)
    }
}

fn fetch(netns: &Netns, port: u16, path: &str) -> Result<probe::Answer> {
    let url = format!("http://127.0.0.1:{port}{path}").parse()?;
    let answer = netns.block_on(async || probe::fetch(&http::Method::GET, &url, &[]).await)?;
    answer.map_err(anyhow::Error::from_boxed)
}

/// Waits for `/readyz`, which nothing but asking tells.
fn ready(program: &mut Program, netns: &Netns, port: u16) -> Result<()> {
    let mut output = String::new();
    for _ in 0..patient(READY_LIMIT).as_millis() / READY_PAUSE.as_millis() {
        match fetch(netns, port, "/readyz") {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => output = answer.body,
            Err(error) => output = error.to_string(),
        }
        if let Some(status) = program.try_status()? {
            anyhow::bail!(
                "{} has ended ({status}):\n{}",
                program.name(),
                program.tail()
            );
        }
        std::thread::sleep(READY_PAUSE);
    }
    let name = program.name();
    anyhow::bail!(
        "{name} is not ready within {READY_LIMIT:?} ({output}):\n{}",
        program.tail()
    )
}

fn tls_flags(tls: &PemFiles) -> [OsString; 6] {
    let PemFiles { cert, key, ca } = tls;
    [
        "--cert".into(),
        cert.into(),
        "--key".into(),
        key.into(),
        "--ca".into(),
        ca.into(),
    ]
}
