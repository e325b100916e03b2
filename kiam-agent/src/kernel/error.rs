//! Errors of the kernel programs.

use std::path::{Path, PathBuf};

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::{BtfError, EbpfError};
use kiam_common::error_chain::error_chain;

use super::pins::PinsError;

/// Error when loading, attaching or reading the kernel programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The ring buffer of decisions cannot be read.
    #[error("cannot read the decisions of the kernel programs (--kernel-log): {0}")]
    Events(#[source] std::io::Error),
    /// The agent was built without the programs.
    #[error(
        "this agent was built without its kernel programs; run `cargo xtask build-ebpf`, then build it again"
    )]
    NoObject,
    /// The kernel has no BTF.
    #[error(
        "the kernel provides no BTF at /sys/kernel/btf/vmlinux: {0}; use a kernel with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(#[source] Box<BtfError>),
    /// The object was rejected.
    #[error("cannot load the kernel programs: {}", chain(.0))]
    Load(#[source] Box<EbpfError>),
    /// The verifier or the kernel rejected a program.
    #[error("the kernel rejects the program {program}: {}", rejection(cause))]
    Rejected {
        /// Name of the program.
        program: &'static str,
        /// The error. Not a source: its text is the whole log of the verifier.
        cause: Box<ProgramError>,
    },
    /// A program or map is missing in the object.
    #[error("the kernel object has no {name}; build it again with `cargo xtask build-ebpf`")]
    Missing {
        /// Name of the program or map.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error("cannot use the kernel map {name}: {source}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// The error of the map.
        source: Box<MapError>,
    },
    /// The pods' cgroup cannot be opened.
    #[error("cannot open the pods' cgroup {}: {source}", path.display())]
    Cgroup {
        /// Path of the cgroup.
        path: PathBuf,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// A program cannot be attached.
    #[error("cannot attach the program {program} to {}: {}", path.display(), chain(source))]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Path of the cgroup.
        path: PathBuf,
        /// The error of the kernel.
        source: Box<ProgramError>,
    },
    /// The directory for pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The kernel has no links, which pins need.
    #[error("the kernel does not support links for programs on cgroups; use Linux 5.7 or newer")]
    NoLinks,
    /// A link cannot be pinned.
    #[error("cannot pin the link of the program {name}: {}", chain(source))]
    Pin {
        /// Name of the program.
        name: &'static str,
        /// The error of the kernel.
        source: Box<PinError>,
    },
    /// The program of a link cannot be replaced.
    #[error(
        "cannot replace the program {program} of an earlier agent: {source}; `kiam-agent cleanup` removes it"
    )]
    Replace {
        /// Name of the program.
        program: &'static str,
        /// The error of the kernel.
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
    move |cause| KernelError::Rejected {
        program,
        cause: Box::new(cause),
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

/// Formats an error with its causes, on one line, and adds advice for the most common one.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let denied = std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let mut text = error_chain(error);
    if denied {
        text.push_str("; the agent needs the capabilities BPF and NET_ADMIN");
    }
    text
}

/// Formats a load error with the end of the verifier's log.
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
            format!("{io_error}; the verifier's log ends with:\n  {tail}")
        }
        other => chain(other),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_rejection_has_no_source_whose_text_is_the_whole_log() {
        let error = rejected("kiam_connect4")(ProgramError::NotLoaded);
        assert!(error.to_string().contains("kiam_connect4"), "{error}");
        assert!(error.source().is_none(), "{error}");
    }
}
