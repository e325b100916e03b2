//! Suites that try whole agents and servers, each a command of `cargo xtask`.
//!
//! ```text
//! demo         a node with pods that get their credentials
//! e2e          the whole path against a real Kubernetes API
//! clients      AWS SDKs and other clients, in every state of kiam
//! conformance  a metadata service, line by line against the real one
//! attack       a hostile pod
//! restarts     upgrades and kills of an agent under load
//! faults       a small cluster, while one part after another breaks
//! node         real kernels and nodes, in virtual machines
//! sandbox      nodes and pods for manual experiments
//! patched      agents built from a patched copy of the source
//! metrics      metrics that the programs define, read from their sources
//! ```

pub mod attack;
pub mod clients;
pub mod conformance;
pub mod demo;
pub mod e2e;
pub mod faults;
pub mod metrics;
pub mod node;
pub mod patched;
pub mod restarts;
pub mod sandbox;
