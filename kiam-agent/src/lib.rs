//! kiam's agent: one per node, between the node's pods and the metadata service.
//!
//! ```text
//!  a pod's connection ──► kernel ──► metadata ◄── view ◄── stream ◄── server
//!                           │           │
//!                           └─► caller ─┘  which pod is it?
//! ```

pub mod args;
pub mod stream;
pub mod view;
