//! Bad peers: certificates that are missing, wrong or of another peer, and an absent server. The
//! message names the file or the address, nothing crashes, and other nodes are unaffected.

use std::time::Duration;

use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::fixture::{Fixture, assert_denied, assert_logs, programs, teams};
use testbed::kiam::Agent;
use testbed::pki::{Authority, Leaf, PemFiles};
use testbed::sandbox::{Finished, NodeOptions};

const LIMIT: Duration = Duration::from_secs(20);

/// Output of a program, which must have rejected its configuration.
#[track_caller]
fn configuration_error(ended: Finished) -> String {
    let Finished {
        status,
        stdout,
        stderr,
    } = ended;
    let output = stdout + &stderr;
    assert!(status.code() == Some(64), "{status}: {output}");
    assert!(!output.contains("panicked"), "{output}");
    output
}

#[track_caller]
fn launch_agent(cluster: &FileCluster, node: &FileClusterNode, tls: &PemFiles) -> Agent {
    cluster.launch_agent(node, tls, &[]).unwrap()
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_certificate_file_that_is_missing_or_invalid_is_named() {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    let folder = cluster.sandbox().folder("bad").unwrap();
    let (missing, garbage) = (folder.join("missing.pem"), folder.join("garbage.pem"));
    std::fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let good = node.tls();
    let other_key = &cluster.server_tls().key;
    for (tls, named) in [
        (
            PemFiles {
                cert: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                key: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                ca: missing.clone(),
                ..good.clone()
            },
            &missing,
        ),
        (
            PemFiles {
                cert: garbage.clone(),
                ..good.clone()
            },
            &garbage,
        ),
        (
            PemFiles {
                ca: garbage.clone(),
                ..good.clone()
            },
            &garbage,
        ),
        (
            PemFiles {
                key: good.cert.clone(),
                ..good.clone()
            },
            &good.cert,
        ),
        (
            PemFiles {
                key: other_key.clone(),
                ..good.clone()
            },
            other_key,
        ),
    ] {
        let named = named.display().to_string();
        let output =
            configuration_error(launch_agent(&cluster, &node, &tls).finish(LIMIT).unwrap());
        assert!(
            output.contains(&named),
            "the agent does not name {named}: {output}"
        );
        let output = configuration_error(
            cluster
                .launch_server(&tls, &[])
                .unwrap()
                .finish(LIMIT)
                .unwrap(),
        );
        assert!(
            output.contains(&named),
            "the server does not name {named}: {output}"
        );
    }
    assert!(node.imds().traffic().connections() == 0);
}

/// Adds a node without an agent, with a pod.
#[track_caller]
fn beside(fixture: &Fixture, name: &str) -> (FileClusterNode, testbed::sandbox::Pod) {
    let node = fixture.cluster.node(name, NodeOptions::default()).unwrap();
    let pod = fixture
        .cluster
        .pod(&node, ("team-b", name), Some("b-writer"))
        .unwrap();
    (node, pod)
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_of_another_authority_is_refused() {
    let fixture = Fixture::start();
    let (node, pod) = beside(&fixture, "node-2");
    let stranger = Authority::new("another").unwrap();
    let files = stranger
        .write_node(
            &fixture.cluster.sandbox().folder("stranger").unwrap(),
            "node-2",
        )
        .unwrap();
    // It trusts the authority of the server, but the server does not trust its authority.
    let tls = PemFiles {
        ca: node.tls().ca.clone(),
        ..files
    };
    let mark = fixture.server.program().mark();
    let agent = launch_agent(&fixture.cluster, &node, &tls);
    assert_logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"]);
    assert_logs(fixture.server.program(), mark, &["10.0.1.2", "certificate"]);
    assert_denied(pod.place(), "b-writer", 503, &["kiam-server"]);
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_with_the_certificate_of_another_node_is_refused() {
    let fixture = Fixture::start();
    let (node, pod) = beside(&fixture, "node-2");
    // The certificate is valid, but for node-1.
    let mark = fixture.server.program().mark();
    let agent = launch_agent(&fixture.cluster, &node, fixture.node.tls());
    assert_logs(agent.program(), 0, &["node-2"]);
    assert_logs(
        fixture.server.program(),
        mark,
        &["refused", "node-2", "node-1"],
    );
    assert_denied(pod.place(), "b-writer", 503, &["kiam-server"]);
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_server_of_another_authority_or_name_is_refused() {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    let (alice, _) = teams(&cluster, &node);
    let stranger = Authority::new("another").unwrap();
    let address = ["10.0.0.1"];
    let of_stranger = Leaf {
        name: "s",
        alternative_names: &address,
        ..Leaf::default()
    };
    let elsewhere = Leaf {
        name: "s",
        alternative_names: &["elsewhere.example"],
        ..Leaf::default()
    };
    let folder = cluster.sandbox().folder("servers").unwrap();
    let of_other_authority = PemFiles {
        ca: cluster.server_tls().ca.clone(),
        ..stranger.write(&folder.join("1"), &of_stranger).unwrap()
    };
    let of_other_name = cluster
        .authority()
        .write(&folder.join("2"), &elsewhere)
        .unwrap();
    for files in [of_other_authority, of_other_name] {
        let mut server = cluster.launch_server(&files, &[]).unwrap();
        server.ready().unwrap();
        let agent = launch_agent(&cluster, &node, node.tls());
        assert_logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"]);
        assert_denied(alice.place(), "a-reader", 503, &["kiam-server"]);
    }
    assert!(node.imds().traffic().connections() == 0);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn an_agent_waits_for_a_server_that_is_away() {
    let cluster = FileCluster::new(&programs()).unwrap();
    let node = cluster.node("node-1", NodeOptions::default()).unwrap();
    let (alice, bob) = teams(&cluster, &node);
    let agent = launch_agent(&cluster, &node, node.tls());
    assert_logs(agent.program(), 0, &["10.0.0.1:9610", "retrying"]);
    assert_denied(
        alice.place(),
        "a-reader",
        503,
        &["kiam-server", "try again"],
    );
    assert!(
        agent.admin("/readyz").unwrap().status != 200,
        "it knows no pods yet"
    );

    let server = cluster.start_server(&[]).unwrap();
    let mut fixture = Fixture {
        alice,
        bob,
        agent,
        server,
        node,
        cluster,
    };
    fixture.agent.ready().unwrap();
    fixture.assert_teams_are_served();
}
