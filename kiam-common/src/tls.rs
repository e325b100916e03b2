//! Mutual TLS between agents and servers, with certificates that can change at run time.
//!
//! TLS 1.3 only: both ends are kiam programs, and the Go agents of kiam v3 and v4 support it too.
//!
//! ```text
//! material   the three PEM files, read and validated
//! reload     the TLS configuration, replaced when the files change and are valid
//! accept     server side: connections after their handshake
//! connect    agent side: a gRPC channel to one server
//! keepalive  detection of dead connections
//! peer       the peer of a connection, and the names in its certificate
//! explain    the cause of a failed handshake, for people
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
