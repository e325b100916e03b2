//! Unmodified clients: botocore against the STS double, and AWS's SDKs in pods.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use testbed::doubles::sts::{Behavior, Fault, Sts};
use testbed::fixture::{Fixture, assert_denied_eventually, require_sdks};
use testbed::sandbox::{Finished, Place, run};
use testbed::sdk::Sdk;
use toolchain::AWS;

const LIMIT: Duration = Duration::from_secs(60);
/// Requests that an SDK may send before it reports a denial.
const MOST_DENIALS: u64 = 10;

/// Assumes a role, signs with the issued keys and with wrong ones, and prints the errors.
const SCRIPT: &str = r#"
import boto3, botocore.config, os, sys
from botocore.exceptions import ClientError

config = botocore.config.Config(retries={"max_attempts": 0})
def sts(**keys):
    return boto3.client("sts", region_name="eu-west-1", config=config, **keys)
def code(call, **arguments):
    try:
        call(**arguments)
        return "none"
    except ClientError as error:
        assert error.response["ResponseMetadata"]["RequestId"], error.response
        return error.response["Error"]["Code"]

role = "arn:aws:iam::123456789012:role/path/reader"
answer = sts().assume_role(RoleArn=role, RoleSessionName="it+=,.@-", ExternalId="a:b/c",
    DurationSeconds=900, Tags=[{"Key": "team", "Value": "a & b"}])
assert answer["AssumedRoleUser"]["Arn"].endswith(":assumed-role/reader/it+=,.@-"), answer
keys = answer["Credentials"]
assert keys["Expiration"].tzinfo, keys
session = dict(aws_access_key_id=keys["AccessKeyId"], aws_secret_access_key=keys["SecretAccessKey"],
    aws_session_token=keys["SessionToken"])
who = sts(**session).get_caller_identity()
assert who["Arn"] == answer["AssumedRoleUser"]["Arn"] and who["Account"] == "123456789012", who
codes = [
    code(sts(**{**session, "aws_secret_access_key": "wrong"}).get_caller_identity),
    code(sts(**{**session, "aws_session_token": "wrong"}).get_caller_identity),
    code(sts(**{**session, "aws_access_key_id": "ASIAWRONG"}).get_caller_identity),
    code(sts(**session).assume_role, RoleArn=role, RoleSessionName="on"),
    code(sts().assume_role, RoleArn=role, RoleSessionName="no spaces"),
    code(sts().assume_role, RoleArn="arn:aws:iam::123456789012:role/throttled", RoleSessionName="it"),
]
print(" ".join(codes))
"#;

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn botocore_accepts_the_sts_double() {
    require_sdks();
    let sts = Sts::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let fault = Some(Fault::Throttling);
    let role = "arn:aws:iam::123456789012:role/throttled";
    sts.behave(
        Some(role),
        Behavior {
            fault,
            ..Behavior::default()
        },
    );
    let keys = sts.server_keys();
    let mut command = Command::new(AWS.program("python"));
    command
        .args(["-c", SCRIPT])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .env("AWS_ACCESS_KEY_ID", keys.access_key)
        .env("AWS_SECRET_ACCESS_KEY", keys.secret_key);
    let ended = run("python", command, LIMIT).unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    let expected = "SignatureDoesNotMatch InvalidClientTokenId InvalidClientTokenId AccessDenied \
                    ValidationError Throttling";
    assert!(ended.stdout.trim() == expected, "{}", ended.stdout);
    assert!(sts.calls()[0].tags == [("team".to_owned(), "a & b".to_owned())]);
}

/// Runs `GetCallerIdentity` with an SDK in a place.
#[track_caller]
fn who(fixture: &Fixture, sdk: Sdk, place: &Place, variables: &[(&str, &str)]) -> Finished {
    let mut command = sdk.who(|program| place.command(program));
    command
        .env("HOME", fixture.cluster.sandbox().folder("home").unwrap())
        .env("AWS_ENDPOINT_URL_STS", fixture.cluster.sts().url())
        .envs(variables.iter().copied());
    run(sdk.name(), command, LIMIT).unwrap()
}

#[track_caller]
fn assert_every_sdk_gets_its_role(fixture: &Fixture, variables: &[(&str, &str)]) {
    for sdk in Sdk::ALL {
        for (pod, role) in [(&fixture.alice, "a-reader"), (&fixture.bob, "b-writer")] {
            let ended = who(fixture, sdk, pod.place(), variables);
            let (name, output) = (sdk.name(), ended.stdout.trim());
            assert!(ended.status.success(), "{name}: {}", ended.stderr);
            let own = format!(":assumed-role/{role}/");
            assert!(output.contains(&own), "{name} is {output}");
        }
    }
    fixture.assert_teams_are_served();
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_sdk_in_a_pod_gets_the_role_of_the_pod() {
    require_sdks();
    assert_every_sdk_gets_its_role(&Fixture::start(), &[]);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_sdk_with_imdsv1_disabled_gets_the_role_of_the_pod() {
    require_sdks();
    let disabled = [("AWS_EC2_METADATA_V1_DISABLED", "true")];
    assert_every_sdk_gets_its_role(&Fixture::start(), &disabled);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_sdk_gets_the_role_of_the_pod_where_imdsv2_is_required() {
    require_sdks();
    let fixture = Fixture::start_with(&["--imds-v2=required"]);
    for sdk in Sdk::ALL {
        let ended = who(&fixture, sdk, fixture.alice.place(), &[]);
        let name = sdk.name();
        assert!(ended.status.success(), "{name}: {}", ended.stderr);
        assert!(ended.stdout.contains(":assumed-role/a-reader/"), "{name}");
    }
    // No request came without a token.
    let metrics = fixture.agent_metrics();
    let v1 = "kiam_metadata_imds_v1_requests_total{";
    assert!(!metrics.contains(v1), "{metrics}");
}

/// With the environment of a container credentials provider, whose address is redirected.
#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_sdk_gets_the_role_of_the_pod_from_the_container_endpoint() {
    require_sdks();
    let fixture = Fixture::start_with(&["--container-credentials-address=169.254.170.2"]);
    let url = "http://169.254.170.2/v1/credentials";
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    assert_every_sdk_gets_its_role(&fixture, &environment);
}

#[test]
#[ignore = "needs root and cgroup2: cargo xtask test"]
fn every_sdk_of_a_forbidden_pod_reports_missing_credentials_and_asks_in_no_loop() {
    require_sdks();
    let fixture = Fixture::start();
    let forbidden = fixture.pod(("team-a", "eve"), Some("b-writer"));
    assert_denied_eventually(forbidden.place(), "", 403, &["permitted"]);
    for sdk in Sdk::ALL {
        let before = denials(&fixture);
        let ended = who(&fixture, sdk, forbidden.place(), &[]);
        let (name, errors) = (sdk.name(), ended.stderr.to_lowercase());
        assert!(!ended.status.success(), "{name}: {}", ended.stdout);
        assert!(errors.contains("credentials"), "{name}: {errors}");
        // A permanent denial is not tried again and again.
        let asked = denials(&fixture) - before;
        assert!(
            (1..=MOST_DENIALS).contains(&asked),
            "{name} was denied {asked} times"
        );
    }
    fixture.assert_teams_are_served();
}

/// Number of requests that the agent has denied.
#[track_caller]
fn denials(fixture: &Fixture) -> u64 {
    let metrics = fixture.agent_metrics();
    let denied = metrics.lines().filter(|line| {
        line.starts_with("kiam_metadata_responses_total{") && line.contains("code=\"403\"")
    });
    let counts = denied.filter_map(|line| line.rsplit_once(' '));
    counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
}
