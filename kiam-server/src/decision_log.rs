//! Logs of decisions: a span and an event for each, with the field names of kiam.

use tracing::Span;
use tracing::field::{Empty, display};

use crate::cluster::object::Pod;
use crate::policy::Outcome;

/// Returns the span of a decision about a pod. Its consequences are logged within.
pub(crate) fn span(pod: &Pod, outcome: &Outcome) -> Span {
    let span = tracing::info_span!(
        "decision",
        pod.namespace = %pod.namespace,
        pod.name = %pod.name,
        pod.status.ip = Empty,
        pod.iam.role = Empty,
        policy.outcome = outcome.as_label(),
    );
    if let Some(address) = pod.addresses.first() {
        span.record("pod.status.ip", display(address));
    }
    match outcome {
        Outcome::Granted(identity) => span.record("pod.iam.role", display(&identity.role)),
        // Untrusted text: `Debug` escapes control characters.
        Outcome::Forbidden { role, .. } => span.record("pod.iam.role", format!("{role:?}")),
        Outcome::NoRole | Outcome::Undecided { .. } => &span,
    };
    span
}

/// Logs a decision. A pod without a role is not logged.
pub(crate) fn log(pod: &Pod, outcome: &Outcome) {
    let (namespace, name) = (&pod.namespace, &pod.name);
    match outcome {
        Outcome::NoRole => {}
        Outcome::Granted(identity) => tracing::info!(
            pod.namespace = %namespace,
            pod.name = %name,
            pod.iam.role = %identity.role,
            "granted"
        ),
        Outcome::Forbidden { role, reason } => tracing::warn!(
            pod.namespace = %namespace,
            pod.name = %name,
            pod.iam.role = ?role,
            policy.explanation = &**reason,
            "forbidden"
        ),
        Outcome::Undecided { awaiting } => tracing::info!(
            pod.namespace = %namespace,
            pod.name = %name,
            policy.explanation = &**awaiting,
            "undecided"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;
    use crate::testing::pod;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(pod: &Pod, outcome: &Outcome) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _span = span(pod, outcome).entered();
            log(pod, outcome);
            tracing::info!("a consequence");
        });
        let bytes = lines.0.lock().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn decisions_and_their_consequences_have_the_fields_of_kiam() {
        let mut pod = pod("uid-1", "web", "till", "node-1");
        pod.addresses = Box::new(["10.0.0.1".parse().unwrap()]);
        let forbidden = Outcome::Forbidden {
            role: "writer\u{1b}[31m".into(),
            reason: "namespace web permits no roles".into(),
        };
        let lines = logged(&pod, &forbidden);
        let own = &lines[0];
        assert_eq!(own["message"], "forbidden");
        assert_eq!(own["policy.explanation"], "namespace web permits no roles");
        assert_eq!(
            (&own["pod.namespace"], &own["pod.name"]),
            (&"web".into(), &"till".into())
        );
        for line in &lines {
            let span = &line["span"];
            assert_eq!(span["name"], "decision");
            assert_eq!(span["policy.outcome"], "forbidden");
            assert_eq!(span["pod.status.ip"], "10.0.0.1");
            let role = span["pod.iam.role"].as_str().unwrap();
            assert!(
                role.contains("writer") && !role.contains('\u{1b}'),
                "{role}"
            );
        }
        // A pod without a role has no event, but its consequences still have the span.
        let lines = logged(&pod, &Outcome::NoRole);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["span"]["policy.outcome"], "no_role");
        assert_eq!(lines[0]["span"].get("pod.iam.role"), None);
    }
}
