//! State of the connection to the servers.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::sync::watch;

/// State of the connection to the servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConnectionState {
    /// No attempt has succeeded or failed yet.
    #[default]
    Starting,
    /// A stream is synced.
    Synced {
        /// The server.
        server: SocketAddr,
        /// Time at which it was synced.
        since: SystemTime,
    },
    /// No stream is synced; the agent works with the last known state.
    Disconnected {
        /// The last failure.
        why: String,
        /// Time of the first failure after the last success.
        since: SystemTime,
    },
}

/// Receiver of the newest [`ConnectionState`].
pub(crate) type ConnectionStates = watch::Receiver<ConnectionState>;

/// Sender of state changes.
#[derive(Debug, Default)]
pub(super) struct ConnectionStateSender(watch::Sender<ConnectionState>);

impl ConnectionStateSender {
    pub(super) fn readers(&self) -> ConnectionStates {
        self.0.subscribe()
    }

    pub(super) fn synced(&self, server: SocketAddr, now: SystemTime) {
        self.0.send_if_modified(|state| {
            let new =
                !matches!(state, ConnectionState::Synced { server: old, .. } if *old == server);
            if new {
                *state = ConnectionState::Synced { server, since: now };
            }
            new
        });
    }

    /// Records a failure. The time of the first one since the last success is kept.
    pub(super) fn broken(&self, why: String, now: SystemTime) {
        self.0.send_modify(|state| {
            let since = match state {
                ConnectionState::Disconnected { since, .. } => *since,
                ConnectionState::Starting | ConnectionState::Synced { .. } => now,
            };
            *state = ConnectionState::Disconnected { why, since };
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn disconnected_since_the_first_failure_after_the_last_success() {
        let sender = ConnectionStateSender::default();
        let readers = sender.readers();
        assert_eq!(*readers.borrow(), ConnectionState::Starting);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let broken = |why: &str, seconds| ConnectionState::Disconnected {
            why: why.to_owned(),
            since: at(seconds),
        };
        sender.broken("no DNS".to_owned(), at(1));
        sender.broken("no route".to_owned(), at(2));
        assert_eq!(*readers.borrow(), broken("no route", 1));
        let server = SocketAddr::from(([10, 0, 0, 1], 9610));
        let synced = ConnectionState::Synced {
            server,
            since: at(3),
        };
        sender.synced(server, at(3));
        sender.synced(server, at(4));
        assert_eq!(*readers.borrow(), synced);
        sender.broken("cut".to_owned(), at(5));
        assert_eq!(*readers.borrow(), broken("cut", 5));
    }
}
