//! The main road: a pod gets its own role's credentials, and nothing else; who is no pod gets
//! nothing.

use anyhow::{Context as _, Result, ensure};
use testbed::doubles::imds::NODE_ROLE;
use testbed::file_cluster::{FileCluster, pod_file};
use testbed::kiam::METADATA_PORT;
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox::{CgroupDriver, NodeOptions, PodOptions, Qos};

use crate::play::{Play, TEAM_A, ask, cast, eventually, prober, programs, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "credentials::a_pod_gets_its_own_role_s_only",
        Needs::Programs,
        own_role,
    ),
    (
        "credentials::another_s_role_is_refused",
        Needs::Programs,
        other_role,
    ),
    (
        "credentials::a_role_that_the_namespace_does_not_permit_is_refused",
        Needs::Programs,
        permitted,
    ),
    (
        "credentials::a_pod_without_a_role_is_told_so",
        Needs::Programs,
        no_role,
    ),
    (
        "credentials::a_process_in_no_pod_gets_nothing",
        Needs::Programs,
        no_pod,
    ),
    (
        "credentials::cgroups_of_both_drivers_and_all_classes_are_known",
        Needs::Programs,
        cgroups,
    ),
    (
        "credentials::pods_that_come_go_and_change_are_followed",
        Needs::Programs,
        changes,
    ),
];

fn own_role() -> Result<()> {
    let play = Play::begin()?;
    for (pod, role) in [(&play.alice, "a-reader"), (&play.bob, "b-writer")] {
        let answer = ask(pod.place(), "")?.answer()?;
        ensure!(
            (answer.status, answer.body.as_str()) == (200, role),
            "{answer:?}"
        );
        let peer = answer.peer.context("it was connected")?.to_string();
        ensure!(peer == "169.254.169.254:80", "the pod sees {peer}");
        let arn = play.identity(pod.place())?;
        let expected = format!("arn:aws:sts::123456789012:assumed-role/{role}/");
        ensure!(arn.starts_with(&expected), "{arn}");
    }
    let calls = play.cluster.sts().calls();
    ensure!(calls.len() == 2, "one call a role: {calls:?}");
    play.others_are_unaffected()
}

fn other_role() -> Result<()> {
    let play = Play::begin()?;
    for role in [
        "b-writer",
        "arn:aws:iam::123456789012:role/b-writer",
        NODE_ROLE,
        "a-reader2",
    ] {
        let parts = ["iam.amazonaws.com/role", "team-a/alice"];
        refused(play.alice.place(), role, 403, &parts).with_context(|| role.to_owned())?;
    }
    // The same role by its full name is its own.
    let answer = ask(
        play.alice.place(),
        "arn:aws:iam::123456789012:role/a-reader",
    )?
    .answer()?;
    ensure!(answer.status == 200, "{answer:?}");
    play.others_are_unaffected()
}

fn permitted() -> Result<()> {
    let play = Play::begin()?;
    play.cluster.objects().put_namespace("closed", None)?;
    let pods = [
        ("closed", "closed", "a-reader"),
        ("team-a", "wrong-team", "b-writer"),
        // The expression is for the whole ARN: what only begins like it is not permitted.
        ("team-a", "longer", "x/a-reader"),
    ];
    for (namespace, name, role) in pods {
        let pod = play
            .cluster
            .pod(&play.node, (namespace, name), Some(role))?;
        let parts = ["iam.amazonaws.com/permitted", namespace, role];
        eventually(|| refused(pod.place(), "", 403, &parts))?;
        refused(pod.place(), role, 403, &parts)?;
    }
    let roles: Vec<_> = play
        .cluster
        .sts()
        .calls()
        .into_iter()
        .map(|call| call.role)
        .collect();
    ensure!(
        roles.len() == 2,
        "STS is not asked for what is forbidden: {roles:?}"
    );
    play.others_are_unaffected()
}

fn no_role() -> Result<()> {
    let play = Play::begin()?;
    let pod = play.cluster.pod(&play.node, ("team-b", "plain"), None)?;
    let parts = ["team-b/plain", "iam.amazonaws.com/role"];
    eventually(|| refused(pod.place(), "", 404, &parts))?;
    play.others_are_unaffected()
}

