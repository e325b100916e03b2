//! Counter of bypass packets: packets from pods to the metadata service that reached the node
//! although the kernel programs should have dropped them.
//!
//! The kernel programs act where sockets send. A counted packet was written below the sockets
//! (`AF_PACKET`), or redirected there by rules of a pod's network namespace, and arrived on an
//! interface. The route guard may reject it afterwards. Packets of the node itself and of
//! `hostNetwork` pods arrive on no interface.
//!
//! ```text
//! table inet kiam {
//!     counter metadata_service { }
//!     chain from_pods {
//!         type filter hook prerouting priority -310;
//!         ip  daddr 169.254.169.254 iif != lo counter name metadata_service
//!         ip6 daddr fd00:ec2::254   iif != lo counter name metadata_service
//!     }
//! }
//! ```
//!
//! The counter affects no packet, and keeps counting while no agent runs.

mod message;

use std::io;
use std::sync::{Mutex, PoisonError};

use kiam_common::metrics::Registry;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Opts};

use crate::netlink;
use message::Reply;

const NAME: &str = "kiam_metadata_bypass_packets_total";
const HELP: &str = "Packets to the metadata service that came from a pod past the kernel programs, refused later or not.";

/// Error of the bypass counter.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{}", hint(source))]
pub struct BypassCounterError {
    what: &'static str,
    source: io::Error,
}

/// Returns advice for the most common errors.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; the agent needs the capability NET_ADMIN",
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "; the kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET"
        }
        _ => "",
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BypassCounterError {
    move |source| BypassCounterError { what, source }
}

/// The counter in this network namespace. It stays when this value is dropped.
#[derive(Debug)]
pub struct BypassCounter(Mutex<Socket>);

impl BypassCounter {
    /// Installs the counter. A counter that exists keeps its value.
    pub fn install() -> Result<Self, BypassCounterError> {
        let counter = Self(Mutex::new(open()?));
        counter.put()?;
        Ok(counter)
    }

    /// Returns the number of packets; `None` if another program has removed the counter.
    pub fn packets(&self) -> Result<Option<u64>, BypassCounterError> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match exchange(&socket, &message::read(), 1) {
            Ok(packets) => Ok(packets),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("read the counter of bypass packets")(error)),
        }
    }

    fn put(&self) -> Result<(), BypassCounterError> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (messages, answered) = message::install();
        let done = exchange(&socket, &messages, answered);
        done.map(drop)
            .map_err(failed("install the counter of bypass packets"))
    }
}

/// Removes the counter, and returns whether it existed.
pub fn cleanup() -> Result<bool, BypassCounterError> {
    let socket = match open() {
        Ok(socket) => socket,
        // A kernel without nf_tables has no counter.
        Err(error) if error.source.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let (messages, answered) = message::remove();
    match exchange(&socket, &messages, answered) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failed("remove the counter of bypass packets")(error)),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn open() -> Result<Socket, BypassCounterError> {
    netlink::open(NETLINK_NETFILTER).map_err(failed("open a netlink socket for nf_tables"))
}

/// Sends messages, of which `answered` are acknowledged, and returns the counter if it was read.
/// The first error wins.
fn exchange(socket: &Socket, messages: &[u8], answered: usize) -> io::Result<Option<u64>> {
    socket.send(messages, 0)?;
    let (mut packets, mut ended, mut outcome) = (None, 0, Ok(()));
    while ended < answered {
        let datagram = match socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(nothing) => {
                outcome?;
                return Err(nothing);
            }
        };
        for replies in message::parse(&datagram) {
            match replies {
                Reply::Packets(count) => packets = Some(count),
                Reply::Done(code) => {
                    ended += 1;
                    if code != 0 && outcome.is_ok() {
                        outcome = Err(io::Error::from_raw_os_error(-code));
                    }
                }
            }
        }
    }
    outcome.map(|()| packets)
}

/// `kiam_metadata_bypass_packets_total`, read from the kernel at each scrape.
#[derive(Debug)]
pub struct BypassMetric {
    counter: BypassCounter,
    /// Describes the metric; the value comes from the kernel.
    shape: IntCounter,
}

impl BypassMetric {
    /// Creates the metric of a counter.
    pub fn new(counter: BypassCounter) -> prometheus::Result<Self> {
        let shape = shape()?;
        Ok(Self { counter, shape })
    }

    /// Registers what describes the metric.
    pub(crate) fn describe(registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(shape()?))
    }

    fn read(&self) -> Option<Vec<MetricFamily>> {
        let packets = match self.counter.packets() {
            Ok(Some(packets)) => packets,
            Ok(None) => {
                tracing::warn!(
                    "another program removed the counter of bypass packets: it starts again at zero"
                );
                self.counter.put().inspect_err(unseen).ok()?;
                0
            }
            Err(error) => {
                unseen(&error);
                return None;
            }
        };
        let metric = shape().ok()?;
        metric.inc_by(packets);
        Some(metric.collect())
    }
}

fn unseen(error: &BypassCounterError) {
    tracing::warn!("cannot count bypass packets: {error}");
}

fn shape() -> prometheus::Result<IntCounter> {
    IntCounter::with_opts(Opts::new(NAME, HELP))
}

impl Collector for BypassMetric {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_default()
    }
}
