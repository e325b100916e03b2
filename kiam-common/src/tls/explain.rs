//! What a failed handshake means, for people.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as Rustls};

/// Finds the TLS error behind `error`, if there is one, and says what it means and what to do.
///
/// With TLS 1.3 a client learns only after its handshake that the server refused its
/// certificate: the error then surfaces in the first call.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Rustls>() {
            return Some(meaning(tls));
        }
        if let Some(alert) = alert(&error.to_string()) {
            return Some(meaning(&alert));
        }
        // io::Error gives the source of what it wraps, and not what it wraps.
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

/// The alert that a text was made of: h2 keeps of an error on the socket its text only.
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
            "the other side presented no certificate; it must have one of the authorities in --ca"
                .to_owned()
        }
        Rustls::InvalidCertificate(certificate) => format!(
            "the other side's certificate is refused here: {}",
            certificate_meaning(certificate)
        ),
        Rustls::AlertReceived(alert) => {
            format!(
                "the other side refused this side: {}",
                alert_meaning(*alert)
            )
        }
        Rustls::InvalidMessage(_) => {
            "the other side does not speak TLS; is it the right port?".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

fn certificate_meaning(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "it comes from none of the authorities in --ca; are both sides' files of one CA?".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or this machine's clock is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or this machine's clock is wrong".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not allow this; a server needs serverAuth, an agent \
             clientAuth"
                .into()
        }
        // The error itself lists the name that was asked for and the names there are.
        other => other.to_string(),
    }
}

fn alert_meaning(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it wants a certificate, and --cert was not accepted as one".into()
        }
        AlertDescription::UnknownCA => {
            "the certificate in --cert comes from none of the authorities it trusts".into()
        }
        AlertDescription::DecryptError => {
            "the certificate in --cert comes from an authority of the same name as one that it \
             trusts, with another key"
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
