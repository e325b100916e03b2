//! A node of the cluster: a machine with containerd, kubelet and kube-proxy.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use toolchain::exec;

use super::identity::Identity;
use super::payload::KiamImage;
use crate::node::disk::MOUNT;
use crate::node::{Accelerator, Init, Kernel, Machine, Options, Root};
use testbed::sandbox::Sandbox;

/// Limit for a command in a node, with KVM.
const SHORT: Duration = Duration::from_secs(20);
const IMPORT: Duration = Duration::from_secs(30);
const MEMORY_MIB: u32 = 3072;
const PROCESSORS: u32 = 2;

/// Component that makes a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Driver {
    /// systemd, as the kubelet recommends
    Systemd,
    /// runc itself
    Cgroupfs,
}

/// Mode in which kube-proxy routes Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ProxyMode {
    /// Rules of nftables
    Nftables,
    /// Rules of iptables
    Iptables,
}

/// Settings of nodes.
#[derive(Debug, Clone, clap::Args)]
#[group(id = "node-settings")]
pub(super) struct Settings {
    /// Driver of containers' cgroups
    #[arg(long, value_enum, default_value = "systemd")]
    cgroup_driver: Driver,

    /// Mode of kube-proxy
    #[arg(long, value_enum, default_value = "nftables")]
    proxy_mode: ProxyMode,

    /// Taint that nodes come with, as in kiam.io/agent-not-ready=:NoSchedule
    #[arg(long, value_name = "TAINT")]
    node_taint: Option<String>,
}

impl Settings {
    /// Settings that are not the default.
    pub(super) fn words(&self) -> impl Iterator<Item = String> {
        let driver = (self.cgroup_driver == Driver::Cgroupfs).then(|| "cgroupfs".to_owned());
        let proxy =
            (self.proxy_mode == ProxyMode::Iptables).then(|| "kube-proxy by iptables".to_owned());
        let taint = self
            .node_taint
            .as_ref()
            .map(|taint| format!("nodes come with {taint}"));
        [driver, proxy, taint].into_iter().flatten()
    }
}

/// A node.
#[derive(Debug)]
pub(super) struct Worker {
    identity: Identity,
    machine: Machine,
}

impl Worker {
    /// Boots a machine and makes it a node.
    pub(super) fn start(
        sandbox: &Sandbox,
        base: (&Kernel, &Root, Accelerator),
        identity: Identity,
        disk: &Path,
        settings: &Settings,
        images: &[KiamImage],
    ) -> Result<Self> {
        let (kernel, root, accelerator) = base;
        let options = Options {
            name: identity.name.clone(),
            address: identity.address,
            init: Init::Systemd,
            memory_mib: MEMORY_MIB,
            processors: PROCESSORS,
            disk: Some(disk.to_owned()),
            kernel_arguments: Vec::new(),
            boot_limit: None,
        };
        let mut machine = Machine::new(sandbox, kernel, root, accelerator, options)?;
        let pods = format!("10.244.{}.0/24", identity.number);
        let mut route = Command::new("ip");
        route.args(["-n", sandbox.control().netns().name()]);
        let via = identity.address.to_string();
        exec(route.args(["route", "add", &pods, "via", &via]))?;
        machine.power_on()?;
        let driver = match settings.cgroup_driver {
            Driver::Systemd => "systemd",
            Driver::Cgroupfs => "cgroupfs",
        };
        let proxy_mode = match settings.proxy_mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        };
        let taint = settings.node_taint.as_ref();
        let more = taint.map(|taint| format!("--register-with-taints={taint}"));
        let script = format!(
            "KUBELET_MORE='{}' sh {MOUNT}/files/setup.sh {} {} {} {driver} {proxy_mode}",
            more.unwrap_or_default(),
            identity.name,
            identity.number,
            identity.address,
        );
        let limit = machine.limit(SHORT + IMPORT * (1 + u32::try_from(images.len())?));
        machine.check(&script, limit)?;
        Ok(Self { identity, machine })
    }

    pub(super) fn name(&self) -> &str {
        &self.identity.name
    }

    /// Runs a command that has to succeed.
    pub(super) fn check(&self, script: &str) -> Result<String> {
        self.machine.check(script, self.machine.limit(SHORT))
    }

    /// Shuts it down and starts it again; or cuts its power in place of shutting down.
    pub(super) fn restart(&mut self, power_cut: bool) -> Result<()> {
        if power_cut {
            self.machine.power_cut();
        } else {
            self.machine.power_off()?;
        }
        self.machine.power_on()
    }
}
