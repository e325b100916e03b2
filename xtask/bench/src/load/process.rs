//! Process of the server, and its cost.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};
use tokio::time::{Instant, sleep};

use testbed::doubles::sts::Sts;
use testbed::file_cluster::BASE_ARN;
use testbed::kiam::Programs;
use testbed::pki::PemFiles;
use testbed::probe::fetch;
use testbed::sandbox::Program;

const STOP_LIMIT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(5);

/// The server's process. It is killed when this is dropped.
pub(super) struct Server {
    program: Program,
    bind: SocketAddr,
    admin: SocketAddr,
}

impl Server {
    pub(super) fn start(
        programs: &Programs,
        under: Option<&str>,
        tls: &PemFiles,
        kubeconfig: &Path,
        sts: &Sts,
    ) -> Result<Self> {
        let (bind, admin) = (free()?, free()?);
        let keys = sts.server_keys();
        let mut words = under.unwrap_or_default().split_whitespace();
        let mut command = match words.next() {
            Some(profiler) => {
                let mut command = Command::new(profiler);
                command.args(words).arg(programs.server());
                command
            }
            None => {
                let mut command = Command::new(programs.server());
                command.env_clear();
                command
            }
        };
        command
            .env("AWS_ENDPOINT_URL_STS", sts.url())
            .env("AWS_REGION", "eu-west-1")
            .env("AWS_ACCESS_KEY_ID", &keys.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret_key)
            .arg(format!("--bind={bind}"))
            .arg(format!("--prometheus-listen-addr={admin}"))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--role-base-arn={BASE_ARN}"))
            .arg(format!("--cert={}", tls.cert.display()))
            .arg(format!("--key={}", tls.key.display()))
            .arg(format!("--ca={}", tls.ca.display()))
            .args(["--node-authorization=certificate", "--level=warn"]);
        Ok(Self {
            program: Program::start("kiam-server", command)?,
            bind,
            admin,
        })
    }

    /// Waits until it has read the cluster; where agents connect to.
    pub(super) async fn ready(&self, limit: Duration) -> Result<SocketAddr> {
        let url = format!("http://{}/readyz", self.admin).parse()?;
        let end = Instant::now() + limit;
        loop {
            let answer = fetch(&http::Method::GET, &url, &[]).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(self.bind);
            }
            let output = || self.program.tail();
            ensure!(
                !self.program.has_ended(),
                "the server has ended:\n{}",
                output()
            );
            ensure!(
                Instant::now() < end,
                "the server is not ready within {limit:?}:\n{}",
                output()
            );
            sleep(READY_PAUSE).await;
        }
    }

    /// Tells it to end, and waits for that.
    pub(super) fn stop(self) -> Result<()> {
        let ended = tokio::task::block_in_place(|| self.program.terminate(STOP_LIMIT))?;
        ensure!(
            ended.status.success(),
            "the server failed: {}",
            ended.stderr
        );
        Ok(())
    }

    /// Its resident memory, in bytes (`VmRSS` in proc_pid_status(5)).
    pub(super) fn memory(&self) -> Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib.context("no VmRSS")?.trim().parse()?;
        Ok(kib * 1024)
    }

    /// The CPU time that it has had (`utime` and `stime` in proc_pid_stat(5)).
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        // The first field behind the name is the third of all.
        let mut times = fields.split_whitespace().skip(14 - 3).take(2);
        let mut time = || -> Result<u64> { Ok(times.next().context("no times")?.parse()?) };
        let ticks = time()? + time()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// The part of a core that it takes for a while.
    pub(super) async fn cpu_over(&self, time: Duration) -> Result<f64> {
        let (before, begun) = (self.cpu()?, Instant::now());
        sleep(time).await;
        Ok((self.cpu()? - before).as_secs_f64() / begun.elapsed().as_secs_f64())
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.program.pid());
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

/// Finds a free port.
fn free() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Raises the limit of open files of this process and those that it starts.
pub(super) fn allow_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(());
    }
    ensure!(
        hard >= wanted,
        "a process may have {hard} files open here, and {wanted} are needed; raise it with `ulimit -Hn` or take fewer --nodes"
    );
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).context("cannot raise the limit of open files")
}
