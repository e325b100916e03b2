//! The two replicas of the server.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::clock::Clock;
use testbed::doubles::sigv4::Keys;
use testbed::file_cluster::BASE_ARN;
use testbed::kiam::{Programs, SERVER_PORT, Server, ServerOptions, Source};
use testbed::pki::PemFiles;
use testbed::sandbox::{Place, Program};

/// Addresses of the replicas; the first is that of the control plane.
pub(super) const ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const ADMIN_PORTS: [u16; 2] = [9611, 9613];

/// Both replicas, and their settings.
#[derive(Debug)]
pub(super) struct Servers {
    running: [Option<Server>; 2],
    starts: u32,
    pub(super) clock: Clock,
    pub(super) place: Place,
    pub(super) programs: Programs,
    pub(super) tls: PemFiles,
    pub(super) kubeconfig: PathBuf,
    pub(super) sts_url: String,
    pub(super) sts_keys: Keys,
    pub(super) logs: PathBuf,
}

impl Servers {
    pub(super) fn new(
        place: Place,
        programs: Programs,
        tls: PemFiles,
        kubeconfig: PathBuf,
        (sts_url, sts_keys): (String, Keys),
        logs: PathBuf,
    ) -> Result<Self> {
        Ok(Self {
            clock: Clock::new(&logs.with_file_name("server"))?,
            running: [None, None],
            starts: 0,
            place,
            programs,
            tls,
            kubeconfig,
            sts_url,
            sts_keys,
            logs,
        })
    }

    /// Starts one, without waiting until it serves.
    pub(super) fn start(&mut self, which: usize) -> Result<()> {
        self.starts += 1;
        let base = format!("--role-base-arn={BASE_ARN}");
        let name = format!("kiam-server-{}", which + 1);
        let disk = if which == 0 {
            self.logs.clone()
        } else {
            self.disk()
        };
        let audit = format!("--audit-log=file:{}/audit.log", disk.display());
        // The second has a disk, in its own view of the file system, and a clock of its own.
        let script = format!(
            "/bin/mount -t tmpfs -o size=1m tmpfs {} && exec {} \"$@\"",
            disk.display(),
            self.clock.shell()
        );
        let starter = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", &script, "sh"];
        let starter = if which == 0 {
            &[][..]
        } else {
            &starter.map(str::to_owned)
        };
        let options = ServerOptions {
            tls: &self.tls,
            source: Source::Kubernetes(self.kubeconfig.clone()),
            node_authorization: "token",
            sts_url: &self.sts_url,
            sts_keys: &self.sts_keys,
            flags: &[&base, &audit, "--level=info,kiam_server=debug"],
            starter,
        };
        let bind = SocketAddr::new(IpAddr::V4(ADDRESSES[which]), SERVER_PORT);
        let admin = ADMIN_PORTS[which];
        let server = Server::start_at(&self.programs, &self.place, &name, bind, admin, &options)?;
        let log = self.logs.join(format!("{name}-{}.log", self.starts));
        server.program().tee(&log)?;
        self.running[which] = Some(server);
        Ok(())
    }

    /// Waits until one serves.
    pub(super) fn ready(&mut self, which: usize) -> Result<()> {
        let server = self.running[which].as_mut();
        server.context("the server was stopped")?.ready()
    }

    pub(super) fn server(&self, which: usize) -> Result<&Server> {
        let server = self.running[which].as_ref();
        server.context("the server was stopped")
    }

    pub(super) fn program(&self, which: usize) -> Result<&Program> {
        Ok(self.server(which)?.program())
    }

    pub(super) fn signal(&self, which: usize, signal: Signal) -> Result<()> {
        self.program(which)?.signal(signal)
    }

    /// Kills one.
    pub(super) fn kill(&mut self, which: usize) -> Result<()> {
        self.signal(which, Signal::SIGKILL)?;
        self.running[which] = None;
        Ok(())
    }

    /// Kills one if it has not ended by itself.
    pub(super) fn kill_or_clear(&mut self, which: usize) {
        self.running[which] = None;
    }

    /// Stops one in order, if it runs.
    pub(super) fn stop(&mut self, which: usize) -> Result<()> {
        self.running[which]
            .take()
            .map_or(Ok(()), |server| server.stop().map(drop))
    }

    fn disk(&self) -> PathBuf {
        self.logs.with_file_name("disk")
    }

    /// A server's disk, seen from outside of its view of the file system.
    pub(super) fn disk_of(&self, which: usize) -> Result<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.program(which)?.pid()));
        let disk = self.disk();
        Ok(root.join(disk.strip_prefix("/").unwrap_or(&disk)))
    }

    /// Leaves no byte of a server's disk.
    pub(super) fn fill_disk(&self, which: usize) -> Result<()> {
        let mut ballast = std::fs::File::create(self.disk_of(which)?.join("ballast"))?;
        let full = loop {
            if let Err(error) = ballast.write_all(&[0; 4096]) {
                break error;
            }
        };
        ensure!(full.kind() == ErrorKind::StorageFull, "the disk: {full}");
        Ok(())
    }

    pub(super) fn free_disk(&self, which: usize) -> Result<()> {
        let ballast = self.disk_of(which)?.join("ballast");
        std::fs::remove_file(ballast).context("cannot remove the ballast")
    }

    /// All that run.
    pub(super) fn running(&self) -> impl Iterator<Item = &Server> {
        self.running.iter().flatten()
    }
}
