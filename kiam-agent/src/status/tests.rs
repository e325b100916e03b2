use std::time::Duration;

use http_body_util::BodyExt as _;
use kiam_common::admin::Asked;
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;
use prometheus::Registry;
use tokio::sync::watch;

use super::*;
use crate::view::{Decision, Failure, PodFacts, Projection, Uid, Update};

const HOSTILE: &str = "<script>alert('1')</script>\"&\u{1b}[31m";

fn facts(name: &str) -> PodFacts {
    PodFacts {
        uid: Uid::from(name),
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
    Update::Applied(facts(name), Decision::Granted { role, identity })
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

fn status(now: SystemTime) -> (Status, watch::Sender<Standing>) {
    let (mut projection, view) = Projection::new();
    projection.begin();
    let hour = Duration::from_secs(3600);
    let forbidden = Decision::Forbidden {
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
        Update::Applied(facts("undecided"), Decision::Undecided { awaiting }),
        Update::Applied(facts("plain"), Decision::NoRole),
        Update::Synced,
    ] {
        projection.apply(update).unwrap();
    }
    projection.publish();
    let (standing, standings) = watch::channel(Standing::Begun);
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
        standing: standings,
        remote: false,
    };
    (status, standing)
}

#[test]
fn pods_that_get_nothing_come_first_with_the_reason() {
    let now = SystemTime::now();
    let (status, _standing) = status(now);
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
    let late = "credentials expired: newer ones have not come";
    assert_eq!(
        listed,
        [
            line("forbidden", State::Forbidden, HOSTILE, None),
            line(
                "awaited",
                State::Failing,
                "credentials are on their way",
                None
            ),
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
async fn pages_show_no_secret_run_nothing_and_are_for_the_machine_itself() {
    let (status, standing) = status(SystemTime::now());
    let problem = format!("cut {HOSTILE}");
    let since = SystemTime::now() - Duration::from_secs(60);
    standing.send_replace(Standing::Broken {
        why: problem,
        since,
    });
    let page = status.page();
    for path in ["/status", "/status.html"] {
        let answer = page(Asked { path, local: true }).unwrap();
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
        let answer = page(Asked { path, local: false }).unwrap();
        assert_eq!(answer.status(), http::StatusCode::FORBIDDEN);
    }
    let (path, local) = ("/statusx", true);
    assert!(page(Asked { path, local }).is_none());
}

#[test]
fn the_terminal_shows_the_same_and_obeys_nothing() {
    let now = SystemTime::now();
    let (status, standing) = status(now);
    let server = "10.0.0.1:9610".parse().unwrap();
    standing.send_replace(Standing::Synced { server, since: now });
    let report = status.report(now);
    let text = text(&report);
    for part in [
        "kiam-agent 0.1.0 on node-1",
        "Informed by the server at 10.0.0.1:9610 for 0s",
        "shop/served     served     arn:aws:iam::123456789012:role/reader  1h",
        "shop/undecided  undecided",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    // And a program reads the JSON again.
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}
