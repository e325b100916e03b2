//! Surroundings of the cluster's nodes, as on EC2: the node's own metadata service at the far end
//! of `eth0`, STS, and a capture of all packets to the metadata service.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use toolchain::exec;

use testbed::doubles::imds::Imds;
use testbed::doubles::sts::Sts;
use testbed::sandbox::{CONTROL_IP, Guest, Sandbox};

const METADATA: Ipv4Addr = kiam_common::metadata_address::METADATA_V4;
const STS_PORT: u16 = 4566;
/// The last packets, which a failure is explained by.
const MAX_PACKETS: usize = 200;

/// Surroundings of the nodes, until it is dropped.
#[derive(Debug)]
pub(super) struct Vpc {
    sts: Sts,
    packets: Packets,
    _imds: Imds,
    _wire: Guest,
}

/// Packets that were sent to the nodes' metadata service.
#[derive(Debug, Clone, Default)]
pub(super) struct Packets(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    count: usize,
    last: VecDeque<String>,
}

impl Vpc {
    /// Starts it in the sandbox's control namespace.
    pub(super) fn start(sandbox: &Sandbox) -> Result<Self> {
        let netns = sandbox.control().netns();
        let mut address = Command::new("ip");
        address.args(["-n", netns.name(), "address", "add"]);
        exec(address.args([&format!("{METADATA}/32"), "dev", "fabric"]))?;
        let packets = Packets::default();
        let seen = packets.clone();
        let socket = netns.run(socket)??;
        let wire = Guest::outside("wire", move || async move { follow(socket, &seen).await })?;
        let imds = netns.listen(SocketAddr::from((METADATA, 80)))?;
        let sts = netns.listen(SocketAddr::new(CONTROL_IP, STS_PORT))?;
        Ok(Self {
            sts: Sts::start(sts)?,
            packets,
            _imds: Imds::start(vec![imds])?,
            _wire: wire,
        })
    }

    /// STS, which checks signatures.
    pub(super) const fn sts(&self) -> &Sts {
        &self.sts
    }

    /// Packets sent to the nodes' metadata service.
    pub(super) const fn packets(&self) -> &Packets {
        &self.packets
    }
}

impl Packets {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of packets.
    pub(super) fn count(&self) -> usize {
        self.lock().count
    }

    /// The last packets, at most this number.
    pub(super) fn last(&self, of: usize) -> String {
        let seen = self.lock();
        let skip = seen.last.len().saturating_sub(of);
        let last: Vec<_> = seen.last.iter().skip(skip).cloned().collect();
        last.join("; ")
    }

    fn push(&self, packet: &[u8]) {
        let mut seen = self.lock();
        seen.count += 1;
        if seen.last.len() == MAX_PACKETS {
            seen.last.pop_front();
        }
        seen.last.push_back(describe(packet));
    }
}

/// Packet socket that receives packets to metadata addresses.
fn socket() -> Result<UnixDatagram> {
    const ETH_P_ALL: u16 = 3;
    // linux/filter.h: load half a word, load a word, jump if equal, return; all absolute.
    const HALF: u16 = 0x28;
    const WORD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let filter = [
        SockFilter::new(HALF, 0, 0, 12),
        SockFilter::new(EQUAL, 0, 2, 0x0800),
        SockFilter::new(WORD, 0, 0, 30),
        SockFilter::new(EQUAL, 5, 6, u32::from(METADATA)),
        SockFilter::new(EQUAL, 0, 5, 0x86dd),
        // fd00:ec2::254
        SockFilter::new(WORD, 0, 0, 38),
        SockFilter::new(EQUAL, 0, 3, 0xfd00_0ec2),
        SockFilter::new(WORD, 0, 0, 50),
        SockFilter::new(EQUAL, 0, 1, 0x254),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ];
    let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
        .context("cannot open a packet socket")?;
    socket
        .attach_filter(&filter)
        .context("cannot filter a packet socket")?;
    socket.set_nonblocking(true)?;
    // Only received from, which is the same for all kinds of sockets.
    Ok(OwnedFd::from(socket).into())
}

async fn follow(socket: UnixDatagram, packets: &Packets) {
    let Ok(socket) = tokio::net::UnixDatagram::from_std(socket) else {
        return;
    };
    let mut packet = [0; 512];
    while let Ok(length) = socket.recv(&mut packet).await {
        packets.push(&packet[..length]);
    }
}

/// Sender, protocol, and the first line of the payload.
fn describe(packet: &[u8]) -> String {
    const ETHERNET: usize = 14;
    let Some(ip) = packet.get(ETHERNET..ETHERNET + 20) else {
        return "a short packet".to_owned();
    };
    if ip[0] >> 4 != 4 {
        return format!("IPv6, next header {}", ip[6]);
    }
    let from = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let protocol = match ip[9] {
        1 => "ICMP",
        6 => "TCP",
        17 => "UDP",
        _ => "another protocol",
    };
    let text = String::from_utf8_lossy(packet);
    let methods = ["GET ", "PUT ", "POST ", "HEAD "];
    let request = methods.iter().find_map(|method| text.find(method));
    let request = request.and_then(|at| text[at..].lines().next());
    format!("{protocol} from {from} {}", request.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_described_by_sender_protocol_and_request() {
        let mut packet = vec![0; 14];
        packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 200, 1]);
        packet.extend(METADATA.octets());
        packet.extend([0; 20]);
        packet.extend(b"GET /latest/ HTTP/1.1\r\nHost: h\r\n");
        assert_eq!(
            describe(&packet),
            "TCP from 10.0.200.1 GET /latest/ HTTP/1.1"
        );
        assert_eq!(describe(&packet[..20]), "a short packet");
        let packets = Packets::default();
        packets.push(&packet);
        assert_eq!(packets.count(), 1);
        assert!(packets.last(1).starts_with("TCP from"));
    }
}
