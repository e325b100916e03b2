//! Clients in pods, and the check of their answers.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use toolchain::AWS;

use pod_client::ask::{Attempt, now};
use testbed::cluster::Running;
use testbed::doubles::sts::{Record, Sts};
use testbed::kiam;
use testbed::sandbox::{Place, Program};

/// Time for which a withdrawn role may still be answered, on a busy machine.
pub(super) const WITHDRAWN_WITHIN: Duration = Duration::from_secs(5);
const INTERVAL: &str = "--interval=500";

/// Starts again each time, as a job does: with credentials of a much shorter life than AWS's, a
/// running botocore would keep its credentials until they are expired.
const SDK: &str = r#"
import json, time, botocore.session, botocore.config
config = botocore.config.Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=2)
while True:
    begin, attempt = time.time(), {}
    try:
        session = botocore.session.get_session()
        client = session.create_client("sts", region_name="eu-west-1", config=config)
        attempt["arn"] = client.get_caller_identity()["Arn"]
        attempt["key"] = session.get_credentials().get_frozen_credentials().access_key
    except Exception as error:
        attempt["failure"] = "botocore: %s" % error
    attempt["at"], attempt["took"] = int(begin * 1000), int((time.time() - begin) * 1e6)
    print(json.dumps(attempt), flush=True)
    time.sleep(2)
"#;

/// Kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Fast,
    Sdk,
}

/// A pod that sends requests all the time.
#[derive(Debug)]
pub(super) struct Client {
    program: Program,
    read: usize,
    /// The roles that it had; the last is the one that it has.
    roles: Vec<RolePeriod>,
    pub(super) pod: Running,
}

/// A role that a pod has or had, or none, and the time for which it may be seen, in milliseconds
/// since 1970.
#[derive(Debug, Clone)]
struct RolePeriod {
    role: Option<String>,
    since: u64,
    until: u64,
}

impl RolePeriod {
    fn is(&self, role: &str) -> bool {
        self.role.as_deref() == Some(role)
    }
}

/// Verdict on an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// It had a role and got no credentials.
    Failed(String),
    /// It got credentials that it must not get.
    Wrong(String),
    /// It had no role and got none.
    Refused,
}

impl Client {
    pub(super) fn start(pod: Running, role: &str, kind: Kind, sts_url: &str) -> Result<Self> {
        let command = match kind {
            Kind::Fast => fast(pod.place(), &[INTERVAL])?,
            Kind::Sdk => sdk(pod.place(), sts_url),
        };
        Ok(Self {
            program: Program::start(&format!("the client in {}", pod.name()), command)?,
            read: 0,
            roles: vec![RolePeriod {
                role: Some(role.to_owned()),
                since: now(),
                until: u64::MAX,
            }],
            pod,
        })
    }

    /// Stops its requests; its answers can still be read.
    pub(super) fn stop(&self) -> Result<()> {
        self.program.signal(Signal::SIGKILL)
    }

    /// Ends it; the pod runs on.
    pub(super) fn end(self) -> Running {
        self.pod
    }

    /// Expects this role from now on; the one before may be seen for the permitted time.
    pub(super) fn expect(&mut self, role: Option<&str>) {
        let since = now();
        if let Some(before) = self.roles.last_mut() {
            before.until = since + WITHDRAWN_WITHIN.as_millis() as u64;
        }
        self.roles.push(RolePeriod {
            role: role.map(str::to_owned),
            since,
            until: u64::MAX,
        });
    }

    /// Returns whether its role was changed since then, in milliseconds since 1970, or the pod is
    /// newer.
    pub(super) fn is_changed(&self, since: u64) -> bool {
        self.roles
            .last()
            .is_some_and(|period| period.since >= since)
    }

    /// Roles that were withdrawn lately may be seen until then, in milliseconds since 1970.
    pub(super) fn excuse(&mut self, end: u64) {
        if let [.., before, _] = self.roles.as_mut_slice() {
            before.until = before.until.max(end);
        }
    }

    /// Returns its answers since the last call.
    pub(super) fn drain(&mut self) -> Result<Vec<Attempt>> {
        let lines = self.program.lines_after(self.read);
        self.read += lines.len();
        let parse = |line: &String| {
            serde_json::from_str(line).with_context(|| format!("{}: {line}", self.program.name()))
        };
        lines.iter().map(parse).collect()
    }

    pub(super) fn judge(&self, attempt: &Attempt, sts: &Sts) -> Verdict {
        let record = attempt.key.as_ref().and_then(|key| sts.record(key));
        judge(&self.roles, attempt, record.as_ref())
    }
}

