//! Messages of sock_diag(7): listing TCP sockets, and closing one (include/uapi/linux/inet_diag.h
//! and sock_diag.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kiam_common::metadata_address::{METADATA_V4, METADATA_V6};

use crate::netlink::{HEADER_BYTES, messages, value};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// Offset of the remote address in it.
const DESTINATION: usize = 20;
/// `struct inet_diag_msg` up to its id: family, state, timer, retransmissions.
const BEFORE_ID: usize = 4;
/// `struct inet_diag_msg` in bytes; attributes follow.
const MESSAGE: usize = 72;
/// Attribute with the id of the socket's cgroup, 8 bytes; since Linux 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// All states except `TCP_LISTEN` (10): a listening socket has no remote end.
const STATES: u32 = !(1 << 10);

/// A reply of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Found(Connection),
    Other,
    /// End of the replies: 0, or a negative error number.
    End(i32),
}

/// A TCP socket in the kernel's notation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    family: u8,
    id: [u8; ID],
    cgroup: Option<u64>,
}

impl Connection {
    pub(super) fn is_to_metadata_service(&self) -> bool {
        let mut v6 = [0; 16];
        v6.copy_from_slice(&self.id[DESTINATION..DESTINATION + 16]);
        let [a, b, c, d, ..] = v6;
        let far = if i32::from(self.family) == libc::AF_INET {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(v6)).to_canonical()
        };
        far == METADATA_V4 || far == METADATA_V6
    }

    /// Returns the id of the socket's cgroup. Sockets that the kernel keeps only to answer late
    /// packets have none.
    pub(super) const fn cgroup(&self) -> Option<u64> {
        self.cgroup
    }

    /// Returns a request to close the connection. Its client sees `ECONNABORTED`.
    pub(super) fn destroy(&self) -> Vec<u8> {
        request(SOCK_DESTROY, NLM_F_ACK, self.family, &self.id)
    }
}

/// Returns a request for all TCP sockets of a family.
pub(super) fn list(family: i32) -> Vec<u8> {
    // Both address families fit into a byte.
    let family = u8::try_from(family).unwrap_or_default();
    request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID])
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Vec<u8> {
    // `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, id.
    const LENGTH: usize = HEADER_BYTES + 8 + ID;
    let tcp = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend((LENGTH as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, tcp, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Parses a datagram.
pub(super) fn read(datagram: &[u8]) -> Vec<Reply> {
    let replies = messages(datagram).map(|(kind, body)| match kind {
        NLMSG_DONE => Reply::End(0),
        NLMSG_ERROR => Reply::End(number(body).unwrap_or(-libc::EPROTO)),
        SOCK_DIAG_BY_FAMILY => connection(body).map_or(Reply::Other, Reply::Found),
        _ => Reply::Other,
    });
    replies.collect()
}

fn number(body: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*body.first_chunk()?))
}

fn connection(body: &[u8]) -> Option<Connection> {
    Some(Connection {
        family: *body.first()?,
        id: *body.get(BEFORE_ID..)?.first_chunk()?,
        cgroup: value(body.get(MESSAGE..)?, INET_DIAG_CGROUP_ID)
            .and_then(|id| Some(u64::from_ne_bytes(*id.first_chunk()?))),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CGROUP: u64 = 77;

    fn found(family: i32, far: &[u8]) -> Vec<u8> {
        let mut body = vec![u8::try_from(family).unwrap(), 1, 0, 0];
        let mut id = [7; ID];
        id[DESTINATION..DESTINATION + far.len()].copy_from_slice(far);
        body.extend(id);
        // Times, queues, user, inode.
        body.extend([0; 20]);
        // Another attribute, and the cgroup's: lengths, kinds, values, padding.
        for (kind, value) in [(8, &[3][..]), (INET_DIAG_CGROUP_ID, &CGROUP.to_ne_bytes())] {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = Vec::new();
        bytes.extend(
            u32::try_from(HEADER_BYTES + body.len())
                .unwrap()
                .to_ne_bytes(),
        );
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn connections_to_the_metadata_service_are_distinguished() {
        for (family, far, is_to_it) in [
            (libc::AF_INET, METADATA_V4.octets().to_vec(), true),
            (libc::AF_INET, vec![169, 254, 169, 253], false),
            (libc::AF_INET6, METADATA_V6.octets().to_vec(), true),
            (
                libc::AF_INET6,
                METADATA_V4.to_ipv6_mapped().octets().to_vec(),
                true,
            ),
            (libc::AF_INET6, Ipv6Addr::LOCALHOST.octets().to_vec(), false),
        ] {
            let replies = read(&found(family, &far));
            let [Reply::Found(connection)] = &replies[..] else {
                panic!("{replies:?}");
            };
            assert_eq!(connection.is_to_metadata_service(), is_to_it, "{far:?}");
            assert_eq!(connection.cgroup(), Some(CGROUP));
            // The request contains the id that the kernel sent.
            assert!(connection.destroy().ends_with(&connection.id));
        }
    }

    proptest! {
        #[test]
        fn any_datagram_is_parsed_to_its_end(datagram: Vec<u8>) {
            let _ = read(&datagram).len();
        }
    }
}
