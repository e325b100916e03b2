//! Certificate authorities and certificates for one run of a command.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Behind a node's name in its agent's certificate.
const NODE_SUFFIX: &str = ".node.kiam";

/// kiam-server's certificate: its name, its address in the sandbox, and that of a second replica.
pub const SERVER: Leaf<'_> = Leaf {
    name: "kiam-server",
    organization: None,
    alternative_names: &["kiam-server", "10.0.0.1", "10.0.0.2"],
    expired: false,
};

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Contents of a certificate.
#[derive(Debug, Clone, Default)]
pub struct Leaf<'a> {
    /// The subject's common name.
    pub name: &'a str,
    /// The subject's organisation, which Kubernetes reads as a group.
    pub organization: Option<&'a str>,
    /// DNS names, addresses and URIs.
    pub alternative_names: &'a [&'a str],
    /// True if it has expired.
    pub expired: bool,
}

/// PEM files, as flags name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFiles {
    /// A certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?);
        Ok(Self(issuer.context("cannot make a certificate authority")?))
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for servers and clients and its key, both PEM.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(&self, leaf: &Leaf<'_>) -> Result<(String, String)> {
        let names: Vec<_> = leaf
            .alternative_names
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        let mut params = CertificateParams::new(names).context("cannot use a name")?;
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.name);
        if let Some(organization) = leaf.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        if leaf.expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let cert = params
            .signed_by(&key, &self.0)
            .context("cannot sign a certificate")?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    /// Writes a certificate, its key and this authority's certificate into a folder.
    ///
    /// # Errors
    /// When a name is none or a file cannot be written.
    pub fn write(&self, folder: &Path, leaf: &Leaf<'_>) -> Result<PemFiles> {
        let (cert, key) = self.issue(leaf)?;
        // Beside, and then in the place of what may be there, each file as a whole.
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            let beside = path.with_extension("new");
            std::fs::write(&beside, text)
                .and_then(|()| std::fs::rename(&beside, &path))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path)
        };
        Ok(PemFiles {
            cert: file("tls.crt", cert)?,
            key: file("tls.key", key)?,
            ca: file("ca.crt", self.pem())?,
        })
    }

    /// Issues kiam-server's certificate, for its name and its addresses in the sandbox: [`SERVER`].
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn write_server(&self, folder: &Path) -> Result<PemFiles> {
        self.write(folder, &SERVER)
    }

    /// Writes a certificate like [`Self::write`], for the agent of a node.
    ///
    /// # Errors
    /// When the node's name is no part of a DNS name or a file cannot be written.
    pub fn write_node(&self, folder: &Path, node: &str) -> Result<PemFiles> {
        let name = format!("{node}{NODE_SUFFIX}");
        self.write(
            folder,
            &Leaf {
                name: &name,
                alternative_names: &[&name],
                ..Leaf::default()
            },
        )
    }
}

/// A new pair of keys that sign service-account tokens: private, public; both PEM.
///
/// # Errors
/// When no key can be made.
pub fn token_keys() -> Result<(String, String)> {
    let key = KeyPair::generate().context("cannot make a key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_and_bad_names_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("kiam test CA").unwrap();
        let files = authority.write_node(folder.path(), "node-1").unwrap();
        for (path, begin) in [
            (&files.cert, "-----BEGIN CERTIFICATE"),
            (&files.key, "-----BEGIN PRIVATE KEY"),
            (&files.ca, "-----BEGIN CERTIFICATE"),
        ] {
            assert!(std::fs::read_to_string(path).unwrap().starts_with(begin));
        }
        let error = authority.write_node(folder.path(), "knöt").unwrap_err();
        assert!(error.to_string().contains("cannot use a name"), "{error}");
    }
}
