//! Identification by source address, for nodes without the kernel programs.

use std::net::SocketAddr;

use super::{Identify, PodRef, Unidentified};

/// Identifies callers by their source address. The view maps it to a pod, within the wait of a
/// request if the pod's address is not published yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AddressIdentity;

impl Identify for AddressIdentity {
    fn identify(&self, peer: SocketAddr) -> Result<PodRef, Unidentified> {
        // A listener of the IPv6 family reports IPv4 peers as mapped addresses.
        let address = peer.ip().to_canonical();
        if address.is_loopback() {
            return Err(Unidentified::NotAPod);
        }
        Ok(PodRef::Address(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_identified_by_address() {
        for (peer, expected) in [
            ("10.0.0.1:1234", Some("10.0.0.1")),
            ("[::ffff:10.0.0.1]:1234", Some("10.0.0.1")),
            ("[fd00::1]:1234", Some("fd00::1")),
            ("127.0.0.1:1234", None),
            ("[::1]:1234", None),
        ] {
            let who = AddressIdentity.identify(peer.parse().unwrap());
            let expected = expected.map(|address| PodRef::Address(address.parse().unwrap()));
            assert_eq!(who, expected.ok_or(Unidentified::NotAPod), "{peer}");
        }
    }
}
