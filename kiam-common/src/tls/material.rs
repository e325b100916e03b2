//! Certificate, key and authorities: read from files, and converted into TLS configurations.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::flags::TlsFlags;

const ALPN_HTTP2: &[u8] = b"h2";

/// The error of unusable TLS files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or is not in PEM format.
    #[error("cannot read the {what} from {}: {source}", path.display())]
    Read {
        /// The expected content: certificate, private key or certificate authorities.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the PEM parser.
        source: rustls::pki_types::pem::Error,
    },
    /// A file lacks the expected content.
    #[error("there is no {what} in {}", path.display())]
    Empty {
        /// The expected content: certificate, private key or certificate authorities.
        what: &'static str,
        /// The path of the file.
        path: PathBuf,
    },
    /// An authority's certificate is malformed.
    #[error("a certificate authority in {} cannot be used: {source}", path.display())]
    Authority {
        /// The path of the file.
        path: PathBuf,
        /// The error of the TLS library.
        source: rustls::Error,
    },
    /// The certificate is malformed.
    #[error("the certificate in {} cannot be parsed: {problem}", path.display())]
    Certificate {
        /// The path of the file.
        path: PathBuf,
        /// The error of the TLS library.
        problem: String,
    },
    /// The key does not match the certificate, or the TLS library does not support them.
    #[error("the certificate in {} and the key in {} cannot be used together: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The error of the TLS library.
        source: rustls::Error,
    },
    /// The authorities cannot verify any certificate.
    #[error("the authorities in {} cannot verify any peer: {problem}", path.display())]
    Verifier {
        /// The path of the file.
        path: PathBuf,
        /// The error of the TLS library.
        problem: String,
    },
}

/// The contents of the three files.
#[derive(Debug)]
pub struct Material {
    files: TlsFlags,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
    expires: SystemTime,
}

impl Material {
    /// Reads and parses the files.
    ///
    /// # Errors
    /// Names the file that cannot be used, and the cause.
    pub fn read(files: &TlsFlags) -> Result<Self, TlsError> {
        let chain = certificates("certificate", &files.cert)?;
        let authorities = certificates("certificate authorities", &files.ca)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| match source {
            rustls::pki_types::pem::Error::NoItemsFound => TlsError::Empty {
                what: "private key",
                path: files.key.clone(),
            },
            source => TlsError::Read {
                what: "private key",
                path: files.key.clone(),
                source,
            },
        })?;
        let expires = expiry(&chain[0]).map_err(|problem| TlsError::Certificate {
            path: files.cert.clone(),
            problem,
        })?;
        Ok(Self {
            files: files.clone(),
            chain,
            key,
            authorities,
            expires,
        })
    }

    /// Returns the expiration of the certificate.
    pub const fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Returns whether both have the same certificates, key and authorities.
    pub fn same_as(&self, other: &Self) -> bool {
        self.chain == other.chain
            && self.authorities == other.authorities
            && self.key.secret_der() == other.key.secret_der()
    }

    /// Returns the configuration of a server, which requires client certificates that one of the
    /// authorities issued.
    ///
    /// # Errors
    /// When the TLS library cannot use the files.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
                .build()
                .map_err(|error| self.verifier_error(&error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(self.chain.clone(), self.key.clone_key())
            })
            .map_err(|source| self.pair_error(source))?;
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Ok(config)
    }

    /// Returns the configuration of a client, which requires a server certificate that one of the
    /// authorities issued.
    ///
    /// # Errors
    /// When the TLS library cannot use the files.
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
                .build()
                .map_err(|error| self.verifier_error(&error))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_webpki_verifier(verifier)
                    .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            })
            .map_err(|source| self.pair_error(source))?;
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Ok(config)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            roots
                .add(authority.clone())
                .map_err(|source| TlsError::Authority {
                    path: self.files.ca.clone(),
                    source,
                })?;
        }
        Ok(Arc::new(roots))
    }

    fn verifier_error(&self, problem: &impl ToString) -> TlsError {
        TlsError::Verifier {
            path: self.files.ca.clone(),
            problem: problem.to_string(),
        }
    }

    fn pair_error(&self, source: rustls::Error) -> TlsError {
        TlsError::Pair {
            cert: self.files.cert.clone(),
            key: self.files.key.clone(),
            source,
        }
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read_error = |source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(read_error)?;
    if found.is_empty() {
        return Err(TlsError::Empty {
            what,
            path: path.to_owned(),
        });
    }
    Ok(found)
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let seconds = parsed.validity().not_after.timestamp();
    // An expiration before 1970 is clamped to 1970.
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
