//! What the kernel programs stand on: cgroups, the BPF file system, the verifier, and who else is
//! there.

use std::path::{Path, PathBuf};

use super::{Finding, capabilities};
use crate::args::DoctorArgs;
use crate::kernel::cgroup::Mount;
use crate::kernel::{self, Others};

pub(super) fn findings(args: &DoctorArgs) -> Vec<Finding> {
    let (cgroups, pods) = cgroups(args.node.pods_cgroup.as_deref());
    let mut findings = cgroups;
    findings.push(bpffs(&args.node.bpffs));
    findings.push(capabilities::verifier(&args.extra_capabilities));
    if let Some(pods) = pods {
        findings.push(hooks(&pods, &args.node.bpffs));
    }
    findings
}

fn cgroups(given: Option<&Path>) -> (Vec<Finding>, Option<PathBuf>) {
    const CHECK: &str = "cgroup2";
    const PODS: &str = "pods' cgroup";
    let mount = match given.map_or_else(Mount::find, Mount::of) {
        Ok(mount) => mount,
        Err(error) => return (vec![Finding::error(CHECK, &error)], None),
    };
    let hybrid = mount.path().ends_with("unified");
    let kind = if hybrid {
        "beside version 1"
    } else {
        "unified"
    };
    let found = Finding::ok(CHECK, format!("{} ({kind})", mount.path().display()));
    let pods = given.map_or_else(|| mount.pods(), |given| Ok(given.to_owned()));
    match pods {
        Ok(pods) if pods.is_dir() => {
            let finding = Finding::ok(PODS, pods.display().to_string());
            (vec![found, finding], Some(pods))
        }
        Ok(pods) => {
            let finding = Finding::fail(
                PODS,
                format!("there is no {}", pods.display()),
                "give --pods-cgroup as the kubelet's --cgroup-root has it",
            );
            (vec![found, finding], None)
        }
        Err(error) => (vec![found, Finding::error(PODS, &error)], None),
    }
}

fn bpffs(path: &Path) -> Finding {
    const CHECK: &str = "BPF file system";
    match kernel::pinned(path) {
        Ok(0) => Finding::ok(
            CHECK,
            format!("{}, with nothing of kiam's in it yet", path.display()),
        ),
        Ok(links) => Finding::ok(
            CHECK,
            format!(
                "{}, with {links} programs of kiam's at work",
                path.display()
            ),
        ),
        Err(error) => Finding::error(CHECK, &error),
    }
}

fn hooks(pods: &Path, bpffs: &Path) -> Finding {
    const CHECK: &str = "others on the hooks";
    let others = match kernel::others(pods, bpffs) {
        Ok(others) => others,
        Err(error) => {
            return Finding::warn(
                CHECK,
                format!("cannot ask: {error}"),
                "run this with the capability NET_ADMIN",
            );
        }
    };
    let named: Vec<_> = others.iter().filter_map(Others::named).collect();
    if named.is_empty() {
        return Finding::ok(CHECK, "none");
    }
    // Which are kiam's is told by its pins.
    if kernel::pinned(bpffs).is_err() {
        return Finding::warn(
            CHECK,
            format!(
                "cannot tell others' from kiam's own without the agent's BPF file system, and {} is none; programs by id, {}",
                bpffs.display(),
                named.join("; ")
            ),
            "give --bpffs as the agent has it, or run this in the agent's container",
        );
    }
    Finding::warn(
        CHECK,
        format!("programs by id, {}", named.join("; ")),
        "kiam's run first, on the pods' own cgroup; `bpftool prog show id ID` names them, and a CNI's see connections to \
         the agent's address instead of the metadata service's",
    )
}
