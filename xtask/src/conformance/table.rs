//! What is asked, what is right, and where that is known from.

/// One request and what is right.
pub(super) struct Line {
    pub(super) name: &'static str,
    method: &'static str,
    /// `{role}` stands for the role's name.
    path: &'static str,
    /// `{token}` stands for a token; lines end with `\r\n`.
    request_headers: &'static str,
    /// Any of these.
    pub(super) status: &'static [u16],
    /// What the reply's headers begin with.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// What is wrong with the body, for a role's name.
    pub(super) body: fn(&str, &str) -> Option<String>,
    /// Whether closing the connection without a word is right too.
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

const GET: Line = Line {
    name: "",
    method: "GET",
    path: LISTING,
    request_headers: "",
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
            request_headers,
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
            "{method} {path} HTTP/{version}\r\nHost: 169.254.169.254\r\nConnection: close\r\n{headers}\r\n"
        )
        .into_bytes()
    }
}

fn the_role(body: &str, role: &str) -> Option<String> {
    (body != role).then(|| format!("the body is {body:?} and not {role:?}"))
}

fn nothing(body: &str, _role: &str) -> Option<String> {
    (!body.is_empty()).then(|| "there is a body".to_owned())
}

fn a_token(body: &str, _role: &str) -> Option<String> {
    let fits = !body.is_empty() && body.bytes().all(|byte| byte.is_ascii_graphic());
    (!fits).then(|| "the body is no token".to_owned())
}

fn document(body: &str, keys: &[&str]) -> Option<String> {
    let Ok(serde_json::Value::Object(found)) = serde_json::from_str(body) else {
        return Some("the body is no JSON object".to_owned());
    };
    let missing = keys.iter().find(|key| !found.contains_key(**key));
    if let Some(missing) = missing {
        return Some(format!("the document has no {missing}"));
    }
    if found["Code"] != "Success" {
        return Some("Code is not Success".to_owned());
    }
    let time = |key: &str| {
        let text = found.get(key).and_then(serde_json::Value::as_str);
        let text = text.unwrap_or_default();
        let whole = text.len() == "2026-01-01T00:00:00Z".len();
        whole
            .then(|| text.parse::<jiff::Timestamp>().ok())
            .flatten()
    };
    let bad = ["LastUpdated", "Expiration"]
        .into_iter()
        .find(|key| keys.contains(key) && time(key).is_none());
    bad.map(|key| format!("{key} is no time in whole seconds of UTC"))
}

fn credentials(body: &str, _role: &str) -> Option<String> {
    let keys = [
        "Code",
        "LastUpdated",
        "Type",
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
    ];
    document(body, &keys)
}

fn extended(body: &str, _role: &str) -> Option<String> {
    let keys = [
        "Code",
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
        "AccountId",
    ];
    document(body, &keys)
}

fn info(body: &str, _role: &str) -> Option<String> {
    document(body, &["Code", "LastUpdated", "InstanceProfileArn"])
}

pub(super) const LINES: &[Line] = &[
    Line {
        name: "GET the role's name",
        headers: &[("content-type", "text/plain"), ("server", "EC2ws")],
        body: the_role,
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
