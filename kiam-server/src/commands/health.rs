//! `kiam-server health`: checks a server with the gRPC health checking protocol.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiam_common::duration;
use kiam_common::metrics::Registry;
use kiam_common::server_address::ServerAddress;
use kiam_common::tls::{ClientTls, TlsError, TlsMetrics, TlsSide, connect};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::HealthArgs;

/// The interval between attempts, as in `kiam health`.
const RETRY: Duration = Duration::from_millis(100);

/// The error of [`health`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A metric is registered already.
    #[error("cannot register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The server did not report in time that it serves.
    #[error("the server at {address} was not healthy within {}: {problem}", duration::format(*limit))]
    Unhealthy {
        address: ServerAddress,
        limit: Duration,
        /// The error of the last attempt.
        problem: String,
    },
}

/// Checks the server until it reports that it serves, or the timeout is over.
///
/// # Errors
/// When the server does not report that in time.
pub async fn health(args: HealthArgs) -> Result<(), HealthError> {
    let HealthArgs {
        server_address: address,
        timeout: limit,
        tls,
        ..
    } = args;
    let tls = ClientTls::client(tls, TlsMetrics::new(TlsSide::Client, &Registry::new())?)?;
    let last = Mutex::new("no response yet".to_owned());
    let asked = tokio::time::timeout(limit, async {
        while let Err(problem) = ask(&address, &tls).await {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = problem;
            tokio::time::sleep(RETRY).await;
        }
    });
    asked.await.map_err(|_elapsed| HealthError::Unhealthy {
        address: address.clone(),
        limit,
        problem: last.into_inner().unwrap_or_else(PoisonError::into_inner),
    })
}

/// Tries every address of the host once, until one serves.
async fn ask(address: &ServerAddress, tls: &ClientTls) -> Result<(), String> {
    let text = |error: &dyn Display| error.to_string();
    let found = address.lookup().await;
    let mut problem = "the host name has no address".to_owned();
    for at in found.map_err(|error| text(&error))? {
        match connect(at, address.name(), tls).await {
            Ok(channel) => {
                let mut client = HealthClient::new(channel);
                let answer = client.check(HealthCheckRequest::default()).await;
                match answer.map(|answer| answer.into_inner().status()) {
                    Ok(ServingStatus::Serving) => return Ok(()),
                    Ok(other) => problem = format!("it reports {}", other.as_str_name()),
                    Err(status) => problem = text(&status),
                }
            }
            Err(error) => problem = text(&error),
        }
    }
    Err(problem)
}
