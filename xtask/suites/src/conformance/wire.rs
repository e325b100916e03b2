//! One exchange, as bytes: the unusual requests of the table need a client that corrects nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Limit for a connection, and for each read: longer than the agent lets any request wait.
const LIMIT: Duration = Duration::from_secs(8);
const MAX_REPLY_BYTES: u64 = 1 << 20;

/// Address of the metadata service.
#[derive(Debug)]
pub(super) struct Service(SocketAddr);

/// First reply on a connection.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Service {
    pub(super) fn find(url: &str) -> Result<Self> {
        let place = url.strip_prefix("http://").context("expected http://…")?;
        let place = place.trim_end_matches('/');
        let with_port = if place.contains(':') {
            place.to_owned()
        } else {
            format!("{place}:80")
        };
        let found = with_port.to_socket_addrs();
        let mut found = found.with_context(|| format!("{url} is no address"))?;
        found
            .next()
            .map(Self)
            .with_context(|| format!("{url} has no address"))
    }

    /// Sends, ends the sending side, and reads to the end.
    pub(super) fn ask(&self, request: &[u8]) -> Result<Reply> {
        let mut stream = TcpStream::connect_timeout(&self.0, LIMIT).context("cannot connect")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        // What is refused early may not be taken in whole, and may be reset once it was answered.
        drop(stream.write_all(request));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut bytes = Vec::new();
        let read = stream.take(MAX_REPLY_BYTES).read_to_end(&mut bytes);
        ensure!(!bytes.is_empty(), "closed without an answer ({read:?})");
        Reply::parse(&String::from_utf8_lossy(&bytes))
    }
}

impl Reply {
    fn parse(text: &str) -> Result<Self> {
        let (head, rest) = text
            .split_once("\r\n\r\n")
            .context("an answer without a head")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut reply = Self {
            status: status.context("an answer without a status")?,
            head: head.to_owned(),
            body: String::new(),
        };
        let length = reply.header("content-length");
        let length = length.and_then(|length| length.parse().ok());
        let end = length.unwrap_or(rest.len()).min(rest.len());
        reply.body = rest.get(..end).unwrap_or(rest).to_owned();
        Ok(reply)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}
