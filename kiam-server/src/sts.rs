//! STS through the AWS SDK. The credentials of the server come from the SDK's default provider
//! chain, region and endpoint from its standard environment variables.

use std::error::Error;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::error::{DisplayErrorContext, ProvideErrorMetadata as _, SdkError};
use aws_sdk_sts::operation::assume_role::{AssumeRoleError, AssumeRoleOutput};
use aws_sdk_sts::{Client, types};
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;

use crate::credentials::{IssueError, IssueErrorKind, Issuer};
use crate::identity::Identity;

/// The region if none is configured, as in kiam: that of the global endpoint.
const DEFAULT_REGION: &str = "us-east-1";
/// The name of the session of the server with `--assume-role-arn`.
const SERVER_SESSION: &str = "kiam-server";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings for STS.
#[derive(Debug, Clone, Default)]
pub(crate) struct StsSettings {
    /// The role that the server assumes first.
    pub assume_role: Option<RoleArn>,
    /// The region, which overrides that of the environment.
    pub region: Option<String>,
    /// True if session tags are transitive.
    pub transitive_tags: bool,
}

/// An issuer that calls `sts:AssumeRole`.
#[derive(Debug, Clone)]
pub(crate) struct Sts {
    client: Client,
    transitive_tags: bool,
}

impl Sts {
    /// Reads the environment of the SDK. The credentials of the server are loaded at the first
    /// call.
    pub(crate) async fn from_environment(settings: StsSettings) -> Self {
        let StsSettings {
            assume_role,
            region,
            transitive_tags,
        } = settings;
        let region = RegionProviderChain::first_try(region.map(Region::new))
            .or_default_provider()
            .or_else(DEFAULT_REGION);
        // No retries in the SDK: the caller limits, counts and schedules all calls.
        let mut config = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .region(region)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_timeout(CALL_TIMEOUT)
                    .build(),
            )
            .load()
            .await;
        if let Some(role) = assume_role {
            let provider = AssumeRoleProvider::builder(role.as_str())
                .session_name(SERVER_SESSION)
                .configure(&config)
                .build()
                .await;
            let provider = SharedCredentialsProvider::new(provider);
            config = config.into_builder().credentials_provider(provider).build();
        }
        Self {
            client: Client::new(&config),
            transitive_tags,
        }
    }
}

#[async_trait]
impl Issuer for Sts {
    async fn issue(&self, identity: &Identity) -> Result<SessionCredentials, IssueError> {
        let seconds = i32::try_from(identity.duration.as_secs()).unwrap_or(i32::MAX);
        let tags = identity.tags.iter().map(|tag| {
            let tag = types::Tag::builder().key(tag.key).value(&*tag.value);
            tag.build()
        });
        let tags = tags
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IssueError {
                kind: IssueErrorKind::Rejected,
                message: error.to_string(),
            })?;
        let transitive = identity.tags.iter().map(|tag| tag.key.to_owned());
        let transitive = self.transitive_tags.then(|| transitive.collect());
        let answer = self
            .client
            .assume_role()
            .role_arn(identity.role.as_str())
            .role_session_name(&identity.session_name)
            .set_external_id(identity.external_id.as_deref().map(str::to_owned))
            .duration_seconds(seconds)
            .set_tags((!tags.is_empty()).then_some(tags))
            .set_transitive_tag_keys(transitive)
            .set_source_identity(identity.source_identity.clone())
            .send()
            .await;
        match answer {
            Ok(answer) => credentials(answer),
            Err(error) => {
                let IssueError { kind, message } = failure(&error);
                let message = redacted(message, identity.external_id.as_deref());
                Err(IssueError { kind, message })
            }
        }
    }
}

fn credentials(answer: AssumeRoleOutput) -> Result<SessionCredentials, IssueError> {
    let fault = |message: &str| IssueError {
        kind: IssueErrorKind::Fault,
        message: message.to_owned(),
    };
    let credentials = answer
        .credentials
        .ok_or_else(|| fault("STS returned no credentials"))?;
    let expiration = SystemTime::try_from(credentials.expiration)
        .map_err(|_outside| fault("STS returned an invalid expiration"))?;
    Ok(SessionCredentials {
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.into(),
        session_token: credentials.session_token.into(),
        expiration,
        issued: SystemTime::now(),
    })
}

fn failure(error: &SdkError<AssumeRoleError>) -> IssueError {
    let (kind, message) = match error {
        SdkError::ServiceError(answer) => {
            let code = answer.err().code().unwrap_or("unknown error");
            let text = answer.err().message().unwrap_or("no message");
            let kind = kind_of(code, answer.raw().status().as_u16());
            (kind, format!("{code}: {text}"))
        }
        SdkError::TimeoutError(_) => {
            let limit = CALL_TIMEOUT.as_secs();
            (
                IssueErrorKind::Network,
                format!("STS did not respond within {limit} s"),
            )
        }
        SdkError::ResponseError(_) => (
            IssueErrorKind::Fault,
            format!("cannot read the response of STS: {}", innermost(error)),
        ),
        other if is_about_own_credentials(other) => (
            IssueErrorKind::ServerCredentials,
            format!("the server has no AWS credentials: {}", innermost(other)),
        ),
        other => (
            IssueErrorKind::Network,
            format!("cannot reach STS: {}", innermost(other)),
        ),
    };
    tracing::debug!(error = %DisplayErrorContext(error), "AssumeRole failed");
    IssueError {
        kind,
        message: message.replace(['\n', '\r', '\t'], " "),
    }
}

/// Redacts the external ID: STS quotes invalid parameters in its messages.
fn redacted(message: String, external_id: Option<&str>) -> String {
    match external_id.filter(|id| !id.is_empty()) {
        Some(id) => message.replace(id, "[redacted]"),
        None => message,
    }
}

/// Returns the kind of an error code (STS API reference, `AssumeRole` and "Common Errors").
fn kind_of(code: &str, status: u16) -> IssueErrorKind {
    match code {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => IssueErrorKind::Throttled,
        "AccessDenied" | "AccessDeniedException" => IssueErrorKind::AccessDenied,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => IssueErrorKind::ServerCredentials,
        _ if status == 429 => IssueErrorKind::Throttled,
        _ if (400..500).contains(&status) => IssueErrorKind::Rejected,
        _ => IssueErrorKind::Fault,
    }
}

fn is_about_own_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<CredentialsError>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn innermost(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_ids_are_redacted() {
        let quoted = "ValidationError: Value 'a secret' at 'externalId'".to_owned();
        let message = redacted(quoted.clone(), Some("a secret"));
        assert_eq!(
            message,
            "ValidationError: Value '[redacted]' at 'externalId'"
        );
        assert_eq!(redacted(quoted.clone(), Some("")), quoted);
        assert_eq!(redacted(quoted.clone(), None), quoted);
    }

    #[test]
    fn error_codes_have_the_right_kind() {
        for (code, status, kind) in [
            ("Throttling", 400, IssueErrorKind::Throttled),
            ("AccessDenied", 403, IssueErrorKind::AccessDenied),
            ("ExpiredToken", 403, IssueErrorKind::ServerCredentials),
            ("ValidationError", 400, IssueErrorKind::Rejected),
            ("RegionDisabledException", 403, IssueErrorKind::Rejected),
            ("InternalFailure", 500, IssueErrorKind::Fault),
            ("ServiceUnavailable", 503, IssueErrorKind::Fault),
        ] {
            assert_eq!(kind_of(code, status), kind, "{code}");
        }
    }
}
