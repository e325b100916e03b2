//! Shutdown of the gRPC server: waits for its clients, for a limited time.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The time for clients to close their connections after the HTTP/2 GOAWAY. Node streams end at
/// once and agents move to another server; the limit matters for a client that hangs. It is shorter
/// than the grace period of the whole program.
const LIMIT: Duration = Duration::from_secs(5);

/// Serves until `stop` is cancelled, then waits until all connections are closed, or [`LIMIT`] is
/// over. Remaining connections close with the process, which is not an error.
pub(super) async fn until_drained<E: Display>(
    serving: impl Future<Output = Result<(), E>>,
    stop: CancellationToken,
) {
    let over = async {
        stop.cancelled().await;
        tokio::time::sleep(LIMIT).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            tracing::error!(%error, "the gRPC server failed");
        },
        () = over => tracing::warn!(
            after = ?LIMIT,
            "closing connections that their clients have not closed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// Returns how long the server runs after the stop, if its clients need `clients` to close.
    async fn serves(clients: Duration) -> Duration {
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let serving = async move {
            asked.cancelled().await;
            sleep(clients).await;
            Ok::<(), std::convert::Infallible>(())
        };
        let served = tokio::spawn(until_drained(serving, stop.clone()));
        sleep(Duration::from_secs(3600)).await;
        assert!(!served.is_finished());
        let begin = Instant::now();
        stop.cancel();
        served.await.unwrap();
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_clients_up_to_the_limit() {
        assert_eq!(serves(Duration::ZERO).await, Duration::ZERO);
        let second = Duration::from_secs(1);
        assert_eq!(serves(second).await, second);
        assert_eq!(serves(Duration::from_secs(600)).await, LIMIT);
    }
}
