//! Unmodified clients: botocore against the STS double, the AWS CLI and boto3 in pods.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::doubles::sts::{Behaviour, Fault, Sts};
use xtask::sandbox::{Finished, Place, run};
use xtask::setup::AWS;

use crate::play::{Play, eventually, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "sdk::botocore_speaks_with_the_sts_double",
        Needs::Sdk,
        botocore,
    ),
    (
        "sdk::the_aws_cli_in_a_pod_is_the_pod_s_role",
        Needs::Sdk,
        aws_cli,
    ),
    ("sdk::boto3_in_a_pod_is_the_pod_s_role", Needs::Sdk, boto3),
];

const LIMIT: Duration = Duration::from_secs(60);

/// Assumes a role, signs with what it got and with what it did not; and is told why not.
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

fn botocore() -> Result<()> {
    let sts = Sts::start(TcpListener::bind("127.0.0.1:0")?)?;
    let fault = Some(Fault::Throttling);
    let role = "arn:aws:iam::123456789012:role/throttled";
    sts.behave(
        Some(role),
        Behaviour {
            fault,
            ..Behaviour::default()
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
    let ended = run("python", command, LIMIT)?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    let expected = "SignatureDoesNotMatch InvalidClientTokenId InvalidClientTokenId AccessDenied \
                    ValidationError Throttling";
    ensure!(ended.stdout.trim() == expected, "{}", ended.stdout);
    ensure!(sts.calls()[0].tags == [("team".to_owned(), "a & b".to_owned())]);
    Ok(())
}

/// Runs a client that knows nothing of credentials.
fn client(play: &Play, place: &Place, args: &[&str]) -> Result<Finished> {
    let mut command = place.command(AWS.program("python"));
    command
        .args(args)
        .env_clear()
        .env("HOME", play.stage.sandbox().folder("home")?)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_ENDPOINT_URL_STS", play.stage.sts().url());
    run("a client", command, LIMIT)
}

fn aws_cli() -> Result<()> {
    let play = Play::begin()?;
    let aws = AWS.program("aws").display().to_string();
    let identity = [
        &aws,
        "sts",
        "get-caller-identity",
        "--query=Arn",
        "--output=text",
    ];
    for (pod, role) in [(&play.alice, "a-reader"), (&play.bob, "b-writer")] {
        let ended = client(&play, pod.place(), &identity)?;
        ensure!(ended.status.success(), "{}", ended.stderr);
        ensure!(
            ended.stdout.contains(&format!(":assumed-role/{role}/")),
            "{}",
            ended.stdout
        );
    }
    let forbidden = play
        .stage
        .pod(&play.node, ("team-a", "eve"), Some("b-writer"))?;
    eventually(|| refused(forbidden.place(), "", 403, &["permitted"]))?;
    let ended = client(&play, forbidden.place(), &identity)?;
    ensure!(!ended.status.success(), "{}", ended.stdout);
    ensure!(ended.stderr.contains("credentials"), "{}", ended.stderr);
    play.others_are_unaffected()
}

fn boto3() -> Result<()> {
    let play = Play::begin()?;
    let script = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    let ended = client(&play, play.alice.place(), &["-c", script])?;
    ensure!(ended.status.success(), "{}", ended.stderr);
    ensure!(
        ended.stdout.contains(":assumed-role/a-reader/"),
        "{}",
        ended.stdout
    );
    play.others_are_unaffected()
}
