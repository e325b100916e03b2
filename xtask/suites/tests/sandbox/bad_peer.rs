//! Bad peers: certificates that are missing, wrong or another's, and a server that is away. The
//! message names the file or the address, nothing crashes, and other nodes are unaffected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::file_cluster::{FileCluster, FileClusterNode};
use testbed::kiam::Agent;
use testbed::pki::{Authority, Leaf, PemFiles};
use testbed::sandbox::{Finished, NodeOptions};

use crate::play::{Play, cast, logs, programs, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "bad_peer::a_certificate_that_is_missing_or_none_is_named",
        Needs::Programs,
        unusable_files,
    ),
    (
        "bad_peer::an_agent_of_another_authority_is_refused",
        Needs::Programs,
        wrong_agent,
    ),
    (
        "bad_peer::an_agent_of_another_node_is_refused",
        Needs::Programs,
        wrong_node,
    ),
    (
        "bad_peer::a_server_of_another_authority_or_name_is_refused",
        Needs::Programs,
        wrong_server,
    ),
    (
        "bad_peer::a_server_that_is_away_is_waited_for",
        Needs::Programs,
        no_server,
    ),
];

const LIMIT: Duration = Duration::from_secs(20);

/// The end of a program that must not have started.
fn failed(ended: Finished) -> Result<String> {
    let Finished {
        status,
        stdout,
        stderr,
    } = ended;
    let said = stdout + &stderr;
    ensure!(status.code() == Some(64), "{status}: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(said)
}

fn launch_agent(cluster: &FileCluster, node: &FileClusterNode, tls: &PemFiles) -> Result<Agent> {
    cluster.launch_agent(node, tls, &[])
}

fn unusable_files() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let folder = cluster.sandbox().folder("bad")?;
    let (missing, garbage) = (folder.join("missing.pem"), folder.join("garbage.pem"));
    std::fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n",
    )?;
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
        let said = failed(launch_agent(&cluster, &node, &tls)?.finish(LIMIT)?)?;
        ensure!(
            said.contains(&named),
            "the agent does not name {named}: {said}"
        );
        let said = failed(cluster.launch_server(&tls, &[])?.finish(LIMIT)?)?;
        ensure!(
            said.contains(&named),
            "the server does not name {named}: {said}"
        );
    }
    ensure!(node.imds().traffic().connections() == 0);
    Ok(())
}

/// An agent on a node of its own, beside a play that must not notice.
fn beside(play: &Play, name: &str) -> Result<(FileClusterNode, testbed::sandbox::Pod)> {
    let node = play.cluster.node(name, NodeOptions::default())?;
    let pod = play
        .cluster
        .pod(&node, ("team-b", name), Some("b-writer"))?;
    Ok((node, pod))
}

fn wrong_agent() -> Result<()> {
    let play = Play::begin()?;
    let (node, pod) = beside(&play, "node-2")?;
    let stranger = Authority::new("another")?;
    let files = stranger.write_node(&play.cluster.sandbox().folder("stranger")?, "node-2")?;
    // It trusts the server's authority, and the server does not trust its.
    let tls = PemFiles {
        ca: node.tls().ca.clone(),
        ..files
    };
    let mark = play.server.program().mark();
    let agent = launch_agent(&play.cluster, &node, &tls)?;
    logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"])?;
    logs(play.server.program(), mark, &["10.0.1.2", "certificate"])?;
    refused(pod.place(), "b-writer", 503, &["kiam-server"])?;
    play.others_are_unaffected()
}

fn wrong_node() -> Result<()> {
    let play = Play::begin()?;
    let (node, pod) = beside(&play, "node-2")?;
    // The certificate is good, and node-1's.
    let mark = play.server.program().mark();
    let agent = launch_agent(&play.cluster, &node, play.node.tls())?;
    logs(agent.program(), 0, &["node-2"])?;
    logs(
        play.server.program(),
        mark,
        &["refused", "node-2", "node-1"],
    )?;
    refused(pod.place(), "b-writer", 503, &["kiam-server"])?;
    play.others_are_unaffected()
}

fn wrong_server() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let (alice, _) = cast(&cluster, &node)?;
    let stranger = Authority::new("another")?;
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
    let folder = cluster.sandbox().folder("servers")?;
    let ca = cluster.server_tls().ca.clone();
    for (name, files) in [
        (
            "authority",
            PemFiles {
                ca: ca.clone(),
                ..stranger.write(&folder.join("1"), &of_stranger)?
            },
        ),
        (
            "name",
            cluster.authority().write(&folder.join("2"), &elsewhere)?,
        ),
    ] {
        let mut server = cluster.launch_server(&files, &[])?;
        server.ready()?;
        let agent = launch_agent(&cluster, &node, node.tls())?;
        logs(agent.program(), 0, &["10.0.0.1:9610", "certificate"]).context(name)?;
        refused(alice.place(), "a-reader", 503, &["kiam-server"])?;
    }
    ensure!(node.imds().traffic().connections() == 0);
    Ok(())
}

fn no_server() -> Result<()> {
    let cluster = FileCluster::new(&programs()?)?;
    let node = cluster.node("node-1", NodeOptions::default())?;
    let (alice, bob) = cast(&cluster, &node)?;
    let agent = cluster.launch_agent(&node, node.tls(), &[])?;
    logs(agent.program(), 0, &["10.0.0.1:9610", "trying again"])?;
    refused(
        alice.place(),
        "a-reader",
        503,
        &["kiam-server", "try again"],
    )?;
    ensure!(
        agent.admin("/readyz")?.status != 200,
        "it knows no pods yet"
    );

    let server = cluster.start_server(&[])?;
    let mut play = Play {
        alice,
        bob,
        agent,
        server,
        node,
        cluster,
    };
    play.agent.ready()?;
    play.others_are_unaffected()
}
