//! kiam's development commands, and the sandboxes and test doubles behind them.
//!
//! ```text
//! demo         a node with pods that get their credentials, to look at
//! test         all tests that need no cluster
//! e2e          the whole path against a real Kubernetes API
//! clients      AWS's SDKs and other clients, in every state that kiam shows them
//! conformance  a metadata service, line by line against the real one
//! faults       what pods notice while one part after another breaks
//! node         real kernels and nodes, in virtual machines
//! fuzz         property tests of what hostile bytes reach, for long
//! deploy       the chart, manifests, alerts, dashboards and reference pages, made and checked
//! image        the container image
//! instructions how many a request takes, against a budget
//! lint         format, clippy, documentation, dependencies
//!
//! probe        one request from inside of a pod
//! room         a sandbox to try something in by hand
//! sdk          AWS's SDKs, as unmodified clients
//! sandbox      nodes and pods made of network namespaces and cgroups
//! doubles      STS and the node's metadata service, as far as tests need them
//! cluster      etcd and Kubernetes, built from their modules
//! container    containers of the image
//! kiam         kiam's programs, built and run in a sandbox
//! pki          certificate authorities and certificates
//! stage        a sandbox with STS, and a file in place of a cluster's API
//! ```

pub mod attack;
pub mod bench;
pub mod bench_ebpf;
pub mod clients;
pub mod cluster;
pub mod conformance;
pub mod container;
pub mod demo;
pub mod deploy;
pub mod doubles;
pub mod e2e;
pub mod faults;
pub mod fuzz;
pub mod image;
pub mod instructions;
pub mod kiam;
pub mod lint;
pub mod load;
pub mod node;
pub mod pki;
pub mod probe;
pub mod restarts;
pub mod room;
pub mod sandbox;
pub mod sdk;
pub mod stage;
pub mod test;
