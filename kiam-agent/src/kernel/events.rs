//! `--kernel-log`: what the programs decide, one by one, in the agent's log.
#![expect(
    unsafe_code,
    reason = "whoever waits for a descriptor vouches that it stays the same"
)]

use std::fmt;
use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use kiam_ebpf::{Hook, Verdict};
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::KernelError;

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
    /// As aya-log numbers levels: 3 is info, 4 debug.
    pub(super) const fn level(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Refused => 3,
            Self::All => 4,
        }
    }
}

/// Reads what the programs tell.
pub struct Events(AsyncFd<EbpfLogger<Names>>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Of programs that were loaded for it.
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, KernelError> {
        let failed = |source: io::Error| KernelError::Events(source.to_string());
        let logger = EbpfLogger::init_with_logger(object, Names);
        let logger = logger.map_err(|error| KernelError::Events(error.to_string()))?;
        // SAFETY: the descriptor is of the ring buffer that the logger owns, whose descriptor does not
        // change, for as long as it is in here.
        let events = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        events.map(Self).map_err(|error| failed(error.into()))
    }

    /// Logs what they tell, until told to stop. What comes faster than it is logged is lost: there
    /// is room for 128 KiB.
    pub async fn keep(mut self, stop: CancellationToken) {
        loop {
            let ready = tokio::select! {
                () = stop.cancelled() => return,
                ready = self.0.readable_mut() => ready,
            };
            match ready {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => {
                    tracing::error!(%error, "cannot read what the kernel programs tell");
                    return;
                }
            }
        }
    }
}

/// Gives the programs' numbers their names.
struct Names;

impl Log for Names {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match read(&text) {
            Some((hook, verdict, cgroup)) if verdict.is_refusal() => tracing::info!(
                hook = hook.as_label(),
                verdict = verdict.as_label(),
                cgroup,
                "a kernel program refused"
            ),
            Some((hook, verdict, cgroup)) => tracing::info!(
                hook = hook.as_label(),
                verdict = verdict.as_label(),
                cgroup,
                "a kernel program let through"
            ),
            None => tracing::warn!(text, "a kernel program tells what is not understood"),
        }
    }

    fn flush(&self) {}
}

/// The hook, the verdict and the cgroup's id.
fn read(text: &str) -> Option<(Hook, Verdict, u64)> {
    let mut words = text.split(' ');
    let hook = Hook::ALL.get(words.next()?.parse::<usize>().ok()?)?;
    let verdict = Verdict::ALL.get(words.next()?.parse::<usize>().ok()?)?;
    Some((*hook, *verdict, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_programs_own() {
        for hook in Hook::ALL {
            for verdict in Verdict::ALL {
                let text = format!("{} {} 77", hook as u32, verdict as u32);
                assert_eq!(read(&text), Some((hook, verdict, 77)));
            }
        }
        for bad in ["", "9 0 1", "0 99 1", "0 0", "a b c"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
