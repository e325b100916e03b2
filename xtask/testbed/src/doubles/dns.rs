//! A cluster's DNS, as far as agents need it: the addresses behind names.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::sandbox::Guest;

/// See RFC 1035, 4.1.1.
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TTL_SECONDS: u32 = 5;

/// Reply to all queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// These addresses, for any name.
    Addresses(Vec<Ipv4Addr>),
    /// The addresses of these names, which have no trailing dot; NXDOMAIN for others.
    Names(BTreeMap<String, Vec<Ipv4Addr>>),
    /// SERVFAIL.
    Failure,
    /// No answer.
    Nothing,
}

/// A DNS server that serves until it is dropped.
#[derive(Debug)]
pub struct Dns {
    reply: Arc<Mutex<Reply>>,
    _server: Guest,
}

impl Dns {
    /// Serves a socket.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn start(socket: UdpSocket, reply: Reply) -> Result<Self> {
        socket
            .set_nonblocking(true)
            .context("cannot use a socket")?;
        let reply = Arc::new(Mutex::new(reply));
        let answering = Arc::clone(&reply);
        let server = Guest::outside("dns", move || async move {
            let Ok(socket) = tokio::net::UdpSocket::from_std(socket) else {
                return;
            };
            let mut query = [0; 512];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut query).await else {
                    // An error of an earlier answer, to a client that has gone.
                    continue;
                };
                let reply = lock(&answering).clone();
                if let Some(answer) = answer(&query[..length], &reply) {
                    // A client that has gone needs no answer.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        })?;
        Ok(Self {
            reply,
            _server: server,
        })
    }

    /// Makes it say something else from now on.
    pub fn reply_with(&self, reply: Reply) {
        *lock(&self.reply) = reply;
    }
}

fn lock(reply: &Mutex<Reply>) -> std::sync::MutexGuard<'_, Reply> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a query of one question; none to anything else.
fn answer(query: &[u8], reply: &Reply) -> Option<Vec<u8>> {
    let question = query.get(HEADER..)?;
    let (name, end) = name(question)?;
    let question = question.get(..end + 5)?;
    let (addresses, code) = match reply {
        Reply::Addresses(addresses) => (addresses.as_slice(), 0),
        Reply::Names(names) => match names.get(&name) {
            Some(addresses) => (addresses.as_slice(), 0),
            None => (&[][..], 3),
        },
        Reply::Failure => (&[][..], 2),
        Reply::Nothing => return None,
    };
    let kind = u16::from_be_bytes([question[end + 1], question[end + 2]]);
    let addresses = if kind == TYPE_A { addresses } else { &[] };

    let mut answer = query.get(..2)?.to_vec();
    // A response, with recursion as asked for and available.
    answer.extend([0x81, 0x80 | code]);
    let counts = [1, u16::try_from(addresses.len()).ok()?, 0, 0];
    answer.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    answer.extend(question);
    for address in addresses {
        // The name is that at the question's place.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1]);
        answer.extend(TTL_SECONDS.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The name that a question begins with, in small letters, and the place of its last byte.
fn name(question: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut end = 0;
    while let Some(&length @ 1..) = question.get(end) {
        let label = question.get(end + 1..)?.get(..usize::from(length))?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        end += usize::from(length) + 1;
    }
    Some((labels.join("."), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_addresses_and_none_of_another_kind() {
        let query = |kind: u8| {
            let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            query.extend(b"\x04kiam\x03svc\0");
            query.extend([0, kind, 0, 1]);
            query
        };
        let reply = Reply::Addresses(vec![Ipv4Addr::new(10, 0, 0, 2)]);
        let found = answer(&query(1), &reply).unwrap();
        assert_eq!(found[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(found.ends_with(&[0, 4, 10, 0, 0, 2]));
        assert_eq!(answer(&query(28), &reply).unwrap()[6..8], [0, 0]);
        assert_eq!(answer(&query(1), &Reply::Failure).unwrap()[3], 0x82);
        assert_eq!(answer(&query(1), &Reply::Nothing), None);
        assert_eq!(answer(b"short", &reply), None);

        let names = |name: &str| {
            let addresses = vec![Ipv4Addr::new(10, 0, 0, 3)];
            Reply::Names(BTreeMap::from([(name.to_owned(), addresses)]))
        };
        let found = answer(&query(1), &names("kiam.svc")).unwrap();
        assert_eq!(found[2..8], [0x81, 0x80, 0, 1, 0, 1]);
        assert!(found.ends_with(&[10, 0, 0, 3]));
        let unknown = answer(&query(1), &names("kiam")).unwrap();
        assert_eq!(unknown[2..8], [0x81, 0x83, 0, 1, 0, 0]);
    }
}
