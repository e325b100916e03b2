//! What the kernel lets a process have, and what it lets others have of it.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process have as many files open as it may: a server has a connection for each node,
/// an agent one for each client in a pod, and the usual soft limit of 1024 is for programs that
/// use `select` (`man 3 select`).
///
/// Returns how many that is. Where it cannot be raised the limit stays, and a warning says so.
pub fn raise_open_files() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "cannot read the limit of open files");
            return 0;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            soft
        }
    }
}

/// Makes this process leave no core file, whatever `ulimit -c` and `kernel.core_pattern` say: its memory
/// holds credentials. Processes of the same user cannot trace it either (`man 2 PR_SET_DUMPABLE`);
/// root can, by `CAP_SYS_PTRACE`. A warning says where the kernel refuses it.
pub fn leave_no_core_file() {
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "cannot rule out core files: they would hold credentials");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_is_allowed() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise_open_files(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
