//! Mutual TLS between agents and servers, with certificates that are replaced while it runs.
//!
//! TLS 1.3 only: both ends are kiam's, and kiam's own Go agents speak it too.
//!
//! ```text
//! material   the three PEM files, read and checked
//! reload     the configuration made of them, swapped when they change; a bad new one never is
//! accept     the server's end: connections whose handshake is done
//! connect    the agent's end: a gRPC channel to one server
//! keepalive  how both find that the other is gone
//! peer       the other end of a connection, and the names in its certificate
//! explain    what a failed handshake means, for people
//! ```

mod accept;
mod connect;
mod explain;
mod keepalive;
mod material;
mod peer;
mod reload;

#[cfg(test)]
mod tests;

pub use accept::{Acceptor, Incoming};
pub use connect::{ConnectError, connect};
pub use explain::explain;
pub use material::{Material, TlsError};
pub use peer::{Connection, Peer, PeerNames};
pub use reload::{ClientTls, Reloading, ServerTls, TlsMetrics, TlsSide};
