//! Resource limits of the process, and protection of its memory.

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard limit, and returns it. A server has a connection
/// for each node, an agent one for each client in a pod; the usual soft limit of 1024 exists for
/// programs that use `select` (`man 3 select`).
///
/// Logs a warning and leaves the limit as it is if that fails.
pub fn raise_open_files() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "cannot read the limit of open files (RLIMIT_NOFILE)");
            return 0;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files (RLIMIT_NOFILE)");
            soft
        }
    }
}

/// Disables core files, regardless of `ulimit -c` and `kernel.core_pattern`: the memory of this
/// process holds credentials. Processes of the same user cannot trace it either
/// (`man 2 PR_SET_DUMPABLE`); root can, with `CAP_SYS_PTRACE`.
///
/// Logs a warning if the kernel refuses.
pub fn disable_core_files() {
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "cannot disable core files, which would contain credentials");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise_open_files(), hard);
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
