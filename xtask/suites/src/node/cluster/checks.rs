//! Checks of a cluster, each with its name in the table.

mod basic;
mod host;
mod life;

use anyhow::Result;

use super::pods::IdentifiedBy;
use super::{Args, Cluster};

/// Something that must be so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    /// Its name in the table.
    pub(super) name: &'static str,
    /// True if other checks depend on it.
    pub(super) needed: bool,
    /// Does it.
    pub(super) run: fn(&mut Cluster) -> Result<()>,
}

/// Checks that --short includes.
const SHORT: &[Check] = &[
    needed("helm installs the chart", basic::install),
    needed("pods start", basic::pods_start),
    check("Guaranteed pod", basic::guaranteed),
    check("Burstable pod", basic::burstable),
    check("BestEffort pod", basic::best_effort),
    check("init container", basic::init_container),
    check("sidecar", basic::sidecar),
    check("service account's role", basic::service_account),
    check("Job, keys that sign", basic::job),
    check("static pod", basic::static_pod),
    check("exec, keys that sign", basic::exec),
    check("exec probe", basic::exec_probe),
    check("ephemeral container", basic::ephemeral_container),
    check("pod without a role", basic::roleless),
    check("whole grace period after delete", basic::grace_period),
    check(
        "hostNetwork pod, passthrough",
        basic::host_network_passthrough,
    ),
    check("no packet of a pod to the node's service", basic::no_packet),
];

/// Checks that iptables cannot pass: it sees all pods of the node's network as one.
const EBPF: &[Check] = &[
    check("hostNetwork pod, its own role", host::annotated),
    check("hostNetwork pod, refused", host::deny),
];

/// Checks that only run by hand, as they take long.
const LONG: &[Check] = &[
    check("StatefulSet pod made again", life::stateful_set),
    check("hostUsers: false", life::host_users),
    check("kubelet started again", life::kubelet_restart),
    check("containerd started again", life::containerd_restart),
    check("agents replaced under load", life::agent_rollout),
    check("force delete", life::force_delete),
    check("probe that names the node's service, refused", host::deputy),
    check("reboot", life::reboot),
    check("power cut", life::power_cut),
    check("helm uninstall leaves pods guarded", host::uninstall),
    check("kiam-agent cleanup", host::cleanup),
];

const fn needed(name: &'static str, run: fn(&mut Cluster) -> Result<()>) -> Check {
    Check {
        name,
        needed: true,
        run,
    }
}

const fn check(name: &'static str, run: fn(&mut Cluster) -> Result<()>) -> Check {
    Check {
        name,
        needed: false,
        run,
    }
}

/// An image that is replaced under load.
const UPGRADE: &[Check] = &[check("upgrade from the version before", life::upgrade)];

/// Checks to do, in order.
pub(super) fn list(args: &Args) -> Vec<Check> {
    let upgrade = if args.before.is_some() { UPGRADE } else { &[] };
    let by_address = args.identified_by() == IdentifiedBy::Address;
    let ebpf = if args.short || by_address { &[] } else { EBPF };
    let long = if args.short { &[] } else { LONG };
    let all = SHORT.iter().chain(upgrade).chain(ebpf).chain(long).copied();
    let wanted = |check: &Check| {
        let only = &args.check;
        check.needed || only.is_empty() || only.iter().any(|part| check.name.contains(&**part))
    };
    all.filter(wanted).collect()
}
