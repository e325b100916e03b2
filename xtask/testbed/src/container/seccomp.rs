//! System calls that containers may make: the default profile of podman and CRI-O, from
//! Debian's package, as `RuntimeDefault` is one in clusters.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use toolchain::Architecture;

/// Path in the package `golang-github-containers-common`.
pub(super) const PROFILE: &str = "/usr/share/containers/seccomp.json";
/// Since 2020 profiles let those who have `CAP_BPF` call these; Debian 12's is older.
const FOR_BPF: &str = "bpf";

/// The profile for a container with these capabilities.
pub(super) fn profile(capabilities: &[String]) -> Result<Value> {
    let text = std::fs::read_to_string(PROFILE).with_context(|| {
        format!("there is no {PROFILE} (package golang-github-containers-common)")
    })?;
    let profile = serde_json::from_str(&text).with_context(|| format!("{PROFILE} is no JSON"))?;
    Ok(resolve(&profile, Architecture::native()?, capabilities))
}

/// Takes the rules that hold for this machine and these capabilities, in the runtimes' own form.
fn resolve(profile: &Value, architecture: Architecture, capabilities: &[String]) -> Value {
    let names = |rule: &Value, when: &str, what: &str| -> Vec<String> {
        let list = rule[when][what].as_array();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        list.into_iter().flatten().filter_map(text).collect()
    };
    let has = |wanted: &String| capabilities.contains(wanted);
    let mut rules: Vec<Value> = Vec::new();
    let no_rules = Vec::new();
    for rule in profile["syscalls"].as_array().unwrap_or(&no_rules) {
        let architectures = names(rule, "includes", "arches");
        let here = architectures.is_empty()
            || architectures
                .iter()
                .any(|name| name == architecture.debian());
        let included = names(rule, "includes", "caps");
        let excluded = names(rule, "excludes", "caps");
        if here && included.iter().all(has) && !excluded.iter().any(has) {
            let mut taken = json!({ "names": rule["names"], "action": rule["action"] });
            for name in ["args", "errnoRet"] {
                if rule[name].is_array() || rule[name].is_u64() {
                    taken[name] = rule[name].clone();
                }
            }
            rules.push(taken);
        }
    }
    if capabilities.iter().any(|has| has == "CAP_BPF") {
        for rule in &mut rules {
            if rule["action"] == "SCMP_ACT_ERRNO"
                && let Some(names) = rule["names"].as_array_mut()
            {
                names.retain(|name| name != FOR_BPF);
            }
        }
        rules.push(json!({ "names": [FOR_BPF], "action": "SCMP_ACT_ALLOW" }));
    }
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": [format!("SCMP_ARCH_{}", architecture.processor().to_uppercase())],
        "syscalls": rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_taken_by_capability() {
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {} },
            { "names": ["bpf", "mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["bpf", "mount"], "action": "SCMP_ACT_ERRNO", "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
        ]});
        let allowed = |capabilities: &[&str], action: &str| -> Vec<String> {
            let capabilities: Vec<_> = capabilities.iter().map(|name| (*name).to_owned()).collect();
            let resolved = resolve(&profile, Architecture::Amd64, &capabilities);
            let rules = resolved["syscalls"].as_array().unwrap().clone();
            let rules = rules.iter().filter(|rule| rule["action"] == action);
            let names = rules.flat_map(|rule| rule["names"].as_array().unwrap().clone());
            names
                .map(|name| name.as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(allowed(&[], "SCMP_ACT_ALLOW"), ["read"]);
        assert_eq!(allowed(&[], "SCMP_ACT_ERRNO"), ["bpf", "mount"]);
        assert_eq!(allowed(&["CAP_BPF"], "SCMP_ACT_ALLOW"), ["read", "bpf"]);
        assert_eq!(allowed(&["CAP_BPF"], "SCMP_ACT_ERRNO"), ["mount"]);
    }
}
