//! Why there is no stream, in words for the operator and in a label for a metric.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::tls::{ConnectError, explain};
use tonic::{Code, Status};

/// Why a stream did not begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The server's name leads to no address.
    #[error(
        "cannot find the address of the server {server}: {problem}; check --server-address and the cluster's DNS"
    )]
    Resolve {
        /// `--server-address`.
        server: String,
        /// What the resolver said.
        problem: String,
    },
    /// The token cannot be read.
    #[error("cannot read the token in {}: {source}; check --token-file", path.display())]
    Token {
        /// `--token-file`.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The token cannot be sent.
    #[error("the token in {} is empty or no token; check --token-file", path.display())]
    NoToken {
        /// `--token-file`.
        path: PathBuf,
    },
    /// The server cannot be reached, or one side refuses the other's certificate.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server refused this side's certificate: with TLS 1.3 that shows in the first call.
    #[error("cannot talk to the server at {address}: {reason}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What it means.
        reason: String,
    },
    /// The server did not answer.
    #[error("the server at {address} has not {what} within {}", duration::format(*limit))]
    Silent {
        /// Where.
        address: SocketAddr,
        /// What it has not done.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The server answered with an error, or the connection broke.
    #[error("the server at {address} {}: {message}", meaning(*code))]
    Status {
        /// Where.
        address: SocketAddr,
        /// gRPC's code.
        code: Code,
        /// The server's words, or what broke.
        message: String,
    },
    /// The server ended the stream in order, as it does when the stream is old.
    #[error("the server at {address} ended the stream")]
    Ended {
        /// Where.
        address: SocketAddr,
    },
}

impl StreamError {
    pub(super) fn status(address: SocketAddr, status: &Status) -> Self {
        // tonic's own errors say little; the innermost says what the socket did.
        let mut message = status.message().to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            message = error.to_string();
            source = error.source();
        }
        if let Some(reason) = explain(status) {
            return Self::Tls { address, reason };
        }
        Self::Status {
            address,
            code: status.code(),
            message,
        }
    }

    /// Its kind, for a metric's label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::Token { .. } | Self::NoToken { .. } => "token",
            Self::Connect(_) => "connect",
            Self::Tls { .. } => "tls",
            Self::Silent { .. } => "silent",
            Self::Ended { .. } => "ended",
            Self::Status { code, .. } => match code {
                Code::Unauthenticated => "unauthenticated",
                Code::PermissionDenied => "permission_denied",
                Code::InvalidArgument => "invalid_argument",
                Code::ResourceExhausted => "resource_exhausted",
                Code::Unavailable => "unavailable",
                Code::Unimplemented => "unimplemented",
                _ => "broken",
            },
        }
    }

    /// Whether the server at the address is not to be tried next: not when it only ended a
    /// stream for age.
    pub(super) const fn is_failure(&self) -> bool {
        !matches!(self, Self::Ended { .. })
    }
}

const fn meaning(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "cannot tell which node this is (check --token-file)",
        Code::PermissionDenied => "refuses this node (check --node-name, and whose token it is)",
        Code::InvalidArgument => "does not accept this node's name (check --node-name)",
        Code::ResourceExhausted => "refuses more, or this agent takes no message so large",
        Code::Unavailable => "is not available",
        Code::Unimplemented => "is no kiam-server that knows this agent",
        _ => "broke the stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_at_fault() {
        let address = SocketAddr::from(([10, 0, 0, 1], 9610));
        let of = |status: &Status| {
            let error = StreamError::status(address, status);
            (error.reason(), error.to_string())
        };
        let (reason, text) = of(&Status::unauthenticated("the token has expired"));
        assert_eq!(reason, "unauthenticated");
        assert!(
            text.contains("10.0.0.1:9610 cannot tell which node this is (check --token-file): the token has expired"),
            "{text}"
        );
        let broken = io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer");
        let (reason, text) = of(&Status::from_error(Box::new(broken)));
        assert_eq!(reason, "broken");
        assert!(
            text.ends_with("broke the stream: connection reset by peer"),
            "{text}"
        );
        let tls = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        let typed = io::Error::new(io::ErrorKind::InvalidData, tls.clone());
        let (reason, text) = of(&Status::from_error(Box::new(typed)));
        assert_eq!(reason, "tls");
        assert!(text.contains("the certificate in --cert"), "{text}");
        let tls = io::Error::new(io::ErrorKind::InvalidData, tls.to_string());
        let (reason, same) = of(&Status::from_error(Box::new(tls)));
        assert_eq!((reason, same), ("tls", text));
    }
}
