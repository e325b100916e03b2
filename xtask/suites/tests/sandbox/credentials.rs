//! A pod gets the credentials of its own role, and nothing else; a process outside of pods gets
//! nothing.

use anyhow::{Context as _, ensure};
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::{FileCluster, pod_file};
use testbed::fixture::{
    Fixture, TEAM_A, ask, assert_denied, assert_denied_eventually, eventually, get, programs,
    teams, try_get,
};
use testbed::kiam::METADATA_PORT;
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox::{CgroupDriver, NodeOptions, PodOptions, Qos};

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_gets_credentials_of_its_own_role() {
    let fixture = Fixture::start();
    for (pod, role) in [(&fixture.alice, "a-reader"), (&fixture.bob, "b-writer")] {
        let answer = ask(pod.place(), "");
        assert!(
            (answer.status, answer.body.as_str()) == (200, role),
            "{answer:?}"
        );
        let peer = answer.peer.context("it was connected").unwrap().to_string();
        assert!(peer == "169.254.169.254:80", "the pod sees {peer}");
        let arn = fixture.role_session(pod.place()).unwrap();
        let expected = format!("arn:aws:sts::123456789012:assumed-role/{role}/");
        assert!(arn.starts_with(&expected), "{arn}");
    }
    let calls = fixture.cluster.sts().calls();
    assert!(calls.len() == 2, "one call a role: {calls:?}");
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn roles_of_others_are_denied() {
    let fixture = Fixture::start();
    for role in [
        "b-writer",
        "arn:aws:iam::123456789012:role/b-writer",
        NODE_ROLE,
        "a-reader2",
    ] {
        let parts = ["iam.amazonaws.com/role", "team-a/alice"];
        assert_denied(fixture.alice.place(), role, 403, &parts);
    }
    // The ARN of its own role is accepted.
    let answer = ask(
        fixture.alice.place(),
        "arn:aws:iam::123456789012:role/a-reader",
    );
    assert!(answer.status == 200, "{answer:?}");
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_role_that_the_namespace_does_not_permit_is_denied() {
    let fixture = Fixture::start();
    fixture
        .cluster
        .objects()
        .put_namespace("closed", None)
        .unwrap();
    let pods = [
        ("closed", "closed", "a-reader"),
        ("team-a", "wrong-team", "b-writer"),
        // The expression must match the whole ARN, not only a part of it.
        ("team-a", "longer", "x/a-reader"),
    ];
    for (namespace, name, role) in pods {
        let pod = fixture.pod((namespace, name), Some(role));
        let parts = ["iam.amazonaws.com/permitted", namespace, role];
        assert_denied_eventually(pod.place(), "", 403, &parts);
        assert_denied(pod.place(), role, 403, &parts);
    }
    let roles: Vec<_> = fixture
        .cluster
        .sts()
        .calls()
        .into_iter()
        .map(|call| call.role)
        .collect();
    assert!(
        roles.len() == 2,
        "STS is not asked for what is forbidden: {roles:?}"
    );
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_pod_without_a_role_gets_not_found() {
    let fixture = Fixture::start();
    let pod = fixture.pod(("team-b", "plain"), None);
    let parts = ["team-b/plain", "iam.amazonaws.com/role"];
    assert_denied_eventually(pod.place(), "", 404, &parts);
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_process_outside_of_pods_gets_no_credentials() {
    let fixture = Fixture::start();
    let node = fixture.node.node();
    // Below the cgroup of pods, but in no pod: redirected, and denied.
    let stray = fixture.alice.place();
    let stray = stray.with_cgroup(node.kubepods().child("stray.scope").unwrap());
    assert_denied(&stray, "", 403, &["outside of any pod"]);
    // A pod that is not in the cluster gets no credentials either.
    let unknown = node.pod(PodOptions::default()).unwrap();
    assert_denied(unknown.place(), "a-reader", 503, &["is not yet known"]);
    // Directly to the agent's port, from a process of the node.
    let agent = format!(
        "http://{}:{METADATA_PORT}/latest/meta-data/iam/security-credentials/",
        node.ip()
    );
    let answer = get(node.place(), &agent);
    assert!(
        answer.status == 503 && answer.body.contains("no attestation"),
        "{answer:?}"
    );
    // From the network, where no kernel program of the node attests the caller.
    let control = fixture.cluster.sandbox().control();
    let answer = get(control, &agent);
    assert!(
        answer.status == 503 && answer.body.contains("no attestation"),
        "{answer:?}"
    );
    // A pod that connects to the agent's port is attested like any other.
    let answer = get(fixture.alice.place(), &agent);
    assert!(
        (answer.status, answer.body.as_str()) == (200, "a-reader"),
        "{answer:?}"
    );
    fixture.assert_teams_are_served();
    // Processes of the node still reach the metadata service.
    let answer = try_get(
        node.place(),
        &format!("{METADATA_SERVICE}/latest/meta-data/instance-id"),
    );
    assert!(answer.answer().unwrap().body.starts_with("i-"));
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn pods_of_both_cgroup_drivers_and_all_qos_classes_are_identified() {
    let cluster = FileCluster::new(&programs()).unwrap();
    cluster
        .objects()
        .put_namespace("team-a", Some(".*"))
        .unwrap();
    let _server = cluster.start_server(&[]).unwrap();
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let name = format!("{driver:?}").to_lowercase();
        let node = cluster
            .node(
                &name,
                NodeOptions {
                    driver,
                    ..NodeOptions::default()
                },
            )
            .unwrap();
        let _agent = cluster.start_agent(&node, &[]).unwrap();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = node
                .node()
                .pod(PodOptions {
                    qos,
                    ..PodOptions::default()
                })
                .unwrap();
            let (pod_name, role) = (format!("{name}-{qos:?}"), format!("{qos:?}"));
            cluster
                .objects()
                .put_pod(&pod, ("team-a", &pod_name), Some(&role))
                .unwrap();
            let sidecar = pod.add_container("sidecar").unwrap();
            for place in [pod.place(), sidecar.place()] {
                let answer = ask(place, "");
                assert!(
                    (answer.status, answer.body.as_str()) == (200, role.as_str()),
                    "{answer:?}"
                );
            }
        }
        assert!(node.imds().traffic().connections() == 0);
    }
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn credentials_follow_changes_of_pods_and_namespaces() {
    let fixture = Fixture::start();
    let objects = fixture.cluster.objects();
    let alice = fixture.alice.place();
    objects
        .put_pod(&fixture.alice, ("team-a", "alice"), Some("a-admin"))
        .unwrap();
    eventually(|| {
        let arn = fixture.role_session(alice)?;
        ensure!(arn.contains(":assumed-role/a-admin/"), "{arn}");
        Ok(())
    });
    assert_denied(alice, "a-reader", 403, &["a-admin"]);
    objects.put_namespace("team-a", Some("nothing")).unwrap();
    assert_denied_eventually(alice, "", 403, &["iam.amazonaws.com/permitted"]);
    objects.put_namespace("team-a", Some(TEAM_A)).unwrap();
    eventually(|| fixture.role_session(alice));
    objects.remove_pod(("team-a", "alice")).unwrap();
    assert_denied_eventually(alice, "a-admin", 403, &["team-a/alice was deleted"]);
    assert!(!objects.path(&pod_file(("team-a", "alice"))).exists());

    // A request of a pod that the server does not know yet waits, and is answered.
    let (again, _) = teams(&fixture.cluster, &fixture.node);
    let arn = fixture.role_session(again.place()).unwrap();
    assert!(arn.contains(":assumed-role/a-reader/"), "{arn}");
}
