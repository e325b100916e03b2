//! A port that two processes of one user share while the one takes over from the other.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; the kernel's own limit (`net.core.somaxconn`) may be less.
const BACKLOG: i32 = 4096;
/// The class of classic BPF's instruction that returns its operand (include/uapi/linux/bpf_common.h).
const BPF_RET: u16 = 0x06;

/// Listens at `address`, beside an earlier process that may do so still. New connections go to
/// the earlier one, as long as it is there, until [`take_over`].
///
/// # Errors
/// When the address cannot be bound: somebody else has it.
pub fn share(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier process that are still closing do not matter.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    prefer(&listener, 0)?;
    Ok(listener)
}

/// From now on new connections come to this listener, and no more to an earlier one.
///
/// # Errors
/// When the kernel refuses.
pub fn take_over(listener: &TcpListener) -> io::Result<()> {
    prefer(listener, 1)
}

/// Gives new connections to the listener that came to the port as number `index`. Listeners move up
/// when one goes; where there is none of that number the kernel chooses among those that there
/// are (`reuseport_select_sock` in net/core/sock_reuseport.c).
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

    const NOBODY: Duration = Duration::from_millis(20);

    /// Connects ten times, and checks that all come to `to`, and none to `other`.
    async fn all_come_to(to: &TcpListener, other: &TcpListener) {
        let address = to.local_addr().unwrap();
        for _ in 0..10 {
            let _client = TcpStream::connect(address).await.unwrap();
            to.accept().await.unwrap();
        }
        assert!(timeout(NOBODY, other.accept()).await.is_err());
    }

    #[tokio::test]
    async fn the_later_one_takes_over_when_it_says_so() {
        let first = share((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        take_over(&first).unwrap();
        let second = share(address).unwrap();
        all_come_to(&first, &second).await;
        take_over(&second).unwrap();
        all_come_to(&second, &first).await;
        // What is left is all that there is, also for the next one.
        drop(first);
        let third = share(address).unwrap();
        all_come_to(&second, &third).await;
        take_over(&third).unwrap();
        all_come_to(&third, &second).await;
    }

    #[tokio::test]
    async fn a_port_of_somebody_else_is_refused() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let error = share(other.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
