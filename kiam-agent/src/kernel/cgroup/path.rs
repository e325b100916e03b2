//! The pod of a cgroup, by the path below the cgroup of all pods.
//!
//! The kubelet creates up to two levels there, the QoS class and the pod, with these names
//! (Kubernetes, pkg/kubelet/cm, `ToSystemd` and `ToCgroupfs`):
//!
//! ```text
//! systemd    kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice/…
//!            kubepods-pod<uid with _>.slice/…                        (guaranteed)
//! cgroupfs   burstable/pod<uid>/…
//!            pod<uid>/…                                              (guaranteed)
//! ```
//!
//! The levels below belong to the container runtime and to the pod, which may choose any names:
//! they are never read.

use std::path::Path;

use kiam_common::pod_uid::PodUid;

use crate::caller::PodRef;

/// QoS classes that have a cgroup.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// Returns the pod of a cgroup, by its path relative to the cgroup of all pods.
pub(crate) fn pod_of(below: &Path) -> Option<PodRef> {
    let mut levels = below.iter().map(|level| level.to_str());
    let first = levels.next()??;
    if CLASSES.contains(&first) {
        return cgroupfs(levels.next()??);
    }
    if let Some((class, parent)) = systemd_class(first) {
        return systemd(levels.next()??, &format!("{parent}-{class}-"));
    }
    cgroupfs(first).or_else(|| systemd(first, guaranteed_prefix(first)?))
}

/// Splits `kubepods-burstable.slice`; with `--cgroup-root`, a prefix precedes `kubepods`.
fn systemd_class(name: &str) -> Option<(&'static str, &str)> {
    let name = name.strip_suffix(".slice")?;
    CLASSES.into_iter().find_map(|class| {
        let parent = name.strip_suffix(class)?.strip_suffix('-')?;
        is_kubepods(parent).then_some((class, parent))
    })
}

/// Returns `kubepods-` for `kubepods-pod<uid>.slice`.
fn guaranteed_prefix(name: &str) -> Option<&str> {
    let end = name.rfind("-pod")?;
    is_kubepods(&name[..end]).then(|| &name[..=end])
}

fn is_kubepods(parent: &str) -> bool {
    parent == "kubepods" || parent.ends_with("-kubepods")
}

fn systemd(name: &str, prefix: &str) -> Option<PodRef> {
    let uid = name
        .strip_suffix(".slice")?
        .strip_prefix(prefix)?
        .strip_prefix("pod")?;
    // In the name of a slice, a dash separates levels.
    if uid.contains('-') {
        None
    } else {
        pod_ref(&uid.replace('_', "-"))
    }
}

fn cgroupfs(name: &str) -> Option<PodRef> {
    pod_ref(name.strip_prefix("pod")?)
}

/// Parses the identifier: a UID of the API server is a UUID; that of a static pod is 32 hexadecimal
/// digits, the hash of its manifest that its mirror pod is annotated with.
fn pod_ref(id: &str) -> Option<PodRef> {
    let hexadecimal = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if id.len() == 32 && hexadecimal(id) {
        return Some(PodRef::StaticHash(PodUid::new(id)));
    }
    let lengths = [8, 4, 4, 4, 12];
    let mut parts = id.split('-');
    let whole = lengths.iter().all(|length| {
        parts
            .next()
            .is_some_and(|part| part.len() == *length && hexadecimal(part))
    });
    (whole && parts.next().is_none()).then(|| PodRef::Uid(PodUid::new(id)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "6d9f8c1e-1b2a-4c3d-8e4f-0123456789ab";
    const OTHER: &str = "ffffffff-1b2a-4c3d-8e4f-0123456789ab";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn found(path: &str) -> Option<PodRef> {
        pod_of(Path::new(path))
    }

    #[test]
    fn all_names_of_the_kubelet_are_parsed() {
        let dashed = UID.replace('-', "_");
        for (path, pod) in [
            (
                format!(
                    "kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/cri-containerd-abc.scope"
                ),
                UID,
            ),
            (
                format!(
                    "kubepods-besteffort.slice/kubepods-besteffort-pod{dashed}.slice/crio-abc.scope"
                ),
                UID,
            ),
            (format!("kubepods-pod{dashed}.slice/docker-abc.scope"), UID),
            (format!("kubepods-pod{dashed}.slice"), UID),
            (
                format!(
                    "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{dashed}.slice/x"
                ),
                UID,
            ),
            (format!("kubelet-kubepods-pod{dashed}.slice/x"), UID),
            (format!("burstable/pod{UID}/abc"), UID),
            (format!("besteffort/pod{UID}/abc/nested/deeper"), UID),
            (format!("pod{UID}/abc"), UID),
        ] {
            assert_eq!(found(&path), Some(PodRef::Uid(PodUid::new(pod))), "{path}");
        }
        for path in [
            format!("kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/x"),
            format!("burstable/pod{HASH}/x"),
            format!("pod{HASH}"),
        ] {
            assert_eq!(
                found(&path),
                Some(PodRef::StaticHash(PodUid::new(HASH))),
                "{path}"
            );
        }
    }

    #[test]
    fn names_below_a_pod_are_never_parsed() {
        let (mine, other) = (UID.replace('-', "_"), OTHER.replace('-', "_"));
        for path in [
            format!("kubepods-pod{mine}.slice/kubepods-pod{other}.slice"),
            format!("kubepods-pod{mine}.slice/pod{OTHER}"),
            format!("burstable/pod{UID}/pod{OTHER}"),
            format!("pod{UID}/burstable/pod{OTHER}"),
            format!(
                "kubepods-burstable.slice/kubepods-burstable-pod{mine}.slice/kubepods-burstable-pod{other}.slice"
            ),
        ] {
            assert_eq!(found(&path), Some(PodRef::Uid(PodUid::new(UID))), "{path}");
        }
        for path in [
            String::new(),
            "burstable".to_owned(),
            "kubepods-burstable.slice".to_owned(),
            "podnot-a-uid".to_owned(),
            format!("pod{UID}x"),
            format!("podx{UID}"),
            format!("pod{}", UID.to_uppercase()),
            format!("other/pod{UID}"),
            format!("burstable/x/pod{UID}"),
            format!("kubepods-besteffort.slice/kubepods-burstable-pod{mine}.slice"),
            format!("other-pod{mine}.slice"),
            format!("kubepods-pod{UID}.slice"),
        ] {
            assert_eq!(found(&path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in any::<String>(), parts in prop::collection::vec("(kubepods|-|pod|burstable|\\.slice|/|[0-9a-f]{4,12}|_){1,8}", 0..6)) {
            let _ = found(&path);
            let _ = found(&parts.join("/"));
        }

        #[test]
        fn the_path_below_a_pod_does_not_change_the_result(below in "[a-z0-9_./-]{0,80}") {
            let path = format!("burstable/pod{UID}/{}", below.trim_start_matches('/'));
            prop_assert_eq!(found(&path), Some(PodRef::Uid(PodUid::new(UID))));
        }
    }
}
