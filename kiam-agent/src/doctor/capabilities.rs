//! Capabilities: those of this process, and a test load of the programs with only the agent's.
//!
//! The verifier checks more in a process without `CAP_PERFMON`, which root has and the agent does
//! not: a load with more capabilities than the agent's proves nothing about the agent.

use std::thread;

use caps::{CapSet, Capability, CapsHashSet};

use super::Finding;
use crate::kernel;

/// Capabilities that the agent needs.
const AGENT: [Capability; 3] = [
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
];

/// Capability that may help if the verifier rejects the programs.
const ALSO: Capability = Capability::CAP_PERFMON;

/// Checks this process for the agent's capabilities.
pub(super) fn finding() -> Finding {
    const CHECK: &str = "capabilities";
    match caps::read(None, CapSet::Effective) {
        Ok(effective) => missing(&effective).map_or_else(
            || Finding::ok(CHECK, format!("{} present", names(AGENT))),
            |missing| {
                Finding::fail(
                    CHECK,
                    format!("{missing} missing"),
                    "add them to the container's securityContext.capabilities",
                )
            },
        ),
        Err(error) => Finding::warn(
            CHECK,
            format!("cannot read the capabilities of this process: {error}"),
            "mount the node's /proc into the container",
        ),
    }
}

/// Loads the programs with the agent's capabilities and `extra`, as far as this process has them.
pub(super) fn verifier(extra: &[Capability]) -> Finding {
    const CHECK: &str = "kernel programs";
    let own = caps::read(None, CapSet::Effective).unwrap_or_default();
    let agent: CapsHashSet = AGENT.into_iter().chain(extra.iter().copied()).collect();
    let agent: CapsHashSet = agent.intersection(&own).copied().collect();
    let error = match load_with(agent.clone()) {
        Ok(()) => {
            return Finding::ok(
                CHECK,
                format!(
                    "the verifier of the kernel accepts all programs with {}",
                    names(sorted(&agent))
                ),
            );
        }
        Err(error) => error,
    };
    let more: CapsHashSet = agent.iter().copied().chain([ALSO]).collect();
    if own.contains(&ALSO) && !agent.contains(&ALSO) && load_with(more).is_ok() {
        return Finding::fail(
            CHECK,
            error,
            "with the capability PERFMON the kernel accepts the programs: add it to agent.extraCapabilities in \
            the values of the chart (it permits the agent to read kernel memory), and report this kernel",
        );
    }
    Finding::new(CHECK, super::State::Fail, error, None)
}

/// Loads the programs in a separate thread, which drops capabilities for itself only.
fn load_with(capabilities: CapsHashSet) -> Result<(), String> {
    let load = move || {
        // The effective set first: it must not exceed the permitted set.
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &capabilities)
                .map_err(|error| format!("cannot drop capabilities: {error}"))?;
        }
        kernel::verify().map_err(|error| error.to_string())
    };
    let panicked = |_panic| Err("the test load panicked; see the message above".to_owned());
    thread::spawn(load).join().unwrap_or_else(panicked)
}

fn missing(effective: &CapsHashSet) -> Option<String> {
    let missing = AGENT.into_iter().filter(|one| !effective.contains(one));
    Some(names(missing)).filter(|names| !names.is_empty())
}

/// Sorts capabilities by number, so that a set is always printed the same.
fn sorted(capabilities: &CapsHashSet) -> Vec<Capability> {
    let mut sorted: Vec<_> = capabilities.iter().copied().collect();
    sorted.sort_by_key(Capability::index);
    sorted
}

/// Joins the names as they are in a pod's securityContext.
fn names(capabilities: impl IntoIterator<Item = Capability>) -> String {
    let names = capabilities
        .into_iter()
        .map(|one| one.to_string().replace("CAP_", ""));
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing(&caps::all()), None);
        // The default set of a container.
        let few = [Capability::CAP_CHOWN, Capability::CAP_NET_RAW];
        let few: CapsHashSet = few.into_iter().collect();
        assert_eq!(
            missing(&few).as_deref(),
            Some("DAC_READ_SEARCH, NET_ADMIN, BPF")
        );
    }

    #[test]
    fn a_load_leaves_the_process_unchanged() {
        let before = caps::read(None, CapSet::Effective).unwrap();
        let _outcome = verifier(&[]);
        assert_eq!(caps::read(None, CapSet::Effective).unwrap(), before);
    }
}
