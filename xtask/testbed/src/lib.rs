//! Test bed of kiam's tests, suites and benchmarks: nodes and pods without virtual machines, a real
//! control plane, stand-ins for AWS, and kiam's own programs in between.
//!
//! ```text
//! sandbox    nodes and pods, made of network namespaces and cgroups
//! doubles    STS, the node's metadata service and the Kubernetes API, as far as tests need them
//! pki        certificate authorities and certificates
//! cluster    etcd and Kubernetes, built from their modules; the kubelet's part
//! container  containers of the image
//! image      the container image that was made last
//! kiam       kiam's programs, built and run in a sandbox
//! stage      a sandbox with STS, and a file in place of a cluster's API
//! probe      one request from inside a pod
//! sdk        AWS's SDKs, as unmodified clients
//! test_output  what cargo's tests print
//! ```

#[cfg(feature = "cluster")]
pub mod cluster;
pub mod container;
pub mod doubles;
pub mod image;
pub mod kiam;
pub mod pki;
pub mod probe;
pub mod sandbox;
pub mod sdk;
pub mod stage;
pub mod test_output;