fn no_pod() -> Result<()> {
    let play = Play::begin()?;
    let node = play.node.node();
    // Below the pods' cgroup, and in no pod's: redirected, and refused.
    let stray = play.alice.place();
    let stray = stray.with_cgroup(node.kubepods().child("stray.scope")?);
    refused(&stray, "", 403, &["in no pod"])?;
    // A pod that the cluster does not know is not told anything either.
    let unknown = node.pod(PodOptions::default())?;
    refused(unknown.place(), "a-reader", 503, &["is not known"])?;
    // Straight to the agent's port, from a process of the node's.
    let agent = format!(
        "http://{}:{METADATA_PORT}/latest/meta-data/iam/security-credentials/",
        node.ip()
    );
    let answer = prober()?.get(node.place(), &agent)?.answer()?;
    ensure!(
        answer.status == 503 && answer.body.contains("no pod"),
        "{answer:?}"
    );
    // From the network, where no program of the node's kernel saw who it was.
    let control = play.cluster.sandbox().control();
    let answer = prober()?.get(control, &agent)?.answer()?;
    ensure!(
        answer.status == 503 && answer.body.contains("no pod"),
        "{answer:?}"
    );
    // Going round by the agent's port does not make a pod another: it is attested all the same.
    let answer = prober()?.get(play.alice.place(), &agent)?.answer()?;
    ensure!(
        (answer.status, answer.body.as_str()) == (200, "a-reader"),
        "{answer:?}"
    );
    play.others_are_unaffected()?;
    // The node's own processes keep the node's own service.
    let answer = prober()?.get(
        node.place(),
        &format!("{METADATA_SERVICE}/latest/meta-data/instance-id"),
    )?;
    ensure!(answer.answer()?.body.starts_with("i-"));
    Ok(())
}

fn cgroups() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    cluster.objects().put_namespace("team-a", Some(".*"))?;
    let _server = cluster.start_server(&[])?;
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        let name = format!("{driver:?}").to_lowercase();
        let node = cluster.node(
            &name,
            NodeOptions {
                driver,
                ..NodeOptions::default()
            },
        )?;
        let _agent = cluster.start_agent(&node, &[])?;
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let pod = node.node().pod(PodOptions {
                qos,
                ..PodOptions::default()
            })?;
            let (pod_name, role) = (format!("{name}-{qos:?}"), format!("{qos:?}"));
            cluster
                .objects()
                .put_pod(&pod, ("team-a", &pod_name), Some(&role))?;
            let sidecar = pod.add_container("sidecar")?;
            for place in [pod.place(), sidecar.place()] {
                let answer = ask(place, "")?.answer()?;
                ensure!(
                    (answer.status, answer.body.as_str()) == (200, role.as_str()),
                    "{answer:?}"
                );
            }
        }
        ensure!(node.imds().traffic().connections() == 0);
    }
    Ok(())
}

fn changes() -> Result<()> {
    let play = Play::begin()?;
    let objects = play.cluster.objects();
    let alice = play.alice.place();
    objects.put_pod(&play.alice, ("team-a", "alice"), Some("a-admin"))?;
    eventually(|| {
        let arn = play.identity(alice)?;
        ensure!(arn.contains(":assumed-role/a-admin/"), "{arn}");
        Ok(())
    })?;
    refused(alice, "a-reader", 403, &["a-admin"])?;
    objects.put_namespace("team-a", Some("nothing"))?;
    eventually(|| refused(alice, "", 403, &["iam.amazonaws.com/permitted"]))?;
    objects.put_namespace("team-a", Some(TEAM_A))?;
    eventually(|| play.identity(alice))?;
    objects.remove_pod(("team-a", "alice"))?;
    eventually(|| refused(alice, "a-admin", 403, &["team-a/alice has gone"]))?;
    ensure!(!objects.path(&pod_file(("team-a", "alice"))).exists());

    // A pod that asks before the server knows it waits, and is answered.
    let (again, _) = cast(&play.cluster, &play.node)?;
    let arn = play.identity(again.place())?;
    ensure!(arn.contains(":assumed-role/a-reader/"), "{arn}");
    Ok(())
}
