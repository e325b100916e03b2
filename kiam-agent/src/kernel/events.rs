//! `--kernel-log`: decisions of the kernel programs in the agent's log.
#![expect(
    unsafe_code,
    reason = "the caller of AsyncFd guarantees that the descriptor stays the same"
)]

use std::{fmt, io};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use kiam_ebpf::{Event, Hook, Verdict, event_level, maps};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::KernelError;
use super::error::typed;

/// Decisions to log. The programs are loaded for one of these values: a change needs a restart of
/// the agent, and `off` costs nothing at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum KernelLog {
    /// None
    #[default]
    Off,
    /// Connections that are refused, and packets that are dropped
    Refused,
    /// All: connections that are redirected, attested or let through as well
    All,
}

impl KernelLog {
    /// Returns the level of the programs: one of [`event_level`].
    pub(super) const fn level(self) -> u32 {
        match self {
            Self::Off => event_level::OFF,
            Self::Refused => event_level::REFUSED,
            Self::All => event_level::ALL,
        }
    }
}

/// Reader of decisions.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Creates the reader for programs that were loaded with it.
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, KernelError> {
        let map = object
            .take_map(maps::EVENTS)
            .ok_or(KernelError::Missing { name: maps::EVENTS })?;
        let buffer = typed(maps::EVENTS, RingBuf::try_from(map))?;
        // SAFETY: the descriptor belongs to the buffer, and stays the same as long as the buffer
        // exists.
        let events = unsafe { AsyncFd::register_with_interest(buffer, Interest::READABLE) };
        events
            .map(Self)
            .map_err(|error| KernelError::Events(error.into()))
    }

    /// Waits for decisions and returns them: hook, verdict, and the id of the cgroup. Decisions are
    /// lost if the reader is slow: the buffer holds [`EVENTS_SIZE`](kiam_ebpf::EVENTS_SIZE) bytes.
    pub async fn next(&mut self) -> io::Result<Vec<(Hook, Verdict, u64)>> {
        let mut ready = self.0.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(bytes) = ready.get_inner_mut().next() {
            match parse(&bytes) {
                Some(event) => events.push(event),
                None => tracing::warn!(?bytes, "cannot parse an event of a kernel program"),
            }
        }
        ready.clear_ready();
        Ok(events)
    }

    /// Logs decisions until `stop`. Returns early if the ring buffer cannot be read any more.
    pub async fn run(self, stop: CancellationToken) {
        log_all(self, stop).await;
    }
}

/// Source of decisions.
trait Decisions: Send {
    /// Waits for the next decisions.
    fn next(&mut self) -> impl Future<Output = io::Result<Vec<(Hook, Verdict, u64)>>> + Send;
}

impl Decisions for Events {
    async fn next(&mut self) -> io::Result<Vec<(Hook, Verdict, u64)>> {
        Self::next(self).await
    }
}

async fn log_all(mut decisions: impl Decisions, stop: CancellationToken) {
    loop {
        let events = tokio::select! {
            () = stop.cancelled() => return,
            events = decisions.next() => events,
        };
        match events {
            Ok(events) => events.into_iter().for_each(log),
            Err(error) => {
                tracing::error!(%error, "cannot read the decisions of the kernel programs");
                return;
            }
        }
    }
}

fn log((hook, verdict, cgroup): (Hook, Verdict, u64)) {
    let (hook, verdict, refused) = (hook.as_label(), verdict.as_label(), verdict.is_refusal());
    if refused {
        tracing::info!(hook, verdict, cgroup, "kernel program: refused");
    } else {
        tracing::info!(hook, verdict, cgroup, "kernel program: let through");
    }
}

/// Parses an [`Event`]: the hook, the verdict and the id of the cgroup.
fn parse(bytes: &[u8]) -> Option<(Hook, Verdict, u64)> {
    let bytes: &[u8; size_of::<Event>()] = bytes.try_into().ok()?;
    let (numbers, cgroup) = bytes.split_first_chunk::<8>()?;
    let (hook, verdict) = numbers.split_first_chunk::<4>()?;
    let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?) as usize);
    let hook = Hook::ALL.get(number(hook)?)?;
    let verdict = Verdict::ALL.get(number(verdict)?)?;
    Some((*hook, *verdict, u64::from_ne_bytes(cgroup.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use kiam_common::tasks::{TaskError, Tasks};

    use super::*;

    fn bytes(hook: u32, verdict: u32, cgroup: u64) -> Vec<u8> {
        [
            &hook.to_ne_bytes()[..],
            &verdict.to_ne_bytes(),
            &cgroup.to_ne_bytes(),
        ]
        .concat()
    }

    #[test]
    fn events_have_the_layout_of_the_kernel_programs() {
        assert_eq!(size_of::<Event>(), 16);
        assert_eq!(std::mem::offset_of!(Event, hook), 0);
        assert_eq!(std::mem::offset_of!(Event, verdict), 4);
        assert_eq!(std::mem::offset_of!(Event, cgroup), 8);
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                let event = bytes(hook as u32, verdict as u32, 77 << 40);
                assert_eq!(parse(&event), Some((hook, verdict, 77 << 40)));
            }
        }
    }

    #[test]
    fn malformed_events_are_rejected() {
        assert_eq!(parse(&bytes(9, 0, 1)), None);
        assert_eq!(parse(&bytes(0, 99, 1)), None);
        assert_eq!(parse(&bytes(0, 0, 1)[..15]), None);
        assert_eq!(parse(&[]), None);
    }

    struct Unreadable;

    impl Decisions for Unreadable {
        async fn next(&mut self) -> io::Result<Vec<(Hook, Verdict, u64)>> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[tokio::test]
    async fn the_end_of_the_reader_is_reported_by_name() {
        let mut tasks = Tasks::new();
        let stop = tasks.stop();
        tasks.spawn("kernel log", log_all(Unreadable, stop));
        tasks.spawn("another", std::future::pending());
        let error = tasks.failed().await;
        let expected = matches!(error, TaskError::Ended { name: "kernel log" });
        assert!(expected, "{error}");
    }
}
