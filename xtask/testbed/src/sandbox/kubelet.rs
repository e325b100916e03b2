//! Names that the kubelet and container runtimes give to cgroups.

/// Naming scheme of the kubelet for cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// Slices and scopes of systemd.
    #[default]
    Systemd,
    /// Plain folders.
    Cgroupfs,
}

/// Container runtime, which determines the name of a container's cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runtime {
    /// `cri-containerd-ID.scope`
    #[default]
    Containerd,
    /// `crio-ID.scope`
    Crio,
    /// `docker-ID.scope`
    Docker,
}

/// Quality-of-service class of a pod, which is part of the path of its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// All limits equal the requests.
    Guaranteed,
    /// Some requests.
    #[default]
    Burstable,
    /// No requests.
    BestEffort,
}

impl CgroupDriver {
    pub(super) const fn kubepods(self) -> &'static str {
        match self {
            Self::Systemd => "kubepods.slice",
            Self::Cgroupfs => "kubepods",
        }
    }

    /// The cgroup of a class, below that of all pods.
    pub(super) fn qos(self, qos: Qos) -> Option<String> {
        let class = qos.word()?;
        Some(match self {
            Self::Systemd => format!("kubepods-{class}.slice"),
            Self::Cgroupfs => class.to_owned(),
        })
    }

    pub(super) fn pod(self, qos: Qos, uid: &str) -> String {
        match (self, qos.word()) {
            (Self::Cgroupfs, _) => format!("pod{uid}"),
            (Self::Systemd, None) => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
            (Self::Systemd, Some(class)) => {
                format!("kubepods-{class}-pod{}.slice", uid.replace('-', "_"))
            }
        }
    }

    pub(super) fn container(self, runtime: Runtime, id: &str) -> String {
        let prefix = match runtime {
            Runtime::Containerd => "cri-containerd",
            Runtime::Crio => "crio",
            Runtime::Docker => "docker",
        };
        match self {
            Self::Systemd => format!("{prefix}-{id}.scope"),
            Self::Cgroupfs => id.to_owned(),
        }
    }
}

impl Qos {
    const fn word(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_named_as_the_kubelet_names_them() {
        let systemd = CgroupDriver::Systemd;
        assert_eq!(systemd.pod(Qos::Guaranteed, "a-b"), "kubepods-poda_b.slice");
        assert_eq!(
            systemd.pod(Qos::BestEffort, "a-b"),
            "kubepods-besteffort-poda_b.slice"
        );
        assert_eq!(
            systemd.qos(Qos::Burstable).unwrap(),
            "kubepods-burstable.slice"
        );
        assert_eq!(systemd.container(Runtime::Crio, "1f"), "crio-1f.scope");
        let cgroupfs = CgroupDriver::Cgroupfs;
        assert_eq!(cgroupfs.pod(Qos::Burstable, "a-b"), "poda-b");
        assert_eq!(cgroupfs.qos(Qos::Burstable).unwrap(), "burstable");
        assert_eq!(cgroupfs.qos(Qos::Guaranteed), None);
        assert_eq!(cgroupfs.container(Runtime::Docker, "1f"), "1f");
    }
}
