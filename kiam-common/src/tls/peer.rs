//! The names in a certificate that was verified in the handshake.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// The subject alternative names of a peer's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs, SPIFFE ids among them.
    pub uris: Vec<String>,
}

/// Reads the names. A certificate without any, or a malformed one, has none.
#[must_use]
pub fn peer_names(certificate: &CertificateDer<'_>) -> PeerNames {
    let mut names = PeerNames::default();
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return names;
    };
    let Ok(Some(alternative)) = parsed.subject_alternative_name() else {
        return names;
    };
    for name in &alternative.value.general_names {
        match name {
            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
            _ => {}
        }
    }
    names
}
