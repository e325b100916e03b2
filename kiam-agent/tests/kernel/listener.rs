//! A socket that accepts connections in a network namespace.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::{Receiver, channel};

use nix::sys::socket::{Shutdown, shutdown};

use crate::hang_limit::hang_limit;

/// Accepts connections; dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    accepted: Receiver<(TcpStream, SocketAddr)>,
}

impl Listener {
    pub(crate) fn new(socket: TcpListener) -> Self {
        let (send, accepted) = channel();
        let accepting = socket.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok(connection) = accepting.accept() {
                if send.send(connection).is_err() {
                    return;
                }
            }
        });
        Self { socket, accepted }
    }

    /// The next connection and its peer.
    #[track_caller]
    pub(crate) fn accept(&self) -> (TcpStream, SocketAddr) {
        let connection = self.accepted.recv_timeout(hang_limit());
        connection.expect("a connection arrives")
    }

    /// Panics if a connection has arrived that was not taken.
    #[track_caller]
    pub(crate) fn assert_no_connection(&self) {
        let arrived = self.accepted.try_recv();
        assert!(arrived.is_err(), "a connection arrived: {arrived:?}");
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}
