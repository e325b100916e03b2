//! Redirection of pods' connections to the agent, and identification of the calling pods.

mod guard;
mod iptables;

use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiam_common::pod_uid::PodUid;

pub(super) use guard::{check_guard, with_bypass_counter, with_route_guard};
pub(super) use iptables::iptables;

use super::{BackgroundTask, Redirected};
use crate::args::{Args, AttachArgs, Guard, HostNetworkFlags, NodeFlags};
use crate::caller::{Identify, KernelIdentity};
use crate::iptables::IptablesError;
use crate::kernel::cgroup::{HandleError, Mount, MountError, Pods};
use crate::kernel::{
    self, Attached, Choices, ForeignPrograms, KernelError, KernelLog, KernelMetrics, NetnsError,
    Programs, own_netns_cookie,
};
use crate::route_guard::RouteGuardError;
use crate::self_check::SelfCheck;

/// Error of the redirection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// The agent listens on an address that pods cannot reach.
    #[error(
        "pods cannot reach --host {host}; set it to an address of the node other than loopback, and with --redirect=ebpf to an IPv4 address"
    )]
    Host {
        /// `--host` and the port.
        host: SocketAddr,
    },
    /// The cgroup of all pods was not found.
    #[error("{0}; --pods-cgroup sets it")]
    Cgroup(#[from] MountError),
    /// The kernel does not support lookup of cgroups.
    #[error(transparent)]
    Handles(#[from] HandleError),
    /// The network namespace of the node cannot be identified.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel programs cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The interfaces of pods are unknown.
    #[error(
        "--redirect=iptables needs --host-interface, the network interfaces that pods' packets arrive on"
    )]
    NoInterface,
    /// The firewall rules cannot be installed.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// The route guard cannot be installed.
    #[error(transparent)]
    RouteGuard(#[from] RouteGuardError),
    /// The redirection does not support the guard.
    #[error(
        "--guard={guard} does not work with --redirect=iptables, which has no kernel program to guard egress; use route or off"
    )]
    Guard {
        /// `--guard`.
        guard: Guard,
    },
    /// The metrics cannot be created.
    #[error("cannot create the metrics of the redirection: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl RedirectError {
    /// Returns whether other flags would avoid the error.
    pub(super) const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Host { .. }
                | Self::Cgroup(_)
                | Self::NoInterface
                | Self::Guard { .. }
                | Self::Iptables(IptablesError::NoProgram)
        )
    }
}

/// The programs, attached before an agent runs.
#[derive(Debug)]
pub(crate) struct PreAttached {
    /// The cgroup of all pods.
    pub(crate) pods: PathBuf,
    /// Lookup of pods below it.
    pub(crate) lookup: Pods,
    /// True if the programs are new; otherwise those of an earlier agent stay.
    pub(crate) new: bool,
}

/// Attaches the programs for an agent that will run, unless an earlier agent has attached its own:
/// that agent may be using them, and the next one replaces them.
pub(crate) fn pre_attach(args: &AttachArgs) -> Result<PreAttached, RedirectError> {
    let agent = check_reachable_v4(SocketAddr::new(args.host, args.node.port))?;
    let NodeFlags {
        pods_cgroup, bpffs, ..
    } = &args.node;
    let (mount, pods) = cgroups(pods_cgroup.clone())?;
    let lookup = Pods::new(&mount, &pods)?;
    let new = !kernel::guarded(&pods, bpffs)?;
    if new {
        Programs::attach(&kernel::Redirect {
            pods: pods.clone(),
            agent,
            host_netns_cookie: own_netns_cookie()?,
            host_network: args.host_network_pods,
            guard_egress: true,
            container: None,
            log: KernelLog::Off,
            bpffs: bpffs.clone(),
        })?;
    }
    Ok(PreAttached { pods, lookup, new })
}

