//! One course of a day, minute by minute.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use testbed::fixture::require_sdks;
use testbed::sdk::Sdk;

use crate::service::Service;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const SESSION: u64 = HOUR;
const REFRESH: u64 = 30 * MINUTE;
/// Fetches in any hour while all is well: each SDK renews somewhat before the end of what it has.
const MOST_IN_AN_HOUR: u64 = 3;
/// More fetches in an outage: from 15 minutes before the end (botocore's advisory refresh) until new
/// ones are there at 10, botocore may ask in every minute. How often it does it draws by lot
/// (`InstanceMetadataFetcher._evaluate_expiration`).
const MORE_IN_AN_OUTAGE: u64 = 5;
/// After an outage that outlasted the credentials, in minutes, an SDK has new ones.
const RECOVERY: u64 = 20;

/// Availability of STS in the course of a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// It answers.
    Well,
    /// Every three hours it fails for twenty minutes, when renewal is due.
    ShortOutages,
    /// It fails for two hours.
    LongOutage,
}

impl Course {
    const fn minutes(self) -> u64 {
        match self {
            Self::Well | Self::ShortOutages => 24 * 60,
            Self::LongOutage => 6 * 60,
        }
    }

    /// While there is nothing to fetch, an SDK asks as often as it is used.
    const fn most_in_an_hour(self) -> Option<u64> {
        match self {
            Self::Well => Some(MOST_IN_AN_HOUR),
            Self::ShortOutages => Some(MOST_IN_AN_HOUR + MORE_IN_AN_OUTAGE),
            Self::LongOutage => None,
        }
    }

    const fn fails(self, minute: u64) -> bool {
        match self {
            Self::Well => false,
            // From when half an hour is left, down to ten minutes.
            Self::ShortOutages => minute % 180 >= 150 && minute % 180 < 170,
            Self::LongOutage => minute >= 120 && minute < 240,
        }
    }

    /// Returns whether valid credentials are available in that minute, and have been for long enough.
    const fn is_served(self, minute: u64) -> bool {
        match self {
            Self::Well | Self::ShortOutages => true,
            // The last ones were issued by minute 120 at the latest, and expire an hour later.
            Self::LongOutage => minute < 120 + 30 || minute >= 240 + RECOVERY,
        }
    }
}

/// Runs an SDK through such a course, minute by minute.
///
/// # Panics
/// When it signs with expired credentials, has none while it should, or asks too often.
#[track_caller]
#[expect(
    clippy::print_stdout,
    reason = "how often each SDK asked is worth knowing"
)]
pub(crate) fn simulate(sdk: Sdk, course: Course) {
    require_sdks();
    let name = sdk.name();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH);
    let begin = begin.unwrap().as_secs();
    let mut service = Service::start(begin);
    let mut command = sdk.contract();
    command
        .env(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            format!("http://{}/", service.address),
        )
        .env("HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut times, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut answers = BufReader::new(answers).lines();
    let mut ends = HashMap::new();
    let mut expires = 0;
    let (mut fetched, mut in_hour, mut outage_errors) = (0, [0; 24], 0);
    for minute in 0..course.minutes() {
        let now = begin + minute * MINUTE;
        service.set_time(now);
        if expires < now + REFRESH + 1 {
            if course.fails(minute) {
                service.fail();
            } else {
                expires = now + SESSION;
                let key = format!("ASIA{minute:016}");
                service.issue(&key, now, expires);
                ends.insert(key, expires);
            }
        }
        writeln!(times, "{now}").unwrap();
        let answer = answers.next().expect("it runs").unwrap();
        let end = answer.strip_prefix("key ").and_then(|key| ends.get(key));
        match (end, course.is_served(minute)) {
            (Some(end), true) => assert!(
                *end > now,
                "{name}: in minute {minute} it signs with expired credentials"
            ),
            (None, true) => panic!("{name}: in minute {minute} it answers {answer}"),
            (None, false) => outage_errors += 1,
            (Some(_), false) => {}
        }
        let all = service.fetched();
        in_hour[usize::try_from(minute / 60).unwrap()] += all - fetched;
        fetched = all;
    }
    drop(times);
    let status = child.wait().unwrap();
    let most = in_hour.into_iter().max().unwrap_or(0);
    let hours = course.minutes() / 60;
    println!(
        "{name}, {course:?}: {fetched} fetches in {hours} hours, at most {most} in one; {outage_errors} minutes without credentials"
    );
    assert!(status.success(), "{name}: {status}");
    let limit = course.most_in_an_hour();
    assert!(
        limit.is_none_or(|limit| most <= limit),
        "{name}: {most} fetches in an hour"
    );
    // An SDK that held on to its first credentials would have failed above.
    assert!(fetched >= hours / 2, "{name}: only {fetched} fetches");
}
