//! The gRPC service of kiam v4, for its agents during a migration.
//!
//! ```text
//! service   the three calls, with the messages and status texts of kiam
//! leases    the identities that are refreshed for these agents
//! ```
//!
//! These agents identify a pod by its address and do not prove their node: every client with a
//! certificate can get the credentials of any pod. The policies are those of this server, which are
//! stricter than kiam's in some cases.

mod leases;
mod service;
#[cfg(test)]
mod tests;

pub(crate) use leases::Leases;
pub(crate) use service::LegacyService;
