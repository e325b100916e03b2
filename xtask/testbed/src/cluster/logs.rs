//! A kubelet's port, as far as `kubectl logs` needs it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Authority, Leaf};
use crate::sandbox::{Guest, Node};

/// Port of kubelets.
pub(super) const PORT: u16 = 10250;

/// Output of containers, by `NAMESPACE/POD/CONTAINER`.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs(Arc<Mutex<BTreeMap<String, String>>>);

impl Logs {
    pub(super) fn set(&self, container: String, text: String) {
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logs.insert(container, text);
    }

    /// The answer to `/containerLogs/NAMESPACE/POD/CONTAINER`.
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = path
            .strip_prefix("/containerLogs/")
            .and_then(|container| logs.get(container));
        let mut response = Response::new(Full::default());
        match text {
            Some(text) => *response.body_mut() = Full::from(text.clone()),
            None => *response.status_mut() = StatusCode::NOT_FOUND,
        }
        response
    }
}

/// Serves logs at a node's address until the guest is dropped.
pub(super) fn serve(node: &Node, folder: &Path, logs: Logs) -> Result<Guest> {
    let address = node.ip().to_string();
    let leaf = Leaf {
        name: node.name(),
        alternative_names: &[&address],
        ..Leaf::default()
    };
    let files = Authority::new("kubelet")?.write(folder, &leaf)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.cert)?.collect();
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain?, key)
        .context("the kubelet's certificate")?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = node.place().netns().listen((node.ip(), PORT).into())?;
    listener.set_nonblocking(true)?;
    Guest::outside("kubelet", move || async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        loop {
            let Ok((stream, _from)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            let (acceptor, logs) = (acceptor.clone(), logs.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(|request: http::Request<_>| {
                    let answer = logs.answer(request.uri().path());
                    async move {
                        drop(request);
                        Ok::<_, Infallible>(answer)
                    }
                });
                // A client that goes away in the middle is its own affair.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}
