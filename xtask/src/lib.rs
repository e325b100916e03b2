//! kiam's development commands: those that make and check files, and the door to the suites and
//! benchmarks.
//!
//! ```text
//! test         all tests that need no cluster
//! fuzz         long runs of the property tests of hostile input
//! deploy       the chart, manifests, alerts, dashboards and reference pages, made and checked
//! image        the container image
//! lint         format, clippy, rustdoc, rules of the project, dependencies
//! manifests    manifests of the packages
//! ```

pub mod deploy;
pub mod fuzz;
pub mod image;
pub mod lint;
mod manifests;
pub mod test;
