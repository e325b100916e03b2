//! The metadata service as a whole, as pods see it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_client::steady::{End, Try};
use serde_json::Value;
use testbed::fixture::{
    Fixture, assert_logs, eventually, get, programs, require_sdks, try_ask, try_get,
};
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox::{Program, run};
use toolchain::{AWS, find_program};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_metadata_service_conforms_to_the_real_one() {
    let fixture = Fixture::start();
    let mut command = fixture
        .alice
        .place()
        .command(testbed::kiam::xtask().unwrap());
    let against = format!("--against={METADATA_SERVICE}");
    command.args(["conformance", "--json", &against]);
    let ended = run("conformance", command, LIMIT).unwrap();
    let report: Value = serde_json::from_str(&ended.stdout)
        .context(ended.stderr)
        .unwrap();
    assert!(report["wrong"] == 0, "{report:#}");
    assert!(report["lines"].as_u64() > Some(30), "{report:#}");
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn allowed_routes_are_fetched_by_the_agent_and_no_others() {
    let path = "/latest/meta-data/instance-id";
    let fixture = Fixture::start_with(&[&format!("--allow-route-regexp={path}")]);
    let url = |path: &str| format!("{METADATA_SERVICE}{path}");
    let answer = get(fixture.alice.place(), &url(path));
    assert!(answer.status == 200, "{answer:?}");
    assert!(answer.body == "i-0123456789abcdef0", "{answer:?}");
    let seen = fixture.node.imds().traffic();
    // One connection for a session, and one for the path.
    assert!(
        seen.connections() == 2,
        "{} connections",
        seen.connections()
    );
    let before = seen.bytes();
    for path in [
        "/latest/meta-data/iam/security-credentials/the-node-s-own-role",
        "/latest/meta-data/instance-id/x",
        "/latest/meta-data/",
    ] {
        let answer = get(fixture.alice.place(), &url(path));
        assert!(answer.status != 200, "{path}: {answer:?}");
    }
    assert!(seen.bytes() == before, "more came through");
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_kernel_log_names_refused_connections_only() {
    let fixture = Fixture::start_with(&["--kernel-log=refused"]);
    let elsewhere = format!("{METADATA_SERVICE}:81/");
    // The kernel refuses it, so that there is no answer.
    drop(try_get(fixture.alice.place(), &elsewhere));
    drop(try_ask(fixture.alice.place(), ""));
    eventually(|| {
        let output = fixture.agent.program().output();
        let line = output
            .lines()
            .find(|line| line.contains("kernel program: refused"));
        let line = line.context("nothing was logged")?;
        ensure!(
            line.contains("connect4") && line.contains("connect_refused"),
            "{line}"
        );
        ensure!(!output.contains("kernel program: let through"), "{output}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn the_status_command_lists_served_pods_and_why_others_are_not() {
    let fixture = Fixture::start();
    fixture.pod(("team-a", "eve"), Some("b-writer"));
    fixture.pod(("team-a", "plain"), None);
    drop(try_ask(fixture.alice.place(), ""));
    let at = format!("--address=127.0.0.1:{}", testbed::kiam::AGENT_ADMIN_PORT);
    let status = |more: &[&str]| {
        let mut command = fixture.node.node().place().command(programs().agent());
        command.env_clear().args(["status", &at]).args(more);
        run("kiam-agent status", command, LIMIT)
    };
    eventually(|| {
        let output = status(&[])?;
        for part in [
            "kiam-agent",
            "Connected to the server at",
            "team-a/alice  served",
            "arn:aws:iam::123456789012:role/a-reader",
            "team-a/eve    forbidden",
            "team-a/plain  no role",
        ] {
            ensure!(
                output.stdout.contains(part),
                "no {part:?} in {}",
                output.stdout
            );
        }
        // One pod is not served.
        ensure!(output.status.code() == Some(1), "{:?}", output.status);
        Ok(())
    });
    let report: Value = serde_json::from_str(&status(&["--json"]).unwrap().stdout).unwrap();
    let lines = report["pods"]["listed"]
        .as_array()
        .context("no pods")
        .unwrap();
    let alice = lines.iter().find(|line| line["name"] == "alice");
    let alice = alice.context("no alice").unwrap();
    assert!(
        alice["imds_v1"][0]["requests"].as_u64() >= Some(1),
        "{alice}"
    );
}

/// A script that a hostile server, or the author of an annotation, injects.
const HOSTILE: &str =
    "<img src=x onerror=document.title='run'><script>document.title='run'</script>";

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_browser_shows_the_status_page_and_runs_no_injected_script() {
    let fixture = Fixture::start();
    fixture.pod(("team-a", "eve"), Some(HOSTILE));
    fixture.pod(("team-a", "plain"), None);
    drop(try_ask(fixture.alice.place(), ""));
    eventually(|| {
        let report = fixture.agent.admin("/status")?.body;
        ensure!(
            report.contains("eve") && report.contains("plain"),
            "{report}"
        );
        Ok(())
    });
    let picture = fixture.cluster.sandbox().scratch().join("status.png");
    let url = format!(
        "http://127.0.0.1:{}/status.html",
        testbed::kiam::AGENT_ADMIN_PORT
    );
    let profile = fixture.cluster.sandbox().folder("browser").unwrap();
    let browse = |what: &str| {
        let program =
            find_program("chromium").expect("needs chromium, which `cargo xtask test` installs");
        let mut command = fixture.node.node().place().command(program);
        command
            .env("HOME", &profile)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args([
                "--no-first-run",
                "--disable-extensions",
                "--disable-background-networking",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(["--window-size=1200,500", what, &url]);
        run("chromium", command, LIMIT)
    };
    let shown = browse("--dump-dom").unwrap();
    assert!(shown.status.success(), "{}", shown.stderr);
    let shown = shown.stdout;
    assert!(shown.contains("<title>kiam-agent</title>"), "{shown}");
    // It is shown as text, and no part of it is an element.
    assert!(shown.contains("<td>team-a/eve</td>"), "{shown}");
    assert!(
        shown.contains("&lt;script&gt;") && !shown.contains("<script"),
        "{shown}"
    );
    assert!(!shown.contains("<img"), "{shown}");
    let ended = browse(&format!("--screenshot={}", picture.display())).unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    let bytes = std::fs::read(&picture).context("no picture").unwrap();
    assert!(
        bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000,
        "{} bytes",
        bytes.len()
    );
    if let Some(keep) = std::env::var_os("KIAM_TEST_KEEP_PICTURE") {
        std::fs::copy(&picture, keep)
            .context("cannot keep the picture")
            .unwrap();
    }
}

/// Opens a number of connections, sends nothing on them, and prints the number of closed ones.
const HOG: &str = r#"
import resource, select, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
# All that one pod may have open, and more connections than that, each of which replaces one.
limit, more = int(sys.argv[1]), int(sys.argv[2])
held, closed = {}, 0
ended = select.poll()
for _ in range(limit + more):
    one = socket.create_connection(("169.254.169.254", 80), 10)
    held[one.fileno()] = one
    ended.register(one, select.POLLIN)
while closed < more and (ready := ended.poll(20000)):
    for fd, _ in ready:
        ended.unregister(fd)
        try:
            answer = held[fd].recv(4096)
        except ConnectionResetError:
            answer = b""
        assert not answer, answer
        closed += 1
print("closed", closed, flush=True)
time.sleep(30)
"#;

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn a_thousand_silent_connections_of_one_pod_are_replaced_and_affect_no_other_pod() {
    require_sdks();
    let fixture = Fixture::start();
    let mut hog: Command = fixture.alice.place().command(AWS.program("python"));
    hog.args(["-c", HOG, "1024", "300"]);
    let hog = Program::start("the hog", hog).unwrap();
    // Silent connections are closed for new ones.
    hog.wait_for("that some were closed", LIMIT, |line| {
        line.starts_with("closed").then_some(())
    })
    .unwrap();
    assert!(hog.output().contains("closed 300"), "{}", hog.output());
    all_are_answered(&fixture);
    let metrics = fixture.agent_metrics();
    let refused = "kiam_metadata_connections_refused_total{limit=\"silent\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused));
    let refused: f64 = refused
        .context("none was refused")
        .unwrap()
        .parse()
        .unwrap();
    assert!(refused >= 300.0, "{refused} connections were refused");
    // The log names the pod, and not each connection.
    assert_logs(
        fixture.agent.program(),
        0,
        &["closed a connection without a response", "team-a", "alice"],
    );
    drop(hog);
    fixture.assert_teams_are_served();
}

/// Asserts that all requests of the other pod are answered, each on its own connection.
#[track_caller]
fn all_are_answered(fixture: &Fixture) {
    let mut command = fixture
        .bob
        .place()
        .command(testbed::kiam::pod_client().unwrap());
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/b-writer");
    command.args(["steady", "--rate=100", "--seconds=2", &url]);
    let ended = run("steady", command, LIMIT).unwrap();
    let tries = ended.stdout.lines().map(serde_json::from_str::<Try>);
    let tries: Vec<Try> = tries
        .collect::<Result<_, _>>()
        .context(ended.stderr)
        .unwrap();
    assert!(!tries.is_empty(), "no request was sent");
    for Try { end, .. } in &tries {
        assert!(matches!(end, End::Answered(200, _)), "{end:?}");
    }
}
