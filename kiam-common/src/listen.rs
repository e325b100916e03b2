//! A listening port that an older and a newer process of the same user share during a handover.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Class of the classic BPF instruction that returns its operand (include/uapi/linux/bpf_common.h).
const BPF_RET: u16 = 0x06;

/// Listens on `address`, beside an earlier process that may still listen there. New connections go
/// to the earlier process, while it exists, until [`take_over`].
///
/// # Errors
/// When the address cannot be bound, because a process that does not share the port has it.
pub fn bind_shared(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier process in TIME_WAIT do not block the port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    prefer(&listener, 0)?;
    Ok(listener)
}

/// Directs new connections to this listener, no longer to an earlier one.
///
/// # Errors
/// When the kernel refuses the program that selects the listener.
pub fn take_over(listener: &TcpListener) -> io::Result<()> {
    prefer(listener, 1)
}

/// Directs new connections to the listener with the given index, in the order of binding. The
/// indexes shift down when a listener closes; with an index out of range the kernel falls back to
/// its own choice (`reuseport_select_sock` in net/core/sock_reuseport.c).
fn prefer(listener: &TcpListener, index: u32) -> io::Result<()> {
    let mut program = [libc::sock_filter {
        code: BPF_RET,
        jt: 0,
        jf: 0,
        k: index,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    setsockopt(listener, AttachReusePortCbpf, &program)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    const NO_CONNECTION: Duration = Duration::from_millis(20);

    /// Connects ten times, and asserts that `to` accepts all connections and `other` none.
    async fn all_reach(to: &TcpListener, other: &TcpListener) {
        let address = to.local_addr().unwrap();
        for _ in 0..10 {
            let _client = TcpStream::connect(address).await.unwrap();
            to.accept().await.unwrap();
        }
        assert!(timeout(NO_CONNECTION, other.accept()).await.is_err());
    }

    #[tokio::test]
    async fn a_later_listener_receives_connections_only_after_it_takes_over() {
        let first = bind_shared((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        take_over(&first).unwrap();
        let second = bind_shared(address).unwrap();
        all_reach(&first, &second).await;
        take_over(&second).unwrap();
        all_reach(&second, &first).await;
        // The index of the second listener is 0 now, and that of the third is 1.
        drop(first);
        let third = bind_shared(address).unwrap();
        all_reach(&second, &third).await;
        take_over(&third).unwrap();
        all_reach(&third, &second).await;
    }

    #[tokio::test]
    async fn a_port_that_is_not_shared_is_in_use() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let error = bind_shared(other.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
