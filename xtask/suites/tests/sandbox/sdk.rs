//! Unmodified clients: botocore against the STS double, and AWS's SDKs in pods.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::doubles::sts::{Behaviour, Fault, Sts};
use testbed::sandbox::{Finished, Place, run};
use testbed::sdk::Sdk;
use toolchain::AWS;

use crate::play::{Play, eventually, refused};
use crate::{Needs, Test};

pub(crate) const TESTS: &[Test] = &[
    (
        "sdk::botocore_speaks_with_the_sts_double",
        Needs::Sdk,
        botocore,
    ),
    (
        "sdk::every_sdk_in_a_pod_is_the_pod_s_role",
        Needs::Sdk,
        by_default,
    ),
    (
        "sdk::every_sdk_without_imdsv1_is_too",
        Needs::Sdk,
        without_v1,
    ),
    (
        "sdk::every_sdk_is_too_where_imdsv2_is_required",
        Needs::Sdk,
        v2_required,
    ),
    (
        "sdk::every_sdk_is_too_as_in_a_container",
        Needs::Sdk,
        containers,
    ),
    (
        "sdk::every_sdk_says_that_it_has_no_credentials",
        Needs::Sdk,
        forbidden,
    ),
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

/// Whom an SDK says it is in a place, or why it is nobody.
fn who(play: &Play, sdk: Sdk, place: &Place, variables: &[(&str, &str)]) -> Result<Finished> {
    let mut command = sdk.who(|program| place.command(program));
    command
        .env("HOME", play.cluster.sandbox().folder("home")?)
        .env("AWS_ENDPOINT_URL_STS", play.cluster.sts().url())
        .envs(variables.iter().copied());
    run(sdk.name(), command, LIMIT)
}

fn every_sdk_is(play: &Play, variables: &[(&str, &str)]) -> Result<()> {
    for sdk in Sdk::ALL {
        for (pod, role) in [(&play.alice, "a-reader"), (&play.bob, "b-writer")] {
            let ended = who(play, sdk, pod.place(), variables)?;
            let (name, said) = (sdk.name(), ended.stdout.trim());
            ensure!(ended.status.success(), "{name}: {}", ended.stderr);
            let own = format!(":assumed-role/{role}/");
            ensure!(said.contains(&own), "{name} is {said}");
        }
    }
    play.others_are_unaffected()
}

fn by_default() -> Result<()> {
    every_sdk_is(&Play::begin()?, &[])
}

fn without_v1() -> Result<()> {
    let disabled = [("AWS_EC2_METADATA_V1_DISABLED", "true")];
    every_sdk_is(&Play::begin()?, &disabled)
}

fn v2_required() -> Result<()> {
    let play = Play::begin_with(&["--imds-v2=required"])?;
    for sdk in Sdk::ALL {
        let ended = who(&play, sdk, play.alice.place(), &[])?;
        let name = sdk.name();
        ensure!(ended.status.success(), "{name}: {}", ended.stderr);
        ensure!(ended.stdout.contains(":assumed-role/a-reader/"), "{name}");
    }
    // None of them asked without.
    let metrics = play.agent.admin("/metrics")?.body;
    let v1 = "kiam_metadata_imds_v1_requests_total{";
    ensure!(!metrics.contains(v1), "{metrics}");
    Ok(())
}

/// By what containers' SDKs are told, over the address that is redirected for them.
fn containers() -> Result<()> {
    let play = Play::begin_with(&["--container-credentials-address=169.254.170.2"])?;
    let url = "http://169.254.170.2/v1/credentials";
    let told = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    every_sdk_is(&play, &told)
}

fn forbidden() -> Result<()> {
    let play = Play::begin()?;
    let forbidden = play
        .cluster
        .pod(&play.node, ("team-a", "eve"), Some("b-writer"))?;
    eventually(|| refused(forbidden.place(), "", 403, &["permitted"]))?;
    for sdk in Sdk::ALL {
        let begin = tokio::time::Instant::now();
        let ended = who(&play, sdk, forbidden.place(), &[])?;
        let (name, said) = (sdk.name(), ended.stderr.to_lowercase());
        ensure!(!ended.status.success(), "{name}: {}", ended.stdout);
        ensure!(said.contains("credentials"), "{name}: {said}");
        // A refusal for good is not tried again and again.
        let took = begin.elapsed();
        ensure!(
            took < Duration::from_secs(10),
            "{name} took {took:?}: {said}"
        );
    }
    play.others_are_unaffected()
}
