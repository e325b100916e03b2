//! `--kernel-log`: decisions of the kernel programs, one by one, in the agent's log.
#![expect(
    unsafe_code,
    reason = "whoever waits for a descriptor vouches that it stays the same"
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

/// Which decisions are told. The programs are loaded for one of these: to change it costs a start
/// of the agent, and to have none costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum KernelLog {
    /// None.
    #[default]
    Off,
    /// What is refused or dropped.
    Refused,
    /// These, and each connection that is redirected, attested or let through.
    All,
}

impl KernelLog {
    /// The programs' number for it: one of [`event_level`].
    pub(super) const fn level(self) -> u32 {
        match self {
            Self::Off => event_level::OFF,
            Self::Refused => event_level::REFUSED,
            Self::All => event_level::ALL,
        }
    }
}

/// Reader of the programs' decisions.
pub struct Events(AsyncFd<RingBuf<MapData>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Of programs that were loaded for it.
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, KernelError> {
        let map = object
            .take_map(maps::EVENTS)
            .ok_or(KernelError::Missing { name: maps::EVENTS })?;
        let buffer = typed(maps::EVENTS, RingBuf::try_from(map))?;
        // SAFETY: the descriptor is the buffer's own, and stays the same for as long as that is.
        let events = unsafe { AsyncFd::register_with_interest(buffer, Interest::READABLE) };
        events
            .map(Self)
            .map_err(|error| KernelError::Events(error.into()))
    }

    /// Waits for the next decisions, and takes them: hook, verdict, and the cgroup's id. Those that
    /// come faster than they are taken are lost: the buffer has room for
    /// [`EVENTS_SIZE`](kiam_ebpf::EVENTS_SIZE) bytes.
    ///
    /// # Errors
    /// When the buffer cannot be waited for.
    pub async fn next(&mut self) -> io::Result<Vec<(Hook, Verdict, u64)>> {
        let mut ready = self.0.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(bytes) = ready.get_inner_mut().next() {
            match parse(&bytes) {
                Some(event) => events.push(event),
                None => tracing::warn!(?bytes, "a kernel program reported what is not understood"),
            }
        }
        ready.clear_ready();
        Ok(events)
    }

    /// Logs decisions, until told to stop.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            let events = tokio::select! {
                () = stop.cancelled() => return,
                events = self.next() => events,
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
}

fn log((hook, verdict, cgroup): (Hook, Verdict, u64)) {
    let (hook, verdict, refused) = (hook.as_label(), verdict.as_label(), verdict.is_refusal());
    if refused {
        tracing::info!(hook, verdict, cgroup, "a kernel program refused");
    } else {
        tracing::info!(hook, verdict, cgroup, "a kernel program let through");
    }
}

/// Takes an [`Event`] apart: the hook, the verdict and the cgroup's id.
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
    fn events_have_the_layout_of_the_programs() {
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
    fn other_bytes_are_no_event() {
        assert_eq!(parse(&bytes(9, 0, 1)), None);
        assert_eq!(parse(&bytes(0, 99, 1)), None);
        assert_eq!(parse(&bytes(0, 0, 1)[..15]), None);
        assert_eq!(parse(&[]), None);
    }
}
