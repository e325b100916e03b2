//! `cgroup/connect4` and `connect6`: redirects a connect to the metadata service, or refuses it.
//!
//! A connect of an `AF_INET6` socket to `::ffff:169.254.169.254` runs connect6 and not connect4
//! (net/ipv6/tcp_ipv6.c, `tcp_v6_pre_connect`), so both programs check for that address.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use kiam_ebpf::{
    Config, Hook, MAPPED_PREFIX, MAX_PODS_LEVEL, METADATA_PORT, METADATA_V4, METADATA_V6, Verdict,
    host_network, host_pod,
};

use crate::events::About;
use crate::state::{
    HOST_NETWORK, HOST_PODS, PROCEED, REDIRECTED_CONTAINER, REDIRECTED_V4, REDIRECTED_V6, SOCKETS,
    Socket, config, container_v4, count, refuse,
};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
/// The first subflow of MPTCP is TCP, and connects through here too (net/mptcp/protocol.c).
const IPPROTO_MPTCP: u32 = 262;

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &mut *ctx.sock_addr };
    let requested = match address.user_ip4 {
        METADATA_V4 => REDIRECTED_V4,
        ip if ip == container_v4() => REDIRECTED_CONTAINER,
        _ => return PROCEED,
    };
    let decision = decide(&ctx, address, requested);
    if decision.verdict.is_refusal() {
        return refuse(Hook::Connect4, decision.verdict, About::Caller);
    }
    count(Hook::Connect4, decision.verdict, About::Caller);
    if decision.verdict == Verdict::Redirected {
        address.user_ip4 = decision.host;
        address.user_port = decision.port;
    }
    PROCEED
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { &mut *ctx.sock_addr };
    // Word by word: the verifier accepts no other reads of this field.
    let last = address.user_ip6[3];
    let requested = if last == METADATA_V4 || last == container_v4() {
        if address.user_ip6[0] != MAPPED_PREFIX[0]
            || address.user_ip6[1] != MAPPED_PREFIX[1]
            || address.user_ip6[2] != MAPPED_PREFIX[2]
        {
            return PROCEED;
        }
        if last == METADATA_V4 {
            REDIRECTED_V4
        } else {
            REDIRECTED_CONTAINER
        }
    } else if last == METADATA_V6[3] {
        if address.user_ip6[0] != METADATA_V6[0]
            || address.user_ip6[1] != METADATA_V6[1]
            || address.user_ip6[2] != METADATA_V6[2]
        {
            return PROCEED;
        }
        REDIRECTED_V6
    } else {
        return PROCEED;
    };
    let decision = decide(&ctx, address, requested);
    if decision.verdict.is_refusal() {
        return refuse(Hook::Connect6, decision.verdict, About::Caller);
    }
    count(Hook::Connect6, decision.verdict, About::Caller);
    if decision.verdict == Verdict::Redirected {
        // The agent listens on IPv4. A socket that is limited to IPv6 cannot follow, and fails.
        address.user_ip6[0] = MAPPED_PREFIX[0];
        address.user_ip6[1] = MAPPED_PREFIX[1];
        address.user_ip6[2] = MAPPED_PREFIX[2];
        address.user_ip6[3] = decision.host;
        address.user_port = decision.port;
    }
    PROCEED
}

/// Outcome of a connect to the metadata service.
///
/// Every field always has a value, unlike in an enum: speculative execution may read the fields of
/// another variant (see [`events`](crate::events)).
#[derive(Clone, Copy)]
struct Decision {
    verdict: Verdict,
    /// Address of the agent, in network byte order.
    host: u32,
    /// Port of the agent, in network byte order.
    port: u32,
}

/// Decides where a connect to the metadata service goes: to the agent, to its original destination
/// (`HostNetwork`), or nowhere.
#[inline(always)]
fn decide(ctx: &SockAddrContext, address: &bpf_sock_addr, requested: u32) -> Decision {
    let Some(config) = config() else {
        return Decision {
            verdict: Verdict::Unconfigured,
            host: 0,
            port: 0,
        };
    };
    Decision {
        verdict: verdict(ctx, address, config, requested),
        host: config.host_v4,
        port: u32::from(config.port),
    }
}

#[inline(always)]
fn verdict(
    ctx: &SockAddrContext,
    address: &bpf_sock_addr,
    config: &Config,
    requested: u32,
) -> Verdict {
    // SAFETY: the helper takes the context of this program type (since Linux 5.7).
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns == config.host_netns_cookie {
        match host_pod(config) {
            host_pod::AGENT => {}
            NO_HOST_POD if config.host_network == host_network::REFUSED => {
                return Verdict::ConnectRefused;
            }
            _ => {
                remember(ctx, HOST_NETWORK);
                return Verdict::HostNetwork;
            }
        }
    }
    let (kind, protocol, port) = (address.type_, address.protocol, address.user_port);
    let tcp = kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
    if !tcp || port != METADATA_PORT as u32 {
        return Verdict::ConnectRefused;
    }
    remember(ctx, requested);
    Verdict::Redirected
}

/// Not a value of [`host_pod`]: the agent has made no entry for the pod.
const NO_HOST_POD: u32 = 0;

/// Returns the entry that the agent has made for the `hostNetwork` pod that connects.
#[inline(never)]
fn host_pod(config: &Config) -> u32 {
    // SAFETY: a helper that takes a level only (since Linux 5.7).
    let ancestor = |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    let mut level = 0;
    while ancestor(level) != config.pods_cgroup {
        level += 1;
        if level == MAX_PODS_LEVEL {
            return NO_HOST_POD;
        }
    }
    // A pod's cgroup is below that of its QoS class, if the class has one.
    for level in [level + 1, level + 2] {
        // SAFETY: read at once.
        if let Some(target) = unsafe { HOST_PODS.get(&ancestor(level)) } {
            return *target;
        }
    }
    NO_HOST_POD
}

/// Stores the disposition of a socket for as long as the socket lives.
#[inline(always)]
fn remember(ctx: &SockAddrContext, disposition: u32) {
    let mut socket = Socket { disposition };
    // SAFETY: the storage belongs to the socket of the context, which outlives this program. A
    // socket that connects again has storage already, which is overwritten.
    unsafe {
        let stored = SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut socket));
        if !stored.is_null() {
            (*stored).disposition = disposition;
        }
    }
}
