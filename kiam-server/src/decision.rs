//! What is logged of a decision: one span for each, and an event in it, with kiam's field names.

use tracing::Span;
use tracing::field::{Empty, display};

use crate::cluster::object::Pod;
use crate::policy::Outcome;

/// The span of one decision about a pod; what happens because of it is logged within.
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
        // It is what a pod's owner wrote: control characters are escaped.
        Outcome::Forbidden { role, .. } => span.record("pod.iam.role", format!("{role:?}")),
        Outcome::NoRole | Outcome::Undecided { .. } => &span,
    };
    span
}

/// Logs what was decided. That a pod has no role is no news.
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
            policy.explanation = reason,
            "forbidden"
        ),
        Outcome::Undecided { awaiting } => tracing::info!(
            pod.namespace = %namespace,
            pod.name = %name,
            policy.explanation = awaiting,
            "undecided: something is awaited"
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
            tracing::info!("what follows from it");
        });
        let bytes = lines.0.lock().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_decision_has_kiam_s_names_on_its_line_and_on_what_follows() {
        let mut pod = pod("uid-1", "web", "till", "node-1");
        pod.addresses = Box::new(["10.0.0.1".parse().unwrap()]);
        let forbidden = Outcome::Forbidden {
            role: "writer\u{1b}[31m".to_owned(),
            reason: "namespace web permits no roles".to_owned(),
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
        // No role is no news, and what follows is told with its span all the same.
        let lines = logged(&pod, &Outcome::NoRole);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["span"]["policy.outcome"], "no_role");
        assert_eq!(lines[0]["span"].get("pod.iam.role"), None);
    }
}
