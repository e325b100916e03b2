//! Why the kernel does not do its part, in the words of those who run the node.

use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::{BtfError, EbpfError};

use kiam_common::causes::causes;

use super::pins::PinsError;

/// Why the kernel does not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// What the programs tell cannot be read.
    #[error("cannot read what the kernel programs tell (--kernel-log): {0}")]
    Events(#[source] std::io::Error),
    /// The agent was built without the programs.
    #[error(
        "this agent was built without its kernel programs; run `cargo xtask build-ebpf`, then build it again"
    )]
    NoObject,
    /// The kernel does not describe itself.
    #[error(
        "the kernel has no BTF at /sys/kernel/btf/vmlinux ({0}); it needs CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(#[source] Box<BtfError>),
    /// The object was not accepted.
    #[error("the kernel programs cannot be loaded: {}", chain(.0))]
    Load(#[source] Box<EbpfError>),
    /// A program was not accepted.
    #[error(
        "the kernel does not accept the program {program}: {}",
        rejection(source)
    )]
    Rejected {
        /// The program.
        program: &'static str,
        /// Why, with the verifier's words if it was the verifier.
        source: Box<ProgramError>,
    },
    /// A program or map is missing in the object.
    #[error("the kernel object has no {name}; was it built from another version?")]
    Missing {
        /// What is missing.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error("the kernel map {name} cannot be used: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The pods' cgroup cannot be opened.
    #[error("cannot open the pods' cgroup {}: {source}", path.display())]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program cannot be attached.
    #[error("cannot attach the program {program} to {}: {}", path.display(), chain(source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The place where links and maps are kept cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// There are no links, which is all that can be pinned.
    #[error("the kernel has no links for programs on cgroups; it must be Linux 5.7 or newer")]
    NoLinks,
    /// A link cannot be pinned.
    #[error("cannot pin the link of the program {name}: {}", chain(source))]
    Pin {
        /// The program.
        name: &'static str,
        /// Why.
        source: Box<PinError>,
    },
    /// A link does not take another program.
    #[error(
        "cannot replace the program {program} of an earlier agent: {source}; `kiam-agent cleanup` removes it"
    )]
    Replace {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

pub(super) fn typed<T>(name: &'static str, result: Result<T, MapError>) -> Result<T, KernelError> {
    result.map_err(|source| KernelError::Map {
        name,
        source: Box::new(source),
    })
}

pub(super) fn rejected(program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Rejected {
        program,
        source: Box::new(source),
    }
}

pub(super) fn not_attached(
    program: &'static str,
    path: &Path,
) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Attach {
        program,
        path: path.to_owned(),
        source: Box::new(source),
    }
}

/// An error with its causes, on one line, and what helps against the commonest.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let denied = std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let mut text = causes(error);
    if denied {
        text.push_str("; the agent needs the capabilities BPF and NET_ADMIN");
    }
    text
}

/// The end of what the verifier said tells what it did not like.
fn rejection(error: &ProgramError) -> String {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
            if tail.is_empty() {
                return chain(io_error);
            }
            format!("{io_error}; the verifier's last words:\n  {tail}")
        }
        other => chain(other),
    }
}
