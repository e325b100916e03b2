//! Test bed of kiam's tests, suites and benchmarks: nodes and pods without virtual machines, a real
//! control plane, test doubles of AWS, and kiam's programs.
//!
//! ```text
//! sandbox       nodes and pods, made of network namespaces and cgroups
//! doubles       test doubles of STS, the metadata service, DNS and a proxy
//! pki           certificate authorities and certificates
//! kiam          kiam's programs, built and run in a sandbox
//! file_cluster  a sandbox with the STS double, and files in place of the Kubernetes API
//! fixture       the start of a sandbox test: a served node with the pods of two teams
//! cluster       etcd and Kubernetes, built from their modules; the kubelet's part
//! container     containers of the image
//! image         the container image that was made last
//! probe         one request from inside a pod
//! sdk           AWS's SDKs, as unmodified clients
//! test_output   counts of passed, failed and skipped tests, from the output of `cargo test`
//! ```
#![warn(missing_docs)]

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod container;
pub mod doubles;
pub mod file_cluster;
pub mod fixture;
pub mod image;
pub mod kiam;
pub mod pki;
pub mod probe;
pub mod sandbox;
pub mod sdk;
pub mod test_output;
