//! A real Kubernetes control plane: etcd and kube-apiserver, and the other components for whoever has
//! nodes.
//!
//! All are built once from their Go modules, `xtask/testbed/cluster/go.mod`, into the user's cache; the
//! first two may be taken from `KUBEBUILDER_ASSETS`. Controllers run where they are asked for.
//! Whoever does not ask makes the objects that they would make, and plays the kubelet; or lets
//! [`Workloads`] do so.

mod binaries;
pub mod containers;
mod control_plane;
mod kubelet;
mod logs;
mod objects;
mod workloads;

pub use binaries::{Binaries, plan};
pub use binaries::{components, plan_components};
pub use control_plane::ControlPlane;
pub use kubelet::{Kubelet, Running};
pub use objects::{Objects, PodTemplate};
pub use workloads::Workloads;
