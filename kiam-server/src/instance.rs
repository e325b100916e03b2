//! What the machine's own metadata service says of the account: the base ARN of its roles.

use std::time::Duration;

use aws_config::imds::Client;
use kiam_common::role::{BaseArn, RoleError};
use serde::Deserialize;

/// Where the instance profile is named.
const INFO: &str = "/latest/meta-data/iam/info";
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why the base ARN was not detected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The address of the metadata service is none.
    #[error("the metadata service's address cannot be used: {0}")]
    Endpoint(String),
    /// There is no answer.
    #[error(
        "the metadata service of this machine names no instance profile ({0}); from a pod that needs IMDSv2 with a hop limit of 2, or hostNetwork; or give --role-base-arn"
    )]
    Unreachable(String),
    /// The answer makes no sense.
    #[error("the metadata service's {INFO} cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The instance profile is none.
    #[error("the instance profile {arn:?} cannot be used: {source}")]
    Profile {
        /// As the metadata service names it.
        arn: String,
        /// Why.
        source: RoleError,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    instance_profile_arn: String,
}

/// The base ARN of the account and partition of the machine's instance profile, by IMDSv2.
///
/// # Errors
/// When the metadata service does not tell. It is asked at `endpoint`, else where the AWS SDK's
/// environment says, else at its usual address.
pub async fn base_arn(endpoint: Option<&str>) -> Result<BaseArn, InstanceError> {
    let mut client = Client::builder()
        .max_attempts(3)
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT);
    if let Some(endpoint) = endpoint {
        let invalid = |error| InstanceError::Endpoint(format!("{error}"));
        client = client.endpoint(endpoint).map_err(invalid)?;
    }
    let answer = client.build().get(INFO).await;
    let text = answer.map_err(|error| InstanceError::Unreachable(innermost(&error)))?;
    of_info(text.as_ref())
}

fn of_info(text: &str) -> Result<BaseArn, InstanceError> {
    let Info {
        instance_profile_arn: arn,
    } = serde_json::from_str(text)?;
    BaseArn::of_instance_profile(&arn).map_err(|source| InstanceError::Profile { arn, source })
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

    /// A metadata service that insists on IMDSv2, as far as this needs.
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
    async fn the_base_is_of_the_instance_profile_s_account_and_partition() {
        let base = base_arn(Some(&metadata_service().await)).await.unwrap();
        assert_eq!(base.as_str(), "arn:aws-us-gov:iam::123456789012:role/");
        let error = base_arn(Some("http://127.0.0.1:1"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("--role-base-arn"), "{error}");
    }

    #[test]
    fn an_answer_without_a_profile_says_so() {
        for (text, part) in [
            ("<html>", "cannot be read"),
            ("{}", "InstanceProfileArn"),
            ("{\"InstanceProfileArn\": \"arn:foo\"}", "arn:foo"),
        ] {
            let error = of_info(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
