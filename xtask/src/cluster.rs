//! A real Kubernetes control plane for `e2e`: etcd and kube-apiserver.
//!
//! Both are built once from their Go modules, `xtask/cluster/go.mod`, into the user's cache; or
//! taken from `KUBEBUILDER_ASSETS`. No controller runs: whoever uses this makes the objects that
//! controllers would make, and plays the kubelet; or lets [`Workloads`] do so.

mod binaries;
pub mod containers;
mod control_plane;
pub(crate) mod go;
pub(crate) mod kubectl;
mod kubelet;
mod logs;
mod objects;
pub(crate) mod tool;
mod workloads;

pub use binaries::{Binaries, plan};
pub use control_plane::ControlPlane;
pub use kubelet::{Kubelet, Running};
pub use objects::{Objects, PodTemplate};
pub use workloads::Workloads;