fn judge(roles: &[RolePeriod], attempt: &Attempt, record: Option<&Record>) -> Verdict {
    // Also one of which it is over in the middle of an answer.
    let seen = |period: &&RolePeriod| attempt.end() >= period.since && attempt.at <= period.until;
    let possible = || roles.iter().filter(seen);
    let Some(key) = &attempt.key else {
        let why = attempt.failure.clone().unwrap_or_default();
        return if possible().any(|period| period.role.is_none()) {
            Verdict::Refused
        } else {
            Verdict::Failed(why)
        };
    };
    let Some(record) = record else {
        return Verdict::Wrong(format!("the access key {key}, which STS did not give out"));
    };
    let end = i64::try_from(attempt.end()).unwrap_or(i64::MAX);
    if record.expiration.as_millisecond() < end {
        let end = Timestamp::from_millisecond(end).unwrap_or_default();
        return Verdict::Wrong(format!("credentials until {} at {end}", record.expiration));
    }
    let of = record.arn.split('/').nth(1).unwrap_or_default();
    if !possible().any(|period| period.is(of)) {
        let has: Vec<_> = possible()
            .map(|period| period.role.as_deref().unwrap_or("none"))
            .collect();
        return Verdict::Wrong(format!("{of} for a pod that has {}", has.join(" or ")));
    }
    let who = attempt.arn.as_ref().and_then(|arn| arn.split('/').nth(1));
    match who {
        Some(who) if !possible().any(|period| period.is(who)) => {
            Verdict::Wrong(format!("it is {who}"))
        }
        _ => Verdict::Right,
    }
}

/// A fast client's command in a place.
pub(super) fn fast(place: &Place, flags: &[&str]) -> Result<Command> {
    let mut command = place.command(kiam::pod_client()?);
    command.arg("ask").args(flags);
    Ok(command)
}

fn sdk(place: &Place, sts_url: &str) -> Command {
    let mut command = place.command(AWS.program("python"));
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_ENDPOINT_URL_STS", sts_url)
        .args(["-c", SDK]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(role: Option<&str>, since: u64, until: u64) -> RolePeriod {
        let role = role.map(str::to_owned);
        RolePeriod { role, since, until }
    }

    fn judged(roles: &[RolePeriod], at: u64, of: &str) -> Verdict {
        let attempt = Attempt {
            at,
            key: Some("ASIA".to_owned()),
            ..Attempt::default()
        };
        let record = Record {
            arn: format!("arn:aws:sts::123456789012:assumed-role/{of}/kiam"),
            expiration: Timestamp::from_millisecond(100_000).unwrap(),
        };
        judge(roles, &attempt, Some(&record))
    }

    #[test]
    fn a_role_is_right_while_the_pod_has_it_and_a_little_longer() {
        let (a, b) = (Some("a"), Some("b"));
        let roles = [
            period(a, 0, 1500),
            period(b, 1000, 3500),
            period(a, 3000, u64::MAX),
        ];
        for (at, of) in [
            (900, "a"),
            (1200, "a"),
            (1200, "b"),
            (3200, "b"),
            (3200, "a"),
        ] {
            assert_eq!(judged(&roles, at, of), Verdict::Right, "{of} at {at}");
        }
        for (at, of) in [(900, "b"), (2000, "a"), (4000, "b"), (2000, "c")] {
            let verdict = judged(&roles, at, of);
            assert!(matches!(verdict, Verdict::Wrong(_)), "{of} at {at}");
        }
    }

    #[test]
    fn ended_and_unknown_credentials_are_wrong() {
        let roles = [period(Some("a"), 0, u64::MAX)];
        assert_eq!(judged(&roles, 99_000, "a"), Verdict::Right);
        assert!(matches!(judged(&roles, 100_001, "a"), Verdict::Wrong(_)));
        let attempt = Attempt {
            key: Some("ASIA".to_owned()),
            ..Attempt::default()
        };
        assert!(matches!(judge(&roles, &attempt, None), Verdict::Wrong(_)));
    }

    #[test]
    fn a_pod_without_a_role_is_refused_and_one_with_a_role_fails() {
        let nothing = Attempt::default();
        let none = [period(None, 0, u64::MAX)];
        assert_eq!(judge(&none, &nothing, None), Verdict::Refused);
        let some = [period(Some("a"), 0, u64::MAX)];
        assert_eq!(judge(&some, &nothing, None), Verdict::Failed(String::new()));
        assert!(matches!(judged(&none, 1, "a"), Verdict::Wrong(_)));
    }
}
