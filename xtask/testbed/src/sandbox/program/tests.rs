use super::*;

const LONG: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn output_and_status_are_those_of_the_program() {
    let ended = run("it", shell("echo out; echo err >&2; exit 3"), LONG).unwrap();
    assert_eq!(ended.status.code(), Some(3));
    assert_eq!((&*ended.stdout, &*ended.stderr), ("out\n", "err\n"));
}

#[test]
fn a_line_is_awaited_and_a_program_that_ends_without_it_named() {
    let program = Program::start("it", shell("echo port 7; exec sleep 60")).unwrap();
    let port = program.wait_for("port", LONG, |line| {
        line.strip_prefix("port ").map(str::to_owned)
    });
    assert_eq!(port.unwrap(), "7");
    let late = program.wait_for_after(program.mark(), "more", Duration::ZERO, |_| Some(()));
    assert!(late.unwrap_err().to_string().contains("no more within"));
    let pid = program.pid();
    drop(program);
    assert!(!std::path::Path::new("/proc").join(pid.to_string()).exists());

    let program = Program::start("it", shell("echo no good")).unwrap();
    let error = program
        .wait_for("port", LONG, |_| None::<()>)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("it ended before port") && error.contains("no good"),
        "{error}"
    );
}

#[test]
fn a_program_that_does_not_end_is_an_error_and_killed() {
    let program = Program::start("it", shell("exec sleep 60")).unwrap();
    let pid = program.pid();
    let error = program.finish(Duration::from_millis(1)).unwrap_err();
    assert!(error.to_string().contains("has not ended"), "{error}");
    assert!(!std::path::Path::new("/proc").join(pid.to_string()).exists());
    let program = Program::start("it", shell("exec sleep 60")).unwrap();
    assert_eq!(program.terminate(LONG).unwrap().status.code(), None);
}
