//! The end of the gRPC server: its clients are told to go, and do not all do so.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long clients have, after HTTP/2's GOAWAY, to close their connections. Streams end by
/// themselves and agents are elsewhere within a moment; this is for a client that hangs. Less than
/// the program's whole time to end.
const LIMIT: Duration = Duration::from_secs(5);

/// Serves until `stop`, and until connections are closed then, for a while at most: those that are
/// left are closed with the process, which is no failure of the server's.
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
            tracing::error!(%error, "the gRPC server broke down");
        },
        () = over => tracing::warn!(
            after = ?LIMIT,
            "clients have not closed their connections, which end now with the server"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// How long it serves after the stop, with clients that take so long to go.
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
    async fn it_waits_for_clients_and_not_for_one_that_hangs() {
        assert_eq!(serves(Duration::ZERO).await, Duration::ZERO);
        let second = Duration::from_secs(1);
        assert_eq!(serves(second).await, second);
        assert_eq!(serves(Duration::from_secs(600)).await, LIMIT);
    }
}
