//! Publication of notices as Events of `events.k8s.io/v1`.
//!
//! A notice that is repeated after an hour is a new Event, because the API has deleted the old one:
//! there is nothing to patch. (kube's `Recorder` patches a series instead, identified by pod and
//! reason without the text, so that a changed text would be lost.)

use std::fmt;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

use super::{Notice, PublishError, Publisher};

/// The reporting controller, with the name of kiam.
const CONTROLLER: &str = "kiam.server";
/// The action, which is required but not displayed.
const ACTION: &str = "AssumeRole";
/// The longest note, in bytes (Kubernetes' validation of Events, `NoteLengthLimit`).
const MAX_NOTE: usize = 1024;
/// The longest instance, in bytes (the same, `ReportingInstanceLengthLimit`).
const MAX_INSTANCE: usize = 128;
/// The longest name of an object, in bytes (Kubernetes API conventions, DNS subdomain).
const MAX_NAME: usize = 253;

/// The publisher of Events.
pub(crate) struct Events {
    client: Client,
    instance: String,
}

impl Events {
    /// Publishes through `client`, with the host name as the reporting instance.
    pub(crate) fn new(client: Client) -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = match name.trim() {
            "" => CONTROLLER,
            name => name,
        };
        Self {
            client,
            instance: cut(name, MAX_INSTANCE).to_owned(),
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[async_trait]
impl Publisher for Events {
    async fn publish(&self, notice: &Notice) -> Result<(), PublishError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.pod.namespace);
        let event = event(notice, &self.instance, Timestamp::now());
        api.create(&PostParams::default(), &event)
            .await
            .map(drop)
            .map_err(|error| match error {
                // Only the message of the API.
                kube::Error::Api(status) => PublishError(status.message.clone()),
                other => PublishError(other.to_string()),
            })
    }
}

fn event(Notice { pod, reason, note }: &Notice, instance: &str, now: Timestamp) -> Event {
    // The same format as in client-go and kube.
    let end = format!(".{:x}", now.as_nanosecond());
    let name = cut(&pod.name, MAX_NAME - end.len()).trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.to_string()),
            name: Some(format!("{name}{end}")),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(reason.as_str().to_owned()),
        action: Some(ACTION.to_owned()),
        note: Some(cut(note, MAX_NOTE).to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

/// Truncates a text to at most `max` bytes, at a character boundary.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::report::Reason;
    use crate::testing::pod;

    #[test]
    fn events_are_valid_for_the_api() {
        let notice = Notice {
            pod: Arc::new(pod("uid-1", "web", &"p".repeat(253), "node-1")),
            reason: Reason::RoleForbidden,
            note: "ü".repeat(1000),
        };
        let event = event(&notice, "server-1", Timestamp::now());
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.reason.as_deref(), Some("KiamRoleForbidden"));
        assert_eq!(event.note.unwrap().len(), MAX_NOTE);
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= MAX_NAME && name.starts_with("ppp"), "{name}");
        // The namespace of an Event is that of its object.
        let regarding = event.regarding.unwrap();
        assert_eq!(event.metadata.namespace, regarding.namespace);
        assert_eq!(regarding.uid.as_deref(), Some("uid-1"));
        assert_eq!(regarding.name.unwrap().len(), 253);
        // Fields that a new Event must have, and deprecated ones that it must not have
        // (Kubernetes' ValidateEventCreate).
        assert!(event.event_time.is_some() && event.reporting_instance.is_some());
        assert!(event.deprecated_count.is_none() && event.deprecated_source.is_none());
    }
}
