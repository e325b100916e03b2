//! How a server is called: over TLS, or as a simulation has it.

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

/// No message of one pod or one identity comes near this.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// What a server sends.
pub type Messages = BoxStream<'static, Result<api::WatchResponse, Status>>;

/// Why a call has no answer.
#[derive(Debug)]
pub enum DialError {
    /// There is no connection.
    Connect(ConnectError),
    /// The server answered with an error, or the connection broke.
    Status(Status),
}

/// Calls servers.
pub trait Dial: Send + Sync {
    /// Calls the server at `address`. How long that may take is up to the caller.
    fn watch(
        &self,
        address: SocketAddr,
        request: Request<api::WatchRequest>,
    ) -> BoxFuture<'_, Result<Messages, DialError>>;
}

/// Calls servers over mutual TLS, on a connection of each call's own.
#[derive(Debug)]
pub struct TlsDial {
    /// What a server's certificate must be for.
    pub name: ServerName<'static>,
    /// This side's certificate, and whom it trusts.
    pub tls: Arc<ClientTls>,
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
