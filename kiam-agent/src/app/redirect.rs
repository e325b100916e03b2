//! Brings pods' connections to the agent, and learns from the kernel whose they are.

mod guard;
mod iptables;

use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use guard::{fits, with_bypass_counter, with_route_guard};
pub(super) use iptables::iptables;

use super::Redirected;
use crate::args::{Args, AttachArgs, Guard, HostNetworkFlags, NodeFlags};
use crate::caller::{Identify, KernelIdentity, PodUid};
use crate::iptables::IptablesError;
use crate::kernel::cgroup::{HandleError, Mount, MountError, Pods};
use crate::kernel::{
    self, Attached, Choices, KernelError, KernelLog, KernelMetrics, NetnsError, Others, Programs,
    own_netns_cookie,
};
use crate::route_guard::RouteGuardError;
use crate::self_check::SelfCheck;

/// Why pods' connections cannot be brought here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedirectError {
    /// The agent is nowhere that a pod can be sent to.
    #[error(
        "--host {host} is no address that pods reach; it must be an address of the node, and not its loopback; with --redirect=ebpf an IPv4 address"
    )]
    Host {
        /// `--host`, and the port.
        host: SocketAddr,
    },
    /// The pods' cgroup was not found.
    #[error("{0}; --pods-cgroup names it")]
    Cgroup(#[from] MountError),
    /// The kernel does not tell cgroups.
    #[error(transparent)]
    Handles(#[from] HandleError),
    /// The node's network namespace cannot be told from a pod's.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not do its part.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It is not said which packets are pods'.
    #[error(
        "--redirect=iptables needs --host-interface, the interfaces that pods' packets come in by"
    )]
    NoInterface,
    /// The node's firewall does not do its part.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// The node's routing does not do its part.
    #[error(transparent)]
    RouteGuard(#[from] RouteGuardError),
    /// The guard on what pods send is a kernel program.
    #[error(
        "--guard={guard} does not go with --redirect=iptables: egress is guarded by a kernel program, which that does without; take route, or off"
    )]
    Guard {
        /// `--guard`
        guard: Guard,
    },
    /// What it counts is no metric.
    #[error("cannot count what the redirection does: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl RedirectError {
    /// Whether other flags would help.
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

/// The programs at work without an agent.
#[derive(Debug)]
pub(crate) struct Alone {
    /// The pods' cgroup.
    pub(crate) pods: PathBuf,
    /// What is below it.
    pub(crate) known: Pods,
    /// Whether they were not at work before.
    pub(crate) attached: bool,
}

/// Attaches the programs for an agent that is to come, unless an earlier one has: those may be in use by it,
/// and the next one puts its own in their place.
pub(crate) fn alone(args: &AttachArgs) -> Result<Alone, RedirectError> {
    let agent = reachable(SocketAddr::new(args.host, args.node.port))?;
    let NodeFlags {
        pods_cgroup, bpffs, ..
    } = &args.node;
    let (mount, pods) = cgroups(pods_cgroup.clone())?;
    let known = Pods::new(&mount, &pods)?;
    let attached = !kernel::guarded(&pods, bpffs)?;
    if attached {
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
    Ok(Alone {
        pods,
        known,
        attached,
    })
}

/// By programs on the pods' cgroup.
pub(super) fn ebpf(args: &Args, address: SocketAddr) -> Result<Redirected, RedirectError> {
    let agent = reachable(address)?;
    let (mount, pods) = cgroups(args.node.pods_cgroup.clone())?;
    let known = Pods::new(&mount, &pods)?;
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
        "pods' connections to the metadata service come here, and go nowhere without an agent"
    );
    tell_of_others(&pods, &args.node.bpffs);
    let programs = Arc::new(programs);
    let (attestor, host_pods) = (programs.attestor(), programs.host_pods());
    let events = programs.take_events();
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
    let identity = KernelIdentity::new(Arc::clone(&attestor), known);
    let (identify, check): (Arc<dyn Identify>, _) = match choices.own.clone() {
        Some(own) => {
            let (watched, check) = SelfCheck::new(identity, host_pods.clone(), own, agent);
            (Arc::new(watched), Some(check))
        }
        None => {
            tracing::info!(
                "without --pod-uid (POD_UID) the agent makes no connection of its own to see that pods' come here"
            );
            (Arc::new(identity), None)
        }
    };
    Ok(Redirected {
        identify,
        token_key: kernel::token_key(&args.node.bpffs)?,
        check,
        guarded: true,
        upkeep: Box::new(|view, stop| {
            Box::pin(async move {
                let told = host_pods.keep(choices, view, stop.clone());
                let heard = async {
                    if let Some(events) = events {
                        events.keep(stop.clone()).await;
                    }
                };
                tokio::join!(attestor.keep(stop.clone()), told, heard);
            })
        }),
        metrics: vec![Box::new(KernelMetrics::new(Arc::clone(&programs))?)],
        keep: Box::new(programs),
    })
}

/// Programs of others on the same hooks are no reason not to start: a network plugin has some. One that
/// rewrites first is what to look at when pods are refused.
fn tell_of_others(pods: &Path, bpffs: &Path) {
    match kernel::others(pods, bpffs) {
        Ok(others) => {
            let named: Vec<_> = others.iter().filter_map(Others::named).collect();
            if !named.is_empty() {
                tracing::warn!(
                    programs = named.join("; "),
                    "programs of others run at the hooks of kiam's; `kiam-agent doctor` says more"
                );
            }
        }
        Err(error) => {
            tracing::warn!(%error, "cannot tell whether programs of others run at the same hooks");
        }
    }
}

fn reachable(address: SocketAddr) -> Result<SocketAddrV4, RedirectError> {
    match reached(address)? {
        SocketAddr::V4(address) => Ok(address),
        host @ SocketAddr::V6(_) => Err(RedirectError::Host { host }),
    }
}

/// An address that a pod can be sent to.
fn reached(host: SocketAddr) -> Result<SocketAddr, RedirectError> {
    // A pod's loopback is its own.
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
    fn pods_are_sent_to_addresses_only_that_they_reach() {
        for host in [
            "127.0.0.1:8181",
            "0.0.0.0:8181",
            "[::1]:8181",
            "[fd00::1]:8181",
        ] {
            let error = reachable(host.parse().unwrap()).unwrap_err();
            assert!(
                error.is_usage() && error.to_string().contains(host),
                "{error}"
            );
        }
        assert!(reachable("10.0.0.1:8181".parse().unwrap()).is_ok());
        // The firewall of either family can.
        assert!(reached("[fd00::1]:8181".parse().unwrap()).is_ok());
        assert!(reached("[::1]:8181".parse().unwrap()).is_err());
    }
}
