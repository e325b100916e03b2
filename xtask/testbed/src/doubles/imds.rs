//! The node's own metadata service: what no pod must ever reach.
//!
//! It answers as the real one does and gives the node's role away, so that a way around the agent
//! shows itself in what a pod gets; and it counts what arrives, whoever sent it.

use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};

use super::http::{self as server, Answer, Traffic};
use crate::sandbox::Guest;

/// The node's role.
pub const NODE_ROLE: &str = "the-node-s-own-role";
/// The access key of the node's role.
pub const NODE_ACCESS_KEY: &str = "ASIATHENODESOWNKEY00";

const TOKEN: &str = "bm90IGZvciBwb2Rz";
const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

/// A metadata service that serves until it is dropped.
#[derive(Debug)]
pub struct Imds {
    traffic: Arc<Traffic>,
    _server: Guest,
}

impl Imds {
    /// Serves these sockets.
    ///
    /// # Errors
    /// When they cannot be served.
    pub fn start(listeners: Vec<TcpListener>) -> Result<Self> {
        let traffic = Arc::new(Traffic::default());
        let answer = |request| async move { answer(&request) };
        let server = server::serve("imds", listeners, Arc::clone(&traffic), answer)?;
        Ok(Self {
            traffic,
            _server: server,
        })
    }

    /// Traffic that has arrived.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

fn answer(request: &Request<Bytes>) -> Answer {
    let path = request.uri().path();
    let token = request.headers().get("x-aws-ec2-metadata-token");
    Some(match (request.method(), path) {
        (&Method::PUT, "/latest/api/token") => text(TOKEN.to_owned()),
        (&Method::GET, _) if token.is_some_and(|token| token != TOKEN) => {
            server::status(StatusCode::UNAUTHORIZED)
        }
        (&Method::GET, CREDENTIALS) => text(NODE_ROLE.to_owned()),
        (&Method::GET, path) if path.strip_prefix(CREDENTIALS) == Some(NODE_ROLE) => {
            text(credentials())
        }
        (&Method::GET, "/latest/meta-data/instance-id") => text("i-0123456789abcdef0".into()),
        (&Method::GET, _) => server::status(StatusCode::NOT_FOUND),
        _ => server::status(StatusCode::METHOD_NOT_ALLOWED),
    })
}

fn credentials() -> String {
    let now = Timestamp::now();
    serde_json::json!({
        "Code": "Success",
        "LastUpdated": whole_seconds(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": NODE_ACCESS_KEY,
        "SecretAccessKey": "the-node-s-own-secret",
        "Token": "the-node-s-own-session",
        "Expiration": whole_seconds(now + SignedDuration::from_hours(6)),
    })
    .to_string()
}

fn whole_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn text(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let plain = http::HeaderValue::from_static("text/plain");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn it_serves_the_role_of_the_node_and_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let imds = Imds::start(vec![listener]).unwrap();
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let end = "Host: h\r\nConnection: close\r\n\r\n";
        let get = format!("GET {CREDENTIALS}{NODE_ROLE} HTTP/1.1\r\n{end}");
        assert!(ask(&get).contains(NODE_ACCESS_KEY));
        assert_eq!(imds.traffic().connections(), 1);
        assert_eq!(imds.traffic().bytes(), get.len() as u64);

        let stale = "X-aws-ec2-metadata-token: other\r\n";
        let answer = ask(&format!("GET {CREDENTIALS} HTTP/1.1\r\n{stale}{end}"));
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        let answer = ask(&format!("PUT /latest/api/token HTTP/1.1\r\n{end}"));
        assert!(answer.ends_with(TOKEN), "{answer}");
        assert!(ask(&format!("GET / HTTP/1.1\r\n{end}")).starts_with("HTTP/1.1 404"));
        assert_eq!(imds.traffic().connections(), 4);
    }
}
