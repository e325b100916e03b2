//! Checks of what the kernel programs depend on: cgroups, the BPF file system, the verifier, and
//! programs of other software.

use std::path::{Path, PathBuf};

use super::{Finding, capabilities};
use crate::args::DoctorArgs;
use crate::kernel::cgroup::Mount;
use crate::kernel::{self, ForeignPrograms};

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
                format!("no directory {}", pods.display()),
                "set --pods-cgroup to the cgroup below the --cgroup-root of the kubelet",
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
            format!("{}, with nothing of kiam in it yet", path.display()),
        ),
        Ok(links) => Finding::ok(
            CHECK,
            format!("{}, with {links} attached programs of kiam", path.display()),
        ),
        Err(error) => Finding::error(CHECK, &error),
    }
}

fn hooks(pods: &Path, bpffs: &Path) -> Finding {
    const CHECK: &str = "foreign programs";
    let others = match kernel::foreign_programs(pods, bpffs) {
        Ok(others) => others,
        Err(error) => {
            return Finding::warn(
                CHECK,
                format!("cannot query the hooks: {error}"),
                "run doctor with the capability NET_ADMIN",
            );
        }
    };
    let named: Vec<_> = others.iter().filter_map(ForeignPrograms::summary).collect();
    if named.is_empty() {
        return Finding::ok(CHECK, "none");
    }
    // Programs of kiam are recognized by their pins.
    if kernel::pinned(bpffs).is_err() {
        return Finding::warn(
            CHECK,
            format!(
                "cannot tell programs of kiam from others: {} is not the BPF file system of the agent; programs by id, {}",
                bpffs.display(),
                named.join("; ")
            ),
            "set --bpffs as for the agent, or run doctor in the container of the agent",
        );
    }
    Finding::warn(
        CHECK,
        format!("programs by id, {}", named.join("; ")),
        "`bpftool prog show id ID` shows them. The programs of kiam run first, on the pods' own cgroup; those of a CNI see \
        connections to the address of the agent in place of the metadata service's",
    )
}
