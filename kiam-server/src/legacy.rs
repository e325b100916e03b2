//! kiam v4's own service, for its agents while a cluster is migrated.
//!
//! ```text
//! service   the three calls: kiam's messages, statuses and texts
//! holds     the identities that are kept fresh for its agents
//! ```
//!
//! Its agents name a pod by its address and prove no node: whoever has a certificate may ask for
//! any pod's credentials. Policies are this server's; where they are stricter than kiam's, so is
//! this.

mod holds;
mod service;
#[cfg(test)]
mod tests;

pub use holds::Holds;
pub use service::LegacyService;
