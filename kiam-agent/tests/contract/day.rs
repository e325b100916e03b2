//! One course of a day, minute by minute.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use testbed::sdk::Sdk;

use crate::service::Service;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const SESSION: u64 = HOUR;
const REFRESH: u64 = 30 * MINUTE;
/// Fetches in any hour while all is well: each SDK renews somewhat before the end of what it has.
const MOST_IN_AN_HOUR: u64 = 3;
/// What short outages add: from 15 minutes before the end (botocore's advisory refresh) until new
/// ones are there at 10, botocore may ask in every minute. How often it does it draws by lot
/// (`InstanceMetadataFetcher._evaluate_expiration`).
const MORE_IN_AN_OUTAGE: u64 = 5;
/// After an outage that outlasted the credentials, in minutes, an SDK has new ones.
const RECOVERY: u64 = 20;

/// How STS fares.
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

    /// Whether credentials that live are there in that minute, and have been for long enough.
    const fn is_served(self, minute: u64) -> bool {
        match self {
            Self::Well | Self::ShortOutages => true,
            // The last ones were issued by minute 120 at the latest, and expire an hour later.
            Self::LongOutage => minute < 120 + 30 || minute >= 240 + RECOVERY,
        }
    }
}

/// Plays it for one SDK.
pub(crate) fn play(sdk: Sdk, course: Course) -> Result<(), String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let begin = now.map_err(|error| error.to_string())?.as_secs();
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
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (mut asks, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut says = BufReader::new(says).lines();
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
        writeln!(asks, "{now}").map_err(|error| error.to_string())?;
        let said = says.next().ok_or("it ended early")?;
        let said = said.map_err(|error| error.to_string())?;
        let end = said.strip_prefix("key ").and_then(|key| ends.get(key));
        match (end, course.is_served(minute)) {
            (Some(end), true) if *end <= now => {
                return Err(format!(
                    "in minute {minute} it signs with expired credentials"
                ));
            }
            (None, true) => return Err(format!("in minute {minute} it says: {said}")),
            (None, false) => outage_errors += 1,
            (Some(_), _) => {}
        }
        let all = service.fetched();
        in_hour[usize::try_from(minute / 60).unwrap()] += all - fetched;
        fetched = all;
    }
    drop(asks);
    let status = child.wait().map_err(|error| error.to_string())?;
    let most = in_hour.into_iter().max().unwrap_or(0);
    println!(
        "{}, {course:?}: {fetched} fetches in {} hours, at most {most} in one; {outage_errors} minutes without credentials",
        sdk.name(),
        course.minutes() / 60
    );
    let calm = course.most_in_an_hour().is_none_or(|calm| most <= calm);
    if !status.success() || !calm {
        return Err(format!("{status}; {most} fetches in an hour"));
    }
    // It was asked at all: an SDK that held on to its first credentials would have failed above.
    if fetched < course.minutes() / 60 / 2 {
        return Err(format!("only {fetched} fetches"));
    }
    Ok(())
}
