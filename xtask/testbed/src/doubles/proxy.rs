//! A way through which TCP connections go late: the kernels of the build machines have no `netem`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::sandbox::Guest;
use crate::sandbox::Netns;

const CHUNK: usize = 16 << 10;
/// Chunks on their way, in each direction of each connection.
const UNDERWAY: usize = 1024;

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    delay: Arc<AtomicU64>,
    open: watch::Sender<bool>,
    _server: Guest,
}

impl Proxy {
    /// Connects whoever connects to `listener` with `target`, inside of a namespace.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn start(netns: &Netns, listener: TcpListener, target: SocketAddr) -> Result<Self> {
        listener
            .set_nonblocking(true)
            .context("cannot use a socket")?;
        let delay = Arc::new(AtomicU64::new(0));
        let late = Arc::clone(&delay);
        let (open, opened) = watch::channel(true);
        let server = netns.host("proxy", move || async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                return;
            };
            loop {
                let Ok((stream, _from)) = listener.accept().await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let (delay, mut opened) = (Arc::clone(&late), opened.clone());
                let through = async move {
                    // Nobody listens there: this one is closed as well.
                    if let Ok(onward) = TcpStream::connect(target).await {
                        join(stream, onward, &delay).await;
                    }
                };
                tokio::spawn(async move {
                    tokio::select! {
                        () = through => {}
                        _ = opened.wait_for(|open| !open) => {}
                    }
                });
            }
        })?;
        Ok(Self {
            delay,
            open,
            _server: server,
        })
    }

    /// Lets connections through from now on, or breaks existing ones and refuses new ones.
    pub fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Sets the delay in each direction, from now on.
    pub fn delay(&self, delay: Duration) {
        let millis = delay.as_millis() as u64;
        self.delay.store(millis, Ordering::Relaxed);
    }
}

async fn join(one: TcpStream, other: TcpStream, delay: &Arc<AtomicU64>) {
    let (one_reads, one_writes) = one.into_split();
    let (other_reads, other_writes) = other.into_split();
    tokio::join!(
        pass(one_reads, other_writes, delay),
        pass(other_reads, one_writes, delay)
    );
}

/// Passes on what is read, each chunk late; then the end.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: &AtomicU64) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDERWAY);
    let reading = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
            if sender.send((due, chunk[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}
