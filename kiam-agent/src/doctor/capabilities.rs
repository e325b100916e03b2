//! Capabilities: what this process has, and a load of the programs with those of the agent alone.
//!
//! The verifier checks more where `CAP_PERFMON` is missing, which root has and the agent has not:
//! a load with more than the agent's capabilities proves nothing about the agent.

use std::thread;

use caps::{CapSet, Capability, CapsHashSet};

use super::Finding;
use crate::kernel;

/// What the agent needs.
const AGENT: [Capability; 3] = [
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
];

/// What may help where the verifier refuses the programs.
const ALSO: Capability = Capability::CAP_PERFMON;

/// Returns what is missing of the agent's capabilities.
pub(super) fn finding() -> Finding {
    const CHECK: &str = "capabilities";
    match caps::read(None, CapSet::Effective) {
        Ok(effective) => missing(&effective).map_or_else(
            || Finding::ok(CHECK, format!("{} are there", names(AGENT))),
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
            format!("cannot read them: {error}"),
            "mount the node's /proc into the container",
        ),
    }
}

/// Loads the programs with the agent's capabilities, and those of `extra`, as far as this process
/// has them.
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
                    "the kernel's verifier accepts all of them with {}",
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
            "with the capability PERFMON the kernel accepts them: add it to agent.extraCapabilities in the \
             chart's values (it lets the agent read the kernel's memory), and please report this kernel",
        );
    }
    Finding::new(CHECK, super::State::Fail, error, None)
}

/// Loads the programs on a thread of its own, which alone gives capabilities up.
fn load_with(capabilities: CapsHashSet) -> Result<(), String> {
    let load = move || {
        // Raised and lowered within what is permitted: the effective set first, as it may not exceed.
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &capabilities)
                .map_err(|error| format!("cannot give up capabilities: {error}"))?;
        }
        kernel::verify().map_err(|error| error.to_string())
    };
    let panicked = |_panic| Err("the load ended with a panic, see above".to_owned());
    thread::spawn(load).join().unwrap_or_else(panicked)
}

fn missing(effective: &CapsHashSet) -> Option<String> {
    let missing = AGENT.into_iter().filter(|one| !effective.contains(one));
    Some(names(missing)).filter(|names| !names.is_empty())
}

/// By number, so that a set is always named the same.
fn sorted(capabilities: &CapsHashSet) -> Vec<Capability> {
    let mut sorted: Vec<_> = capabilities.iter().copied().collect();
    sorted.sort_by_key(Capability::index);
    sorted
}

/// Names as in a pod's securityContext.
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
        // As a container has them by default.
        let few = [Capability::CAP_CHOWN, Capability::CAP_NET_RAW];
        let few: CapsHashSet = few.into_iter().collect();
        assert_eq!(
            missing(&few).as_deref(),
            Some("DAC_READ_SEARCH, NET_ADMIN, BPF")
        );
    }

    #[test]
    fn a_load_leaves_this_process_as_it_was() {
        let before = caps::read(None, CapSet::Effective).unwrap();
        let _outcome = verifier(&[]);
        assert_eq!(caps::read(None, CapSet::Effective).unwrap(), before);
    }
}