/// Attaches the kernel programs to the cgroup of all pods.
pub(super) fn ebpf(args: &Args, address: SocketAddr) -> Result<Redirected, RedirectError> {
    let agent = check_reachable_v4(address)?;
    let (mount, pods) = cgroups(args.node.pods_cgroup.clone())?;
    let lookup = Pods::new(&mount, &pods)?;
    let programs = Programs::attach(&kernel::Redirect {
        pods: pods.clone(),
        agent,
        host_netns_cookie: own_netns_cookie()?,
        host_network: args.host_network.host_network_pods,
        guard_egress: args.guard().egress,
        container: args.metadata.container_credentials_address,
        log: args.kernel_log,
        bpffs: args.node.bpffs.clone(),
    })?;
    let Attached { new, taken_over } = programs.attached();
    tracing::info!(
        cgroup = %pods.display(),
        %agent,
        new,
        taken_over,
        "kernel programs redirect pods' connections to the agent; while no agent runs, they are refused"
    );
    warn_of_foreign_programs(&pods, &args.node.bpffs);
    let programs = Arc::new(programs);
    let (attestor, host_pods) = (programs.attestor(), programs.host_pods());
    let HostNetworkFlags {
        host_network_pods,
        host_network_exempt,
        pod_uid,
    } = &args.host_network;
    let choices = Choices {
        mode: *host_network_pods,
        exempt: host_network_exempt.clone(),
        own: pod_uid.as_deref().map(PodUid::new),
    };
    let identity = KernelIdentity::new(Arc::clone(&attestor), lookup);
    let (identify, check): (Arc<dyn Identify>, _) = match choices.own.clone() {
        Some(own) => {
            let (watched, check) = SelfCheck::new(identity, host_pods.clone(), own, agent);
            (Arc::new(watched), Some(check))
        }
        None => {
            tracing::info!("no self-check of the redirection: it needs --pod-uid (POD_UID)");
            (Arc::new(identity), None)
        }
    };
    let mut tasks = vec![
        BackgroundTask::new("attestations", |_view, stop| async move {
            attestor.run(stop).await;
        }),
        BackgroundTask::new("hostNetwork pods", |view, stop| {
            host_pods.run(choices, view, stop)
        }),
    ];
    if let Some(events) = programs.take_events() {
        tasks.push(BackgroundTask::new("kernel log", |_view, stop| {
            events.run(stop)
        }));
    }
    Ok(Redirected {
        identify,
        token_key: kernel::token_key(&args.node.bpffs)?,
        check,
        guarded: true,
        tasks,
        metrics: vec![Box::new(KernelMetrics::new(Arc::clone(&programs))?)],
        programs: Some(programs),
    })
}

/// Warns about programs of other software at the same hooks. They are expected, since network
/// plugins have some, but one that rewrites addresses first can be the reason why pods are refused.
fn warn_of_foreign_programs(pods: &Path, bpffs: &Path) {
    match kernel::foreign_programs(pods, bpffs) {
        Ok(foreign) => {
            let summaries: Vec<_> = foreign
                .iter()
                .filter_map(ForeignPrograms::summary)
                .collect();
            if !summaries.is_empty() {
                tracing::warn!(
                    programs = summaries.join("; "),
                    "other software has programs at the hooks of kiam; run `kiam-agent doctor` for details"
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot check for programs of other software at the hooks of kiam");
        }
    }
}

fn check_reachable_v4(address: SocketAddr) -> Result<SocketAddrV4, RedirectError> {
    match check_reachable(address)? {
        SocketAddr::V4(address) => Ok(address),
        host @ SocketAddr::V6(_) => Err(RedirectError::Host { host }),
    }
}

/// Returns the address if pods can be redirected to it.
fn check_reachable(host: SocketAddr) -> Result<SocketAddr, RedirectError> {
    // A pod has its own loopback.
    if host.ip().is_loopback() || host.ip().is_unspecified() {
        return Err(RedirectError::Host { host });
    }
    Ok(host)
}

fn cgroups(given: Option<PathBuf>) -> Result<(Mount, PathBuf), RedirectError> {
    match given {
        Some(pods) => Ok((Mount::of(&pods)?, pods)),
        None => {
            let mount = Mount::find()?;
            let pods = mount.pods()?;
            Ok((mount, pods))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_redirected_only_to_addresses_that_they_can_reach() {
        for host in [
            "127.0.0.1:8181",
            "0.0.0.0:8181",
            "[::1]:8181",
            "[fd00::1]:8181",
        ] {
            let error = check_reachable_v4(host.parse().unwrap()).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains(host),
                "{error}"
            );
        }
        assert!(check_reachable_v4("10.0.0.1:8181".parse().unwrap()).is_ok());
        // The firewall supports both families.
        assert!(check_reachable("[fd00::1]:8181".parse().unwrap()).is_ok());
        assert!(check_reachable("[::1]:8181".parse().unwrap()).is_err());
    }
}
