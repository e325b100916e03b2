//! Bytes as no client sends them: a pod without a role, whatever it writes on its connection, gets
//! nobody's credentials and keeps nobody from theirs. `cargo xtask fuzz` runs it for longer.

use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::service::*;

/// Seeds of the mutation: requests of every kind that the service knows.
const CORPUS: &[&str] = &[
    "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
    "GET /latest/meta-data/iam/security-credentials/reader HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "GET /latest/meta-data/iam/security-credentials-extended/reader HTTP/1.0\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: 0\r\n\r\n",
    "GET /latest/meta-data/iam/info HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: 00\r\n\r\n",
    "POST /latest/meta-data/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "GET /v1/credentials HTTP/1.1\r\nHost: 169.254.170.2\r\nAuthorization: x\r\n\r\n",
    "HEAD /latest/%6deta-data/../meta-data/iam/security-credentials HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
];
/// Inserted fragments.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\0",
    " ",
    "%",
    "%2e",
    "%2f",
    "%00",
    "/",
    "//",
    "/../",
    "?",
    "#",
    ":",
    "\t",
    "\u{ff}",
    "HTTP/2.0",
    "Content-Length: 5\r\n",
    "Content-Length: -1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X-Forwarded-For: 127.0.0.2\r\n",
    "Host: 127.0.0.2\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: h2c\r\n",
];

/// One change of a request.
#[derive(Debug, Clone)]
enum Change {
    Put(prop::sample::Index, &'static str),
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), prop::sample::select(PIECES)).prop_map(|(at, piece)| Change::Put(at, piece)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), 1..40_usize).prop_map(|(at, length)| Change::Cut(at, length)),
        (at(), 1..2000_usize).prop_map(|(at, times)| Change::Repeat(at, times)),
    ]
}

fn changed(request: &str, changes: Vec<Change>) -> Vec<u8> {
    let mut bytes = request.as_bytes().to_vec();
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        match change {
            Change::Put(at, piece) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, piece.bytes());
            }
            Change::Set(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Change::Cut(at, length) => {
                let at = at.index(bytes.len());
                bytes.drain(at..bytes.len().min(at + length));
            }
            Change::Repeat(at, times) => {
                let at = at.index(bytes.len());
                let byte = bytes[at];
                bytes.splice(at..at, std::iter::repeat_n(byte, times));
            }
        }
    }
    bytes
}

#[test]
fn no_bytes_get_credentials_of_others_or_stop_the_service() {
    let runtime = Runtime::new().unwrap();
    let service = runtime.block_on(informed());
    let listing = format!("{LISTING}reader");
    let strategy = (
        prop::sample::select(CORPUS),
        prop::collection::vec(change(), 0..8),
    );
    let mut runner = proptest::test_runner::TestRunner::default();
    let outcome = runner.run(&strategy, |(request, changes)| {
        let bytes = changed(request, changes);
        let (received, own) = runtime.block_on(async {
            let received = service.bytes(pods::NO_ROLE, &bytes).await;
            (received, service.get(pods::GRANTED, &listing).await)
        });
        prop_assert!(
            !received.contains("hunter") && !received.contains("ASIA"),
            "{received}"
        );
        prop_assert!(
            received.is_empty() || received.starts_with("HTTP/1."),
            "{received}"
        );
        prop_assert_eq!(own.status, 200);
        Ok(())
    });
    outcome.unwrap();
    assert!(!service.running.is_finished());
}
