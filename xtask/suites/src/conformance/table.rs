//! Requests, expected replies, and the source of each expectation.

use super::body::{a_token, credentials, extended, info, nothing, the_role};

/// One request and the expected reply.
pub(super) struct Line {
    pub(super) name: &'static str,
    method: &'static str,
    /// `{role}` stands for the role's name.
    path: &'static str,
    /// `Connection` header of the request.
    connection: &'static str,
    /// `{token}` stands for a token; lines end with `\r\n`.
    request_headers: &'static str,
    request_body: &'static str,
    /// Any of these.
    pub(super) status: &'static [u16],
    /// Prefixes of the reply's headers.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// Check of the body, for a role's name.
    pub(super) body: fn(&str, &str) -> Option<String>,
    /// True if the service may also close the connection without a reply.
    pub(super) may_close: bool,
    pub(super) source: &'static str,
}

const AWS: &str = "AWS's documentation of the metadata service (EC2 user guide, IMDS)";
const SDKS: &str = "what AWS's SDKs ask and understand";
const HTTP: &str = "RFC 9110, RFC 9112";

const LISTING: &str = "/latest/meta-data/iam/security-credentials/";
const TOKEN_PATH: &str = "/latest/api/token";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
const WITH_TOKEN: &str = "X-aws-ec2-metadata-token: {token}\r\n";
const PLAIN: &[(&str, &str)] = &[("content-type", "text/plain")];
/// Every answer closes its connection, regardless of the request.
const CLOSED: &[(&str, &str)] = &[("connection", "close")];

const GET: Line = Line {
    name: "",
    method: "GET",
    path: LISTING,
    connection: "close",
    request_headers: "",
    request_body: "",
    status: &[200],
    headers: &[],
    body: |_, _| None,
    may_close: false,
    source: AWS,
};

/// The request for the role's name.
pub(super) fn listing() -> Vec<u8> {
    GET.bytes("", "")
}

/// The request for a token.
pub(super) fn token() -> Vec<u8> {
    let line = Line {
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: TTL,
        ..GET
    };
    line.bytes("", "")
}

impl Line {
    pub(super) fn bytes(&self, role: &str, token: &str) -> Vec<u8> {
        let Self {
            method,
            path,
            connection,
            request_headers,
            request_body,
            ..
        } = self;
        let path = path.replace("{role}", role);
        let headers = request_headers.replace("{token}", token);
        let version = if headers.contains("HTTP/1.0") {
            "1.0"
        } else {
            "1.1"
        };
        let headers = headers.replace("HTTP/1.0\r\n", "");
        format!(
            "{method} {path} HTTP/{version}\r\nHost: 169.254.169.254\r\nConnection: {connection}\r\n{headers}\r\n{request_body}"
        )
        .into_bytes()
    }
}

