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

/// Behavior of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// These addresses, whatever name is asked for.
    Addresses(Vec<Ipv4Addr>),
    /// The addresses of these names, without a dot at their end, and that there are no others: NXDOMAIN.
    Names(BTreeMap<String, Vec<Ipv4Addr>>),
    /// It answers SERVFAIL.
    Failure,
    /// Nothing.
    Nothing,
}

/// A DNS server that serves until it is dropped.
#[derive(Debug)]
pub struct Dns {
    says: Arc<Mutex<Says>>,
    _server: Guest,
}

impl Dns {
    /// Serves a socket.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn start(socket: UdpSocket, says: Says) -> Result<Self> {
        socket
            .set_nonblocking(true)
            .context("cannot use a socket")?;
        let says = Arc::new(Mutex::new(says));
        let answering = Arc::clone(&says);
        let server = Guest::outside("dns", move || async move {
            let Ok(socket) = tokio::net::UdpSocket::from_std(socket) else {
                return;
            };
            let mut query = [0; 512];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut query).await else {
                    // Of an answer before, to somebody who is gone.
                    continue;
                };
                let says = lock(&answering).clone();
                if let Some(answer) = answer(&query[..length], &says) {
                    // Who is gone asks no more.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        })?;
        Ok(Self {
            says,
            _server: server,
        })
    }

    /// Makes it say something else from now on.
    pub fn say(&self, says: Says) {
        *lock(&self.says) = says;
    }
}

fn lock(says: &Mutex<Says>) -> std::sync::MutexGuard<'_, Says> {
    says.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a query of one question; none to anything else.
fn answer(query: &[u8], says: &Says) -> Option<Vec<u8>> {
    let question = query.get(HEADER..)?;
    let (name, end) = name(question)?;
    let question = question.get(..end + 5)?;
    let (addresses, code) = match says {
        Says::Addresses(addresses) => (addresses.as_slice(), 0),
        Says::Names(names) => match names.get(&name) {
            Some(addresses) => (addresses.as_slice(), 0),
            None => (&[][..], 3),
        },
        Says::Failure => (&[][..], 2),
        Says::Nothing => return None,
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
        let says = Says::Addresses(vec![Ipv4Addr::new(10, 0, 0, 2)]);
        let found = answer(&query(1), &says).unwrap();
        assert_eq!(found[..8], [7, 9, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(found.ends_with(&[0, 4, 10, 0, 0, 2]));
        assert_eq!(answer(&query(28), &says).unwrap()[6..8], [0, 0]);
        assert_eq!(answer(&query(1), &Says::Failure).unwrap()[3], 0x82);
        assert_eq!(answer(&query(1), &Says::Nothing), None);
        assert_eq!(answer(b"short", &says), None);

        let names = |name: &str| {
            let addresses = vec![Ipv4Addr::new(10, 0, 0, 3)];
            Says::Names(BTreeMap::from([(name.to_owned(), addresses)]))
        };
        let found = answer(&query(1), &names("kiam.svc")).unwrap();
        assert_eq!(found[2..8], [0x81, 0x80, 0, 1, 0, 1]);
        assert!(found.ends_with(&[10, 0, 0, 3]));
        let unknown = answer(&query(1), &names("kiam")).unwrap();
        assert_eq!(unknown[2..8], [0x81, 0x83, 0, 1, 0, 0]);
    }
}
