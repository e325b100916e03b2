//! The source address, where the kernel says no more about a caller.

use std::net::SocketAddr;

use super::{Identify, PodRef, Refusal};

/// Identifies callers by the address that they call from, which the node's view finds the pod of:
/// now or, where a pod's address is not published yet, within a request's wait.
#[derive(Debug, Clone, Copy)]
pub struct AddressIdentity;

impl Identify for AddressIdentity {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Refusal> {
        // A listener of the IPv6 family shows IPv4 peers as mapped addresses.
        let address = peer.ip().to_canonical();
        if address.is_loopback() {
            return Err(Refusal::NotAPod);
        }
        Ok(PodRef::Address(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_known_by_their_address() {
        for (peer, expected) in [
            ("10.0.0.1:1234", Some("10.0.0.1")),
            ("[::ffff:10.0.0.1]:1234", Some("10.0.0.1")),
            ("[fd00::1]:1234", Some("fd00::1")),
            ("127.0.0.1:1234", None),
            ("[::1]:1234", None),
        ] {
            let who = AddressIdentity.identify(peer.parse().unwrap());
            let expected = expected.map(|address| PodRef::Address(address.parse().unwrap()));
            assert_eq!(who, expected.ok_or(Refusal::NotAPod), "{peer}");
        }
    }
}
