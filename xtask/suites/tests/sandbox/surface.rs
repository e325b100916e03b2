//! The metadata service as a whole, from inside of pods.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_client::steady::{End, Try};
use serde_json::Value;
use testbed::probe::METADATA_SERVICE;
use testbed::sandbox::{Program, run};
use toolchain::{AWS, find_program};

use crate::play::{Play, ask, eventually, logs, prober, programs};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "surface::it_is_as_the_real_one_line_by_line",
        Needs::Programs,
        conforms,
    ),
    (
        "surface::what_is_let_through_is_asked_for_by_the_agent",
        Needs::Programs,
        passes,
    ),
    (
        "surface::the_kernel_programs_tell_what_they_refuse",
        Needs::Programs,
        kernel_log,
    ),
    (
        "surface::the_agent_s_status_says_who_is_served_and_why_not",
        Needs::Programs,
        status,
    ),
    (
        "surface::the_status_page_is_shown_by_a_browser",
        Needs::Browser,
        page,
    ),
    (
        "surface::a_thousand_silent_connections_of_one_pod_make_room_and_harm_no_other",
        Needs::Sdk,
        hogged,
    ),
];

const LIMIT: Duration = Duration::from_secs(60);

fn conforms() -> Result<()> {
    let play = Play::begin()?;
    let mut command = play.alice.place().command(testbed::kiam::xtask()?);
    let against = format!("--against={METADATA_SERVICE}");
    command.args(["conformance", "--json", &against]);
    let ended = run("conformance", command, LIMIT)?;
    let report: Value = serde_json::from_str(&ended.stdout).context(ended.stderr)?;
    ensure!(report["wrong"] == 0, "{report:#}");
    ensure!(report["lines"].as_u64() > Some(30), "{report:#}");
    play.others_are_unaffected()
}

fn passes() -> Result<()> {
    let path = "/latest/meta-data/instance-id";
    let play = Play::begin_with(&[&format!("--allow-route-regexp={path}")])?;
    let url = |path: &str| format!("{METADATA_SERVICE}{path}");
    let answer = prober()?.get(play.alice.place(), &url(path))?.answer()?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.body == "i-0123456789abcdef0", "{answer:?}");
    let seen = play.node.imds().traffic();
    // One for a session, and one for the path.
    ensure!(
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
        let answer = prober()?.get(play.alice.place(), &url(path))?.answer()?;
        ensure!(answer.status != 200, "{path}: {answer:?}");
    }
    ensure!(seen.bytes() == before, "more came through");
    Ok(())
}

fn kernel_log() -> Result<()> {
    let play = Play::begin_with(&["--kernel-log=refused"])?;
    let elsewhere = format!("{METADATA_SERVICE}:81/");
    // Refused by the kernel, so that there is no answer to look at.
    drop(prober()?.get(play.alice.place(), &elsewhere)?);
    drop(ask(play.alice.place(), "")?);
    eventually(|| {
        let said = play.agent.program().output();
        let told = said
            .lines()
            .find(|line| line.contains("a kernel program refused"));
        let told = told.context("nothing was told")?;
        ensure!(
            told.contains("connect4") && told.contains("connect_refused"),
            "{told}"
        );
        ensure!(!said.contains("a kernel program let through"), "{said}");
        Ok(())
    })
}

fn status() -> Result<()> {
    let play = Play::begin()?;
    play.cluster
        .pod(&play.node, ("team-a", "eve"), Some("b-writer"))?;
    play.cluster.pod(&play.node, ("team-a", "plain"), None)?;
    drop(ask(play.alice.place(), "")?);
    let at = format!("--address=127.0.0.1:{}", testbed::kiam::AGENT_ADMIN_PORT);
    let status = |more: &[&str]| {
        let mut command = play.node.node().place().command(programs()?.agent());
        command.env_clear().args(["status", &at]).args(more);
        run("kiam-agent status", command, LIMIT)
    };
    eventually(|| {
        let said = status(&[])?;
        for part in [
            "kiam-agent",
            "Informed by the server at",
            "team-a/alice  served",
            "arn:aws:iam::123456789012:role/a-reader",
            "team-a/eve    forbidden",
            "team-a/plain  no role",
        ] {
            ensure!(said.stdout.contains(part), "no {part:?} in {}", said.stdout);
        }
        // One pod gets nothing.
        ensure!(said.status.code() == Some(1), "{:?}", said.status);
        Ok(())
    })?;
    let report: Value = serde_json::from_str(&status(&["--json"])?.stdout)?;
    let lines = report["pods"]["listed"].as_array().context("no pods")?;
    let alice = lines.iter().find(|line| line["name"] == "alice");
    let alice = alice.context("no alice")?;
    ensure!(
        alice["imds_v1"][0]["requests"].as_u64() >= Some(1),
        "{alice}"
    );
    Ok(())
}

