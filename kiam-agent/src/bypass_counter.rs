//! Counts what should never come: packets to the metadata service that reach the node from a pod.
//!
//! The kernel programs refuse them where sockets send. What is counted here was made below all
//! sockets (`AF_PACKET`), or sent by rules of a pod's own, and came in by an interface: whether the
//! route guard refuses it then or nothing does. Packets of the node's own, and of `hostNetwork` pods,
//! come in by none.
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
//! It decides about no packet. It goes on counting when the agent is gone.

mod message;

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Opts};

use crate::netlink;
use message::Said;

const NAME: &str = "kiam_metadata_bypass_packets_total";
const HELP: &str = "Packets to the metadata service that came from a pod past the kernel programs, refused later or not.";

/// Why packets are not counted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{}", hint(source))]
pub struct BypassCounterError {
    what: &'static str,
    source: io::Error,
}

/// What helps against the commonest.
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

/// The counter of this network namespace. It stays when this is dropped.
#[derive(Debug)]
pub struct BypassCounter(Mutex<Socket>);

impl BypassCounter {
    /// Puts it there. One that is there goes on.
    ///
    /// # Errors
    /// When the kernel has no nf_tables, or says no.
    pub fn install() -> Result<Self, BypassCounterError> {
        let counter = Self(Mutex::new(open()?));
        counter.put()?;
        Ok(counter)
    }

    /// How many packets came. None if another program has removed the counter.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn packets(&self) -> Result<Option<u64>, BypassCounterError> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match exchange(&socket, &message::read(), 1) {
            Ok(packets) => Ok(packets),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("read the counter of packets past the programs")(
                error,
            )),
        }
    }

    fn put(&self) -> Result<(), BypassCounterError> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (messages, answered) = message::install();
        let done = exchange(&socket, &messages, answered);
        done.map(drop)
            .map_err(failed("count packets past the programs"))
    }
}

/// Removes it. Tells whether it was there.
///
/// # Errors
/// When the kernel says no.
pub fn cleanup() -> Result<bool, BypassCounterError> {
    let socket = match open() {
        Ok(socket) => socket,
        // Where there is no nf_tables there is no counter.
        Err(error) if error.source.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let (messages, answered) = message::remove();
    match exchange(&socket, &messages, answered) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failed("remove the counter of packets past the programs")(
            error,
        )),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn open() -> Result<Socket, BypassCounterError> {
    netlink::open(NETLINK_NETFILTER).map_err(failed("talk to the kernel's nf_tables"))
}

/// Sends what has so many messages that are answered. The first that fails is the error.
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
        for said in message::parse(&datagram) {
            match said {
                Said::Packets(count) => packets = Some(count),
                Said::Done(code) => {
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

/// `kiam_metadata_bypass_packets_total`: asked of the kernel when somebody asks for it.
#[derive(Debug)]
pub struct BypassMetric {
    counter: BypassCounter,
    /// Describes the metric; the value is the kernel's.
    shape: IntCounter,
}

impl BypassMetric {
    /// Of this counter.
    ///
    /// # Errors
    /// When the metric's name is no name.
    pub fn new(counter: BypassCounter) -> prometheus::Result<Self> {
        let shape = shape()?;
        Ok(Self { counter, shape })
    }

    fn read(&self) -> Option<Vec<MetricFamily>> {
        let packets = match self.counter.packets() {
            Ok(Some(packets)) => packets,
            Ok(None) => {
                tracing::warn!(
                    "another program had removed the counter of packets past the kernel programs; it counts from nothing again"
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
    tracing::warn!("packets past the kernel programs are not seen: {error}");
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
