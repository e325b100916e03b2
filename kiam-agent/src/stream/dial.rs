//! Calls to a server, over TLS or in a simulation.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kiam_common::api::node::v1 as api;
use kiam_common::api::node::v1::node_service_client::NodeServiceClient;
use kiam_common::tls::{self, ClientTls, ConnectError};
use rustls::pki_types::ServerName;
use tonic::{Request, Status};

/// Maximum size of a message, far above that of any pod or identity.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Messages of a server.
pub type Messages = BoxStream<'static, Result<api::WatchResponse, Status>>;

/// Error of a call.
#[derive(Debug)]
pub enum DialError {
    /// The connection failed.
    Connect(ConnectError),
    /// The server answered with an error, or the connection broke.
    Status(Status),
}

/// Caller of servers.
pub trait Dial: Send + Sync {
    /// Calls the server at `address`. The caller applies a timeout.
    fn watch(
        &self,
        address: SocketAddr,
        request: Request<api::WatchRequest>,
    ) -> BoxFuture<'_, Result<Messages, DialError>>;
}

/// Calls over mutual TLS, each on its own connection.
#[derive(Debug)]
pub(crate) struct TlsDial {
    /// Name that the server's certificate must be valid for.
    pub(crate) name: ServerName<'static>,
    /// Certificate of the agent, and trusted authorities.
    pub(crate) tls: Arc<ClientTls>,
}

impl Dial for TlsDial {
    fn watch(
        &self,
        address: SocketAddr,
        request: Request<api::WatchRequest>,
    ) -> BoxFuture<'_, Result<Messages, DialError>> {
        Box::pin(async move {
            let channel = tls::connect(address, self.name.clone(), &self.tls)
                .await
                .map_err(DialError::Connect)?;
            let mut client =
                NodeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let answer = client.watch(request).await.map_err(DialError::Status)?;
            Ok(answer.into_inner().boxed())
        })
    }
}
