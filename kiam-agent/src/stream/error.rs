//! Errors of the stream, with messages for operators and labels for metrics.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kiam_common::duration;
use kiam_common::tls::{ConnectError, explain};
use tonic::{Code, Status};

/// Reason why a stream did not begin, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StreamError {
    /// The name of the server cannot be resolved.
    #[error(
        "cannot resolve the server {server}: {problem}; check --server-address and the cluster's DNS"
    )]
    Resolve {
        /// `--server-address`.
        server: String,
        /// Error of the resolver.
        problem: String,
    },
    /// The token cannot be read.
    #[error("cannot read the token in {}: {source}; check --token-file", path.display())]
    Token {
        /// `--token-file`.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The token is invalid.
    #[error("the token in {} is empty or invalid; check --token-file", path.display())]
    NoToken {
        /// `--token-file`.
        path: PathBuf,
    },
    /// The server cannot be reached, or one side rejects the other's certificate.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server rejected the agent's certificate: in TLS 1.3 the first call shows it.
    #[error("cannot connect to the server at {address}: {reason}")]
    Tls {
        /// Address of the server.
        address: SocketAddr,
        /// Explanation of the error.
        reason: String,
    },
    /// The server did not answer.
    #[error("the server at {address} did not {what} within {}", duration::format(*limit))]
    Silent {
        /// Address of the server.
        address: SocketAddr,
        /// The missing action.
        what: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// The server answered with an error, or the connection broke.
    #[error("the server at {address} {}: {message}", meaning(*code))]
    Status {
        /// Address of the server.
        address: SocketAddr,
        /// gRPC status code.
        code: Code,
        /// Message of the server, or the cause of the broken connection.
        message: String,
    },
    /// The server closed the stream regularly, as it does with old streams.
    #[error("the server at {address} closed the stream")]
    Ended {
        /// Address of the server.
        address: SocketAddr,
    },
}

impl StreamError {
    pub(super) fn status(address: SocketAddr, status: &Status) -> Self {
        // tonic's own messages say little; the innermost error is that of the socket.
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

    /// Returns the value of the label `reason`.
    pub(crate) const fn reason(&self) -> &'static str {
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

    /// Returns whether to try other servers first. A stream that was closed for age is not a
    /// failure.
    pub(super) const fn is_failure(&self) -> bool {
        !matches!(self, Self::Ended { .. })
    }
}

const fn meaning(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "cannot authenticate this node (check --token-file)",
        Code::PermissionDenied => {
            "refuses this node (check --node-name, and that the token is from this node)"
        }
        Code::InvalidArgument => "rejects the name of this node (check --node-name)",
        Code::ResourceExhausted => "refuses another stream, or sent a message that is too large",
        Code::Unavailable => "is unavailable",
        Code::Unimplemented => {
            "does not support this agent; check that it is a kiam-server of a compatible version"
        }
        _ => "broke the stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_explains_the_fault() {
        let address = SocketAddr::from(([10, 0, 0, 1], 9610));
        let of = |status: &Status| {
            let error = StreamError::status(address, status);
            (error.reason(), error.to_string())
        };
        let (reason, text) = of(&Status::unauthenticated("the token has expired"));
        assert_eq!(reason, "unauthenticated");
        assert!(
            text.contains("10.0.0.1:9610 cannot authenticate this node (check --token-file): the token has expired"),
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
