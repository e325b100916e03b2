//! How the agent stands with the servers, for whoever wants to know.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::sync::watch;

/// How the agent stands with the servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Standing {
    /// Nothing has come of it yet, neither way.
    #[default]
    Begun,
    /// A server keeps it informed.
    Synced {
        /// Which.
        server: SocketAddr,
        /// Since when.
        since: SystemTime,
    },
    /// It lives on what it knows.
    Broken {
        /// What became of the last try, in words.
        why: String,
        /// Since when no server keeps it informed.
        since: SystemTime,
    },
}

/// Reads the newest [`Standing`].
pub type Standings = watch::Receiver<Standing>;

/// Tells it.
#[derive(Debug, Default)]
pub(super) struct Teller(watch::Sender<Standing>);

impl Teller {
    pub(super) fn readers(&self) -> Standings {
        self.0.subscribe()
    }

    pub(super) fn synced(&self, server: SocketAddr, now: SystemTime) {
        self.0.send_if_modified(|standing| {
            let new = !matches!(standing, Standing::Synced { server: old, .. } if *old == server);
            if new {
                *standing = Standing::Synced { server, since: now };
            }
            new
        });
    }

    /// The time since when it is broken stays that of the first failure.
    pub(super) fn broken(&self, why: String, now: SystemTime) {
        self.0.send_modify(|standing| {
            let since = match standing {
                Standing::Broken { since, .. } => *since,
                Standing::Begun | Standing::Synced { .. } => now,
            };
            *standing = Standing::Broken { why, since };
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_broken_since_the_first_failure_after_the_last_success() {
        let teller = Teller::default();
        let readers = teller.readers();
        assert_eq!(*readers.borrow(), Standing::Begun);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let broken = |why: &str, seconds| Standing::Broken {
            why: why.to_owned(),
            since: at(seconds),
        };
        teller.broken("no DNS".to_owned(), at(1));
        teller.broken("no route".to_owned(), at(2));
        assert_eq!(*readers.borrow(), broken("no route", 1));
        let server = SocketAddr::from(([10, 0, 0, 1], 9610));
        let synced = Standing::Synced {
            server,
            since: at(3),
        };
        teller.synced(server, at(3));
        teller.synced(server, at(4));
        assert_eq!(*readers.borrow(), synced);
        teller.broken("cut".to_owned(), at(5));
        assert_eq!(*readers.borrow(), broken("cut", 5));
    }
}