pub(super) const LINES: &[Line] = &[
    Line {
        name: "GET the role's name",
        headers: &[
            ("content-type", "text/plain"),
            ("server", "EC2ws"),
            ("accept-ranges", "none"),
        ],
        body: the_role,
        ..GET
    },
    Line {
        name: "GET the role's name, the connection to be kept",
        connection: "keep-alive",
        headers: CLOSED,
        body: the_role,
        ..GET
    },
    Line {
        name: "GET what there is not, the connection to be kept",
        path: "/latest/meta-data/no-such-thing",
        connection: "keep-alive",
        status: &[404],
        headers: CLOSED,
        ..GET
    },
    Line {
        name: "PUT for a token, the connection to be kept",
        method: "PUT",
        path: TOKEN_PATH,
        connection: "keep-alive",
        request_headers: TTL,
        headers: CLOSED,
        body: a_token,
        ..GET
    },
    Line {
        name: "PUT for a token with a body in chunks",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nTransfer-Encoding: chunked\r\n",
        request_body: "5\r\nhello\r\n0\r\n\r\n",
        status: &[200, 400, 411],
        source: HTTP,
        ..GET
    },
    Line {
        name: "GET the role's name, no slash at the end",
        path: "/latest/meta-data/iam/security-credentials",
        body: the_role,
        source: SDKS,
        ..GET
    },
    Line {
        name: "GET the role's name by a dated version",
        path: "/2021-03-23/meta-data/iam/security-credentials/",
        body: the_role,
        ..GET
    },
    Line {
        name: "GET the role's name by version 1.0",
        path: "/1.0/meta-data/iam/security-credentials/",
        body: the_role,
        ..GET
    },
    Line {
        name: "GET the role's name, slashes doubled",
        path: "//latest//meta-data/iam/security-credentials/",
        body: the_role,
        source: SDKS,
        ..GET
    },
    Line {
        name: "GET the role's name, percent-encoded",
        path: "/latest/meta%2Ddata/iam/security%2dcredentials/",
        body: the_role,
        source: HTTP,
        ..GET
    },
    Line {
        name: "GET the role's name with a query",
        path: "/latest/meta-data/iam/security-credentials/?x=y",
        body: the_role,
        source: HTTP,
        ..GET
    },
    Line {
        name: "GET the role's name by HTTP/1.0",
        request_headers: "HTTP/1.0\r\n",
        body: the_role,
        source: HTTP,
        ..GET
    },
    Line {
        name: "HEAD of the role's name",
        method: "HEAD",
        body: nothing,
        source: HTTP,
        ..GET
    },
    Line {
        name: "GET credentials",
        path: "/latest/meta-data/iam/security-credentials/{role}",
        headers: PLAIN,
        body: credentials,
        ..GET
    },
    Line {
        name: "GET credentials, a slash at the end",
        path: "/latest/meta-data/iam/security-credentials/{role}/",
        body: credentials,
        source: SDKS,
        ..GET
    },
    Line {
        name: "GET credentials of another role",
        path: "/latest/meta-data/iam/security-credentials/{role}-not",
        status: &[403, 404],
        source: AWS,
        ..GET
    },
    Line {
        name: "GET extended credentials",
        path: "/latest/meta-data/iam/security-credentials-extended/{role}",
        body: extended,
        source: SDKS,
        ..GET
    },
    Line {
        name: "GET iam/info",
        path: "/latest/meta-data/iam/info",
        body: info,
        ..GET
    },
    Line {
        name: "POST to credentials",
        method: "POST",
        request_headers: "Content-Length: 0\r\n",
        status: &[405],
        source: HTTP,
        ..GET
    },
    Line {
        name: "DELETE of credentials",
        method: "DELETE",
        status: &[405],
        source: HTTP,
        ..GET
    },
    Line {
        name: "PUT for a token",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: TTL,
        headers: &[
            ("content-type", "text/plain"),
            ("x-aws-ec2-metadata-token-ttl-seconds", "21600"),
        ],
        body: a_token,
        ..GET
    },
    Line {
        name: "PUT for a token of one second",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: "X-aws-ec2-metadata-token-ttl-seconds: 1\r\n",
        headers: &[("x-aws-ec2-metadata-token-ttl-seconds", "1")],
        body: a_token,
        ..GET
    },
    Line {
        name: "PUT for a token without its life",
        method: "PUT",
        path: TOKEN_PATH,
        status: &[400],
        ..GET
    },
    Line {
        name: "PUT for a token of no life",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n",
        status: &[400],
        ..GET
    },
    Line {
        name: "PUT for a token of more than six hours",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: "X-aws-ec2-metadata-token-ttl-seconds: 21601\r\n",
        status: &[400],
        ..GET
    },
    Line {
        name: "PUT for a token, forwarded",
        method: "PUT",
        path: TOKEN_PATH,
        request_headers: "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 10.0.0.1\r\n",
        status: &[403],
        ..GET
    },
    Line {
        name: "PUT for a token by a dated version",
        method: "PUT",
        path: "/2021-03-23/api/token",
        request_headers: TTL,
        status: &[403],
        ..GET
    },
    Line {
        name: "GET of the token's path",
        path: TOKEN_PATH,
        status: &[405],
        source: SDKS,
        ..GET
    },
    Line {
        name: "GET the role's name with the token",
        request_headers: WITH_TOKEN,
        headers: &[("x-aws-ec2-metadata-token-ttl-seconds", "2")],
        body: the_role,
        ..GET
    },
    Line {
        name: "GET credentials with the token",
        path: "/latest/meta-data/iam/security-credentials/{role}",
        request_headers: WITH_TOKEN,
        body: credentials,
        ..GET
    },
    Line {
        name: "GET the role's name with a forged token",
        request_headers: "X-aws-ec2-metadata-token: AQAAAforged==\r\n",
        status: &[401],
        ..GET
    },
    Line {
        name: "GET the role's name with an empty token",
        request_headers: "X-aws-ec2-metadata-token: \r\n",
        status: &[401],
        ..GET
    },
    Line {
        name: "GET what there is not",
        path: "/latest/meta-data/no-such-thing",
        status: &[404],
        ..GET
    },
    Line {
        name: "GET without a version",
        path: "/meta-data/iam/security-credentials/",
        status: &[404],
        ..GET
    },
    Line {
        name: "GET out of the folder and back",
        path: "/latest/meta-data/iam/../iam/security-credentials/",
        status: &[200, 400, 404],
        source: HTTP,
        ..GET
    },
    Line {
        name: "a header of 64 KiB",
        request_headers: LONG_HEADER,
        status: &[400, 413, 431],
        may_close: true,
        source: HTTP,
        ..GET
    },
    Line {
        name: "a control character in the path",
        path: "/latest/meta-data/iam/security-credentials/%00",
        status: &[400, 404],
        source: HTTP,
        ..GET
    },
    Line {
        name: "two lengths that disagree",
        request_headers: "Content-Length: 1\r\nContent-Length: 2\r\n",
        status: &[400],
        may_close: true,
        source: HTTP,
        ..GET
    },
];

/// A header's line.
const LONG_HEADER: &str = {
    static BYTES: [u8; 64 * 1024] = {
        let mut bytes = [b'x'; 64 * 1024];
        bytes[1] = b':';
        bytes[bytes.len() - 2] = b'\r';
        bytes[bytes.len() - 1] = b'\n';
        bytes
    };
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => "",
    }
};
