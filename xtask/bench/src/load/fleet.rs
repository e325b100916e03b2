//! A synthetic cluster: its pods, by number, as in the Kubernetes API.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

/// Size of the cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    pub(super) pods: u64,
    pub(super) nodes: u64,
    pub(super) namespaces: u64,
    pub(super) roles: u64,
}

/// Fields of a real pod that the server does not read, about as large as a small pod's.
const SPEC: &str = r#""containers":[{"name":"app","image":"registry.example.com/team/app:1.2.3","env":[{"name":"AWS_REGION","value":"eu-west-1"},{"name":"LOG_LEVEL","value":"info"}],"resources":{"limits":{"cpu":"1","memory":"512Mi"},"requests":{"cpu":"100m","memory":"256Mi"}},"volumeMounts":[{"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount","name":"token","readOnly":true}],"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent"}],"volumes":[{"name":"token","projected":{"defaultMode":420,"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}}]}}],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","securityContext":{},"schedulerName":"default-scheduler","tolerations":[{"effect":"NoExecute","key":"node.kubernetes.io/not-ready","operator":"Exists","tolerationSeconds":300},{"effect":"NoExecute","key":"node.kubernetes.io/unreachable","operator":"Exists","tolerationSeconds":300}],"priority":0,"enableServiceLinks":true,"preemptionPolicy":"PreemptLowerPriority""#;

impl Fleet {
    pub(super) fn node(number: u64) -> String {
        format!("node-{number}")
    }

    pub(super) const fn node_of(&self, pod: u64) -> u64 {
        pod % self.nodes
    }

    /// A pod as JSON. `role` is another than its number's; `running` pods have an address.
    pub(super) fn pod(&self, number: u64, role: u64, running: bool) -> String {
        let namespace = number % self.namespaces;
        let node = Self::node(self.node_of(number));
        let uid = uid(number);
        let status = if running {
            let ip = format!(
                "10.{}.{}.{}",
                number >> 16 & 0xff,
                number >> 8 & 0xff,
                number & 0xff
            );
            format!(r#""phase":"Running","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]"#)
        } else {
            r#""phase":"Pending""#.to_owned()
        };
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"app-{number:08}-x7z2p","namespace":"team-{namespace}","uid":"{uid}","resourceVersion":"{number}","labels":{{"app":"app-{number:08}","pod-template-hash":"6d4b75cb6d"}},"annotations":{{"iam.amazonaws.com/role":"role-{role}"}}}},"spec":{{"nodeName":"{node}","serviceAccountName":"default",{SPEC}}},"status":{{{status}}}}}"#
        )
    }

    /// The role that a pod of the start has.
    pub(super) const fn role_of(&self, pod: u64) -> u64 {
        pod % self.roles
    }

    pub(super) fn namespace(number: u64) -> String {
        format!(
            r#"{{"metadata":{{"name":"team-{number}","uid":"{}","resourceVersion":"1","annotations":{{"iam.amazonaws.com/permitted":".*role-.*"}}}}}}"#,
            uid(number)
        )
    }

    pub(super) fn service_account(number: u64) -> String {
        format!(
            r#"{{"metadata":{{"name":"default","namespace":"team-{number}","uid":"{}","resourceVersion":"1"}}}}"#,
            uid(number)
        )
    }
}

fn uid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// The number of the pod with a UID.
pub(super) fn number(uid: &str) -> Result<u64> {
    let digits = uid.rsplit('-').next().unwrap_or_default();
    u64::from_str_radix(digits, 16).with_context(|| format!("{uid:?} is no pod's of this cluster"))
}

/// A page of a list.
pub(super) fn page(kind: &str, items: impl Iterator<Item = String>, next: Option<u64>) -> String {
    let mut page = format!(
        r#"{{"kind":"{kind}List","apiVersion":"v1","metadata":{{"resourceVersion":"1000"{}}},"items":["#,
        next.map_or(String::new(), |next| format!(r#","continue":"{next}""#))
    );
    for (number, item) in items.enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(page, "{comma}{item}");
    }
    page.push_str("]}");
    page
}
