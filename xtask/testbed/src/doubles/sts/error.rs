//! STS's errors: codes, texts and statuses as the service answers them.

use http::StatusCode;
use jiff::Timestamp;

use crate::doubles::sigv4::Malformed;

/// An error as STS answers it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StsError {
    #[error("Request is missing Authentication Token")]
    MissingAuthenticationToken,
    #[error(
        "Authorization header requires 'Credential', 'Signature', 'SignedHeaders' and 'X-Amz-Date'."
    )]
    IncompleteSignature,
    #[error("The security token included in the request is invalid.")]
    InvalidClientTokenId,
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
    )]
    SignatureDoesNotMatch,
    #[error("Signature expired or not yet current: {}", .0.strftime("%Y%m%dT%H%M%SZ"))]
    SignatureExpired(Timestamp),
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    #[error("User: {caller} is not authorized to perform: sts:AssumeRole on resource: {role}")]
    AssumeRoleDenied { caller: String, role: String },
    #[error("Could not find operation {action} for version {version}")]
    InvalidAction { action: String, version: String },
    #[error("{0}")]
    Validation(String),
    #[error("Rate exceeded")]
    Throttling,
    #[error("The request processing has failed because of an unknown error, exception or failure.")]
    InternalFailure,
    #[error("Service is unable to handle request.")]
    ServiceUnavailable,
}

impl StsError {
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::MissingAuthenticationToken => "MissingAuthenticationToken",
            Self::IncompleteSignature => "IncompleteSignature",
            Self::InvalidClientTokenId => "InvalidClientTokenId",
            Self::SignatureDoesNotMatch | Self::SignatureExpired(_) => "SignatureDoesNotMatch",
            Self::ExpiredToken => "ExpiredToken",
            Self::AssumeRoleDenied { .. } => "AccessDenied",
            Self::InvalidAction { .. } => "InvalidAction",
            Self::Validation(_) => "ValidationError",
            Self::Throttling => "Throttling",
            Self::InternalFailure => "InternalFailure",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::MissingAuthenticationToken
            | Self::InvalidClientTokenId
            | Self::SignatureDoesNotMatch
            | Self::SignatureExpired(_)
            | Self::ExpiredToken
            | Self::AssumeRoleDenied { .. } => StatusCode::FORBIDDEN,
            Self::IncompleteSignature
            | Self::InvalidAction { .. }
            | Self::Validation(_)
            | Self::Throttling => StatusCode::BAD_REQUEST,
            Self::InternalFailure => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The party at fault, for the `Type` of the answer.
    pub(super) const fn side(&self) -> &'static str {
        match self {
            Self::InternalFailure | Self::ServiceUnavailable => "Receiver",
            _ => "Sender",
        }
    }
}

impl From<Malformed> for StsError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Missing => Self::MissingAuthenticationToken,
            Malformed::Incomplete => Self::IncompleteSignature,
        }
    }
}
