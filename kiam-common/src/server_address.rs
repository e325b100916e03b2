//! Where a server is, as `--server-address` says it.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// A server's name or address, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why a text is no server's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no port.
    #[error("it has no port; expected HOST:PORT, as in kiam-server:9610 or [fd00::1]:9610")]
    NoPort,
    /// The port is none.
    #[error("{port:?} is no port; expected a number from 1 to 65535")]
    Port {
        /// What stands behind the last colon.
        port: String,
    },
    /// The host is none.
    #[error("{host:?} is neither a DNS name nor an IP address")]
    Host {
        /// What stands before the last colon.
        host: String,
    },
}

impl ServerAddress {
    /// The addresses that the host has now.
    ///
    /// # Errors
    /// When its name cannot be resolved.
    pub async fn lookup(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        let found = tokio::net::lookup_host((self.host(), self.port())).await?;
        Ok(found.collect())
    }

    /// The name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What the server's certificate must be for.
    #[must_use]
    pub fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        let unbracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if unbracketed.is_none() && host.contains(':') {
            return Err(AddressError::NoPort);
        }
        let port = match port.parse() {
            Ok(port) if port != 0 => port,
            _ => {
                return Err(AddressError::Port {
                    port: port.to_owned(),
                });
            }
        };
        let host = unbracketed.unwrap_or(host).to_owned();
        match ServerName::try_from(host.clone()) {
            Ok(name) => Ok(Self { host, port, name }),
            Err(_invalid) => Err(AddressError::Host { host }),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}
