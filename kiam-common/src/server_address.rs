//! The address of a server, as in `--server-address`.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::ServerName;

/// The host name or IP address of a server, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// The error of a text that is not a server address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The port is missing.
    #[error("it has no port; expected HOST:PORT, for example kiam-server:9610 or [fd00::1]:9610")]
    NoPort,
    /// The port is invalid.
    #[error("invalid port {port:?}; expected a number from 1 to 65535")]
    Port {
        /// The text after the last colon.
        port: String,
    },
    /// The host is invalid.
    #[error("invalid host {host:?}; expected a DNS name or an IP address")]
    Host {
        /// The text before the last colon.
        host: String,
    },
}

impl ServerAddress {
    /// Resolves the host.
    ///
    /// # Errors
    /// When the name cannot be resolved.
    pub async fn lookup(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        let found = tokio::net::lookup_host((self.host(), self.port())).await?;
        Ok(found.collect())
    }

    /// Returns the host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the name that the certificate of the server must have.
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
