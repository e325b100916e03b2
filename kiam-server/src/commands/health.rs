//! Asks a server whether it serves agents, as the gRPC health checking protocol has it.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiam_common::duration;
use kiam_common::server_address::ServerAddress;
use kiam_common::tls::{ClientTls, TlsError, TlsMetrics, TlsSide, connect};
use prometheus::Registry;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::args::HealthArgs;

/// As `kiam health` did.
const RETRY: Duration = Duration::from_millis(100);

/// Why a server does not count as healthy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HealthError {
    /// TLS files that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A metric was registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// It did not say in time that it serves.
    #[error("the server at {address} was not healthy within {}: {problem}", duration::format(*limit))]
    Unhealthy {
        /// Where it should be.
        address: ServerAddress,
        /// How long it was asked.
        limit: Duration,
        /// What the last try came to.
        problem: String,
    },
}

/// Asks until the server says that it serves, or time is up.
///
/// # Errors
/// When it does not say so in time, or cannot be asked.
pub async fn health(args: HealthArgs) -> Result<(), HealthError> {
    let HealthArgs {
        server_address: address,
        timeout: limit,
        tls,
        ..
    } = args;
    let tls = ClientTls::client(tls, TlsMetrics::new(TlsSide::Client, &Registry::new())?)?;
    let last = Mutex::new("it has not answered".to_owned());
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

/// One try, at every address that the name has: any of them may be the one that serves.
async fn ask(address: &ServerAddress, tls: &ClientTls) -> Result<(), String> {
    let text = |error: &dyn Display| error.to_string();
    let found = address.lookup().await;
    let mut problem = "its name has no address".to_owned();
    for at in found.map_err(|error| text(&error))? {
        match connect(at, address.name(), tls).await {
            Ok(channel) => {
                let mut client = HealthClient::new(channel);
                let answer = client.check(HealthCheckRequest::default()).await;
                match answer.map(|answer| answer.into_inner().status()) {
                    Ok(ServingStatus::Serving) => return Ok(()),
                    Ok(other) => problem = format!("it says {}", other.as_str_name()),
                    Err(status) => problem = text(&status),
                }
            }
            Err(error) => problem = text(&error),
        }
    }
    Err(problem)
}
