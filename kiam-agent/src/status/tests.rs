use std::time::Duration;

use http_body_util::BodyExt as _;
use kiam_common::admin::PageRequest;
use kiam_common::credentials::SessionCredentials;
use kiam_common::metrics::Registry;
use kiam_common::pod_uid::PodUid;
use kiam_common::role::RoleArn;
use tokio::sync::watch;

use super::*;
use crate::view::{Failure, GrantedRole, Outcome, PodFacts, Projection, Update};

const HOSTILE: &str = "<script>alert('1')</script>\"&\u{1b}[31m";

fn facts(name: &str) -> PodFacts {
    PodFacts {
        uid: PodUid::from(name),
        namespace: "shop".into(),
        name: name.into(),
        service_account: "default".into(),
        addresses: Box::new([]),
        host_network: false,
        static_hash: None,
    }
}

fn granted(name: &str, identity: u64) -> Update {
    let role = RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap();
    Update::Applied(
        facts(name),
        Outcome::Granted(GrantedRole { role, identity }),
    )
}

fn issued(identity: u64, expires: SystemTime) -> Update {
    let credentials = SessionCredentials {
        access_key_id: "ASIAHUSH".into(),
        secret_access_key: "hush-secret".to_owned().into(),
        session_token: "hush-token".to_owned().into(),
        expiration: expires,
        issued: SystemTime::UNIX_EPOCH,
    };
    Update::Issued {
        identity,
        credentials,
    }
}

fn status(now: SystemTime) -> (Status, watch::Sender<ConnectionState>) {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let hour = Duration::from_secs(3600);
    let forbidden = Outcome::Forbidden {
        role: "admin".into(),
        reason: HOSTILE.into(),
    };
    let awaiting = "the namespace shop".into();
    let failure = Failure {
        error: "STS does not answer".into(),
        permanent: false,
    };
    for update in [
        granted("served", 1),
        issued(1, now + hour),
        granted("expired", 2),
        issued(2, now - hour),
        granted("failing", 3),
        Update::Failed {
            identity: 3,
            failure,
        },
        granted("awaited", 4),
        Update::Applied(facts("forbidden"), forbidden),
        Update::Applied(facts("undecided"), Outcome::Undecided { awaiting }),
        Update::Applied(facts("plain"), Outcome::NoRole),
        Update::Synced,
    ] {
        projection.apply(update).unwrap();
    }
    projection.publish();
    let (sender, connection) = watch::channel(ConnectionState::Starting);
    let status = Status {
        setting: Setting {
            version: "0.1.0".to_owned(),
            node: "node-1".to_owned(),
            redirect: "ebpf".to_owned(),
            guard: "egress,route".to_owned(),
            host_network_pods: "passthrough".to_owned(),
            imds_v2: "optional".to_owned(),
        },
        v1_users: V1Users::new(view.clone(), &Registry::new()).unwrap(),
        view,
        connection,
        remote: false,
    };
    (status, sender)
}

#[test]
fn pods_that_get_nothing_come_first_with_the_reason() {
    let now = SystemTime::now();
    let (status, _sender) = status(now);
    let report = status.report(now);
    let Pods {
        known,
        served,
        without_role,
        unserved,
        listed,
    } = &report.pods;
    assert_eq!((*known, *served, *without_role, *unserved), (7, 1, 1, 5));
    let of = |line: &Line| {
        let why = line.why.clone().unwrap_or_default();
        (line.name.clone(), line.state, why, line.expires_in_seconds)
    };
    let line =
        |name: &str, state, why: &str, expires| (name.to_owned(), state, why.to_owned(), expires);
    let listed: Vec<_> = listed.iter().map(of).collect();
    let late = "credentials expired: no new credentials received";
    assert_eq!(
        listed,
        [
            line("forbidden", State::Forbidden, HOSTILE, None),
            line("awaited", State::Failing, "waiting for credentials", None),
            line("expired", State::Failing, late, Some(0)),
            line("failing", State::Failing, "STS does not answer", None),
            line(
                "undecided",
                State::Undecided,
                "awaiting the namespace shop",
                None
            ),
            line("served", State::Served, "", Some(3600)),
            line("plain", State::NoRole, "", None),
        ]
    );
}

#[tokio::test]
async fn pages_show_no_secrets_contain_no_scripts_and_are_local() {
    let (status, connection) = status(SystemTime::now());
    let problem = format!("cut {HOSTILE}");
    let since = SystemTime::now() - Duration::from_secs(60);
    connection.send_replace(ConnectionState::Disconnected {
        why: problem,
        since,
    });
    let page = status.page();
    for path in ["/status", "/status.html"] {
        let answer = page(PageRequest { path, local: true }).unwrap();
        let policy = &answer.headers()[http::header::CONTENT_SECURITY_POLICY];
        assert!(policy.to_str().unwrap().starts_with("default-src 'none'"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            body.contains("node-1") && body.contains("forbidden"),
            "{body}"
        );
        assert!(!body.contains("hush") && !body.contains("ASIA"), "{body}");
        assert!(!body.contains('\u{1b}') && (path == "/status" || !body.contains("<script")));
        let answer = page(PageRequest { path, local: false }).unwrap();
        assert_eq!(answer.status(), http::StatusCode::FORBIDDEN);
    }
    let (path, local) = ("/statusx", true);
    assert!(page(PageRequest { path, local }).is_none());
}

#[test]
fn text_for_the_terminal_contains_no_control_characters() {
    let now = SystemTime::now();
    let (status, connection) = status(now);
    let server = "10.0.0.1:9610".parse().unwrap();
    connection.send_replace(ConnectionState::Synced { server, since: now });
    let report = status.report(now);
    let text = text(&report);
    for part in [
        "kiam-agent 0.1.0 on node-1",
        "Connected to the server at 10.0.0.1:9610 for 0s",
        "shop/served     served     arn:aws:iam::123456789012:role/reader  1h",
        "shop/undecided  undecided",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    // The JSON can be parsed again.
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
