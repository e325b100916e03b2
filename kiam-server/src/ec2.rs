//! Detection of the base ARN of roles from the EC2 metadata service of the machine.

use std::time::Duration;

use aws_config::imds::Client;
use kiam_common::role::{BaseArn, RoleError};
use serde::Deserialize;

/// The path of the ARN of the instance profile.
const INFO: &str = "/latest/meta-data/iam/info";
const TIMEOUT: Duration = Duration::from_secs(2);

/// The error of [`base_arn`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ec2Error {
    /// The endpoint of the metadata service is invalid.
    #[error("invalid endpoint of the metadata service: {0}")]
    Endpoint(String),
    /// The metadata service did not respond, or there is no instance profile.
    #[error(
        "cannot read the instance profile from the metadata service: {0}; use a hop limit of 2 or hostNetwork, or set --role-base-arn"
    )]
    Unreachable(String),
    /// The response is malformed.
    #[error("invalid response of the metadata service for {INFO}: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The ARN of the instance profile is invalid.
    #[error("invalid instance profile {arn:?}: {source}")]
    Profile { arn: String, source: RoleError },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    instance_profile_arn: String,
}

/// Returns the base ARN for the account and partition of the instance profile of the machine. Uses
/// IMDSv2 at `endpoint`, or that of the AWS SDK's environment, or the default address.
///
/// # Errors
/// When the metadata service does not return a valid instance profile.
pub(crate) async fn base_arn(endpoint: Option<&str>) -> Result<BaseArn, Ec2Error> {
    let mut client = Client::builder()
        .max_attempts(3)
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT);
    if let Some(endpoint) = endpoint {
        let invalid = |error| Ec2Error::Endpoint(format!("{error}"));
        client = client.endpoint(endpoint).map_err(invalid)?;
    }
    let answer = client.build().get(INFO).await;
    let text = answer.map_err(|error| Ec2Error::Unreachable(innermost(&error)))?;
    base_of_info(text.as_ref())
}

fn base_of_info(text: &str) -> Result<BaseArn, Ec2Error> {
    let Info {
        instance_profile_arn: arn,
    } = serde_json::from_str(text)?;
    BaseArn::of_instance_profile(&arn).map_err(|source| Ec2Error::Profile { arn, source })
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PROFILE: &str = "arn:aws-us-gov:iam::123456789012:instance-profile/nodes";

    /// A minimal metadata service that requires IMDSv2.
    async fn metadata_service() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let length = stream.read(&mut buffer).await.unwrap_or_default();
                let request = String::from_utf8_lossy(&buffer[..length]).to_lowercase();
                let info =
                    format!("{{\"Code\": \"Success\", \"InstanceProfileArn\": \"{PROFILE}\"}}");
                let (status, body) = if request.starts_with("put /latest/api/token") {
                    ("200 OK", "a-token".to_owned())
                } else if request.contains("x-aws-ec2-metadata-token: a-token") {
                    ("200 OK", info)
                } else {
                    ("401 Unauthorized", String::new())
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\
                     content-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn the_base_arn_has_account_and_partition_of_the_instance_profile() {
        let base = base_arn(Some(&metadata_service().await)).await.unwrap();
        assert_eq!(base.as_str(), "arn:aws-us-gov:iam::123456789012:role/");
        let error = base_arn(Some("http://127.0.0.1:1"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("--role-base-arn"), "{error}");
    }

    #[test]
    fn responses_without_a_valid_instance_profile_are_rejected() {
        for (text, part) in [
            ("<html>", "invalid response"),
            ("{}", "InstanceProfileArn"),
            ("{\"InstanceProfileArn\": \"arn:foo\"}", "arn:foo"),
        ] {
            let error = base_of_info(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
