//! Explanations of failed handshakes, for people.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as Rustls};

/// Finds the TLS error among the sources of `error`, and explains its cause and remedy.
///
/// In TLS 1.3 a client learns only after its handshake that the server rejected its certificate:
/// the error surfaces in the first call.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Rustls>() {
            return Some(meaning(tls));
        }
        if let Some(alert) = alert(&error.to_string()) {
            return Some(meaning(&alert));
        }
        // The source of an io::Error is that of the error inside it: the error itself is skipped.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Finds the alert in the text of an error: h2 keeps only the text of an error of the socket.
fn alert(text: &str) -> Option<Rustls> {
    const ABOUT_CERTIFICATES: [AlertDescription; 9] = [
        AlertDescription::AccessDenied,
        AlertDescription::BadCertificate,
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateRequired,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateUnknown,
        AlertDescription::DecryptError,
        AlertDescription::UnknownCA,
        AlertDescription::UnsupportedCertificate,
    ];
    ABOUT_CERTIFICATES
        .into_iter()
        .map(Rustls::AlertReceived)
        .find(|error| text.ends_with(&error.to_string()))
}

fn meaning(error: &Rustls) -> String {
    match error {
        Rustls::NoCertificatesPresented => {
            "the peer presented no certificate; it needs one that an authority in --ca issued"
                .to_owned()
        }
        Rustls::InvalidCertificate(certificate) => format!(
            "rejected the peer's certificate: {}",
            certificate_meaning(certificate)
        ),
        Rustls::AlertReceived(alert) => {
            format!("the peer rejected this side: {}", alert_meaning(*alert))
        }
        Rustls::InvalidMessage(_) => "the peer does not speak TLS; check the port".to_owned(),
        other => format!("TLS: {other}"),
    }
}

fn certificate_meaning(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "no authority in --ca issued it; check that both sides use the same CA".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or the clock of this machine is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or the clock of this machine is wrong".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this use; a server needs serverAuth, an agent \
             clientAuth"
                .into()
        }
        // The text of the error contains the expected name and the names in the certificate.
        other => other.to_string(),
    }
}

fn alert_meaning(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it requires a certificate, and did not accept the one in --cert".into()
        }
        AlertDescription::UnknownCA => {
            "no authority that it trusts issued the certificate in --cert".into()
        }
        AlertDescription::DecryptError => {
            "the authority that issued the certificate in --cert has the name of one that it \
             trusts, but another key"
                .into()
        }
        AlertDescription::CertificateExpired => "the certificate in --cert has expired".into(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => {
            format!("it cannot accept the certificate in --cert ({alert:?})")
        }
        other => format!("TLS alert {other:?}"),
    }
}