/// What a hostile server, or whoever writes annotations, would have the page do.
const HOSTILE: &str =
    "<img src=x onerror=document.title='run'><script>document.title='run'</script>";

fn page() -> Result<()> {
    let play = Play::begin()?;
    play.cluster
        .pod(&play.node, ("team-a", "eve"), Some(HOSTILE))?;
    play.cluster.pod(&play.node, ("team-a", "plain"), None)?;
    drop(ask(play.alice.place(), "")?);
    eventually(|| {
        let report = play.agent.admin("/status")?.body;
        ensure!(
            report.contains("eve") && report.contains("plain"),
            "{report}"
        );
        Ok(())
    })?;
    let picture = play.cluster.sandbox().scratch().join("status.png");
    let url = format!(
        "http://127.0.0.1:{}/status.html",
        testbed::kiam::AGENT_ADMIN_PORT
    );
    let profile = play.cluster.sandbox().folder("browser")?;
    let browse = |what: &str| {
        let program = find_program("chromium").context("there is no chromium")?;
        let mut command = play.node.node().place().command(program);
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
    let shown = browse("--dump-dom")?;
    ensure!(shown.status.success(), "{}", shown.stderr);
    let shown = shown.stdout;
    ensure!(shown.contains("<title>kiam-agent</title>"), "{shown}");
    // As text, in cells; nothing of it is an element.
    ensure!(shown.contains("<td>team-a/eve</td>"), "{shown}");
    ensure!(
        shown.contains("&lt;script&gt;") && !shown.contains("<script"),
        "{shown}"
    );
    ensure!(!shown.contains("<img"), "{shown}");
    let ended = browse(&format!("--screenshot={}", picture.display()))?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    let bytes = std::fs::read(&picture).context("no picture")?;
    ensure!(
        bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000,
        "{} bytes",
        bytes.len()
    );
    if let Some(keep) = std::env::var_os("KIAM_TEST_KEEP_PICTURE") {
        std::fs::copy(&picture, keep).context("cannot keep the picture")?;
    }
    Ok(())
}

/// Opens as many connections as it is told, asks nothing on them, and says how many were closed.
const HOG: &str = r#"
import resource, select, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
# All that one pod may have open, and as many more as are closed to make room.
room, more = int(sys.argv[1]), int(sys.argv[2])
held, closed = {}, 0
ended = select.poll()
for _ in range(room + more):
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

fn hogged() -> Result<()> {
    let play = Play::begin()?;
    let mut hog: Command = play.alice.place().command(AWS.program("python"));
    hog.args(["-c", HOG, "1024", "300"]);
    let hog = Program::start("the hog", hog)?;
    // Those that ask nothing make room for those that come.
    hog.wait_for("that some were closed", LIMIT, |line| {
        line.starts_with("closed").then_some(())
    })?;
    ensure!(hog.output().contains("closed 300"), "{}", hog.output());
    all_are_answered(&play)?;
    let metrics = play.agent.admin("/metrics")?.body;
    let refused = "kiam_metadata_connections_refused_total{limit=\"silent\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused));
    let refused: f64 = refused.context("none was refused")?.parse()?;
    ensure!(refused >= 300.0, "{refused} connections were refused");
    // Each with the pod's name, and not each with a line of its own.
    logs(
        play.agent.program(),
        0,
        &["closed without an answer", "team-a", "alice"],
    )?;
    drop(hog);
    play.others_are_unaffected()
}

/// Asks for the other pod, again and again, each time on a connection of its own.
fn all_are_answered(play: &Play) -> Result<()> {
    let mut command = play.bob.place().command(testbed::kiam::pod_client()?);
    let url = format!("{METADATA_SERVICE}/latest/meta-data/iam/security-credentials/b-writer");
    command.args(["steady", "--rate=100", "--seconds=2", &url]);
    let ended = run("steady", command, LIMIT)?;
    let tries = ended.stdout.lines().map(serde_json::from_str::<Try>);
    let tries: Vec<Try> = tries.collect::<Result<_, _>>().context(ended.stderr)?;
    ensure!(!tries.is_empty(), "nothing was asked");
    for Try { end, .. } in &tries {
        ensure!(matches!(end, End::Answered(200, _)), "{end:?}");
    }
    Ok(())
}
