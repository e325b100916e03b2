//! Work of a pod during a measurement. Run by the benchmark in a pod.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::time::Instant;

/// Flags of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Kind of work
    #[arg(value_enum)]
    pub work: Work,

    /// Peer address, or address to listen on
    pub address: SocketAddr,

    /// Duration
    #[arg(long, default_value_t = 250, value_name = "MILLISECONDS")]
    pub time: u64,
}

/// Something that the programs may make slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Work {
    /// Connect and close
    TcpConnect,
    /// Send 16 bytes
    UdpSend,
    /// Send as much as there is room for
    TcpBulk,
    /// Connect a UDP socket, again and again
    UdpConnect,
    /// Accept connections and close them
    TcpAccept,
}

impl Work {
    /// All kinds of work.
    pub const ALL: [Self; 5] = [
        Self::TcpConnect,
        Self::UdpSend,
        Self::TcpBulk,
        Self::UdpConnect,
        Self::TcpAccept,
    ];
}

/// Does it, and prints how often it was done in a second.
///
/// # Errors
/// Fails when the network refuses.
#[expect(clippy::print_stdout, reason = "the benchmark reads it")]
pub fn run(args: &Args) -> Result<()> {
    let time = Duration::from_millis(args.time);
    let rate = match args.work {
        Work::TcpConnect => rate(time, || {
            let stream = TcpStream::connect(args.address)?;
            // Without a trace: ports must not run out.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(1)
        }),
        Work::UdpSend => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            rate(time, || {
                socket.send_to(&[0; 16], args.address)?;
                Ok(1)
            })
        }
        Work::UdpConnect => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            rate(time, || {
                socket.connect(args.address)?;
                Ok(1)
            })
        }
        Work::TcpBulk => {
            let mut stream = TcpStream::connect(args.address)?;
            let data = vec![0; 128 << 10];
            rate(time, || Ok(stream.write(&data)? as u64))
        }
        Work::TcpAccept => {
            let listener = TcpListener::bind(args.address)?;
            println!("listening");
            // The first shows that the client is running.
            listener.accept()?;
            rate(time, || {
                let (stream, _) = listener.accept()?;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                Ok(1)
            })
        }
    };
    println!("{}", rate?);
    Ok(())
}

/// Measures the rate of an operation per second.
fn rate(time: Duration, mut once: impl FnMut() -> std::io::Result<u64>) -> Result<f64> {
    const AT_ONCE: usize = 16;
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < time {
        for _ in 0..AT_ONCE {
            done += once().context("the work cannot be done")?;
        }
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// Reads and forgets, until the other end is gone.
pub fn swallow(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}
