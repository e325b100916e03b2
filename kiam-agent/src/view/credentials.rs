//! Credentials as the documents that pods read, written once when they arrive.

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::RoleArn;
use zeroize::Zeroizing;

/// Latest time of a document: four digits for the year. The earliest is 1970.
const LAST_SECOND: i64 = 253_402_300_799;
/// Maximum length of each of the three texts, in bytes. AWS documents no limit for session tokens;
/// they have stayed below 4 KiB, and much longer ones fit in no request header.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// Reason why credentials cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A text is empty, too long, or not printable ASCII.
    #[error("the {what} is empty, longer than 16 KiB, or not printable ASCII")]
    Text {
        /// Name of the text.
        what: &'static str,
    },
    /// A time is before 1970 or after 9999.
    #[error("the {what} is not a time between 1970 and 9999")]
    Time {
        /// Name of the time.
        what: &'static str,
    },
}

/// Credentials of a role session as documents. Zeroed when the last reference is dropped.
#[derive(Clone)]
pub struct Issued {
    access_key_id: Box<str>,
    expiration: SystemTime,
    last_updated: Box<str>,
    plain: Bytes,
    extended: Bytes,
    container: Bytes,
}

impl Issued {
    /// Writes the documents of `iam/security-credentials/`, `…-extended/` and `v1/credentials`.
    pub fn new(credentials: &SessionCredentials, role: &RoleArn) -> Result<Self, CredentialsError> {
        let SessionCredentials {
            access_key_id,
            secret_access_key,
            session_token,
            expiration,
            issued,
        } = credentials;
        let document = Document {
            last_updated: time("time of issue", *issued)?,
            access_key_id: text("access key id", access_key_id)?,
            secret_access_key: text("secret access key", secret_access_key.expose())?,
            token: text("session token", session_token.expose())?,
            expiration: time("expiration", *expiration)?,
        };
        let account = ("AccountId", role.account());
        Ok(Self {
            access_key_id: access_key_id.as_str().into(),
            expiration: *expiration,
            plain: document.write(&[]),
            extended: document.write(&[account]),
            container: document.write(&[account, ("RoleArn", role.as_str())]),
            last_updated: document.last_updated.into(),
        })
    }

    /// Returns the access key id, which names the session in the logs of AWS and is not a secret.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// Returns the time at which AWS stops accepting them.
    pub const fn expiration(&self) -> SystemTime {
        self.expiration
    }

    /// Returns the document of `iam/security-credentials/{role}`, laid out as by the real service.
    pub fn plain(&self) -> Bytes {
        self.plain.clone()
    }

    /// Returns the document of `iam/security-credentials-extended/{role}`, which has the account
    /// too.
    pub fn extended(&self) -> Bytes {
        self.extended.clone()
    }

    /// Returns the document of `v1/credentials`, which has the role's ARN too, as in ECS: s3fs
    /// rejects documents without it.
    pub fn container(&self) -> Bytes {
        self.container.clone()
    }

    /// Returns the document of `iam/info`. It has no `InstanceProfileId`, since the role of a pod
    /// has no instance profile.
    pub fn info(&self, role: &RoleArn) -> Bytes {
        // The path of an ARN may have characters that JSON escapes; a time has none.
        let profile = role.as_str().replacen(":role/", ":instance-profile/", 1);
        let profile = serde_json::Value::String(profile);
        let last_updated = &self.last_updated;
        format!(
            "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"{last_updated}\",\n  \
             \"InstanceProfileArn\" : {profile}\n}}"
        )
        .into()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Issued {
    fn eq(&self, other: &Self) -> bool {
        self.container == other.container
    }
}

impl Eq for Issued {}

struct Document<'a> {
    last_updated: String,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    expiration: String,
}

impl Document<'_> {
    /// Writes the keys in the order and spacing of the real service.
    fn write(&self, more: &[(&str, &str)]) -> Bytes {
        let mut fields = vec![
            ("Code", "Success"),
            ("LastUpdated", &self.last_updated),
            ("Type", "AWS-HMAC"),
            ("AccessKeyId", self.access_key_id),
            ("SecretAccessKey", self.secret_access_key),
            ("Token", self.token),
            ("Expiration", &self.expiration),
        ];
        fields.extend_from_slice(more);
        // Escaping can double a text. The buffer must not grow, since only the last allocation is
        // zeroed.
        let space = |(key, value): &(&str, &str)| key.len() + 2 * value.len() + 16;
        let mut out = Zeroizing::new(Vec::with_capacity(fields.iter().map(space).sum()));
        let mut separator = "{\n";
        for (key, value) in fields {
            for part in [separator, "  \"", key, "\" : \""] {
                out.extend_from_slice(part.as_bytes());
            }
            for byte in value.bytes() {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(byte);
            }
            out.push(b'"');
            separator = ",\n";
        }
        out.extend_from_slice(b"\n}");
        Bytes::from_owner(out)
    }
}

fn text<'a>(what: &'static str, value: &'a str) -> Result<&'a str, CredentialsError> {
    let valid = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if value.is_empty() || value.len() > MAX_TEXT_BYTES || !valid(value) {
        return Err(CredentialsError::Text { what });
    }
    Ok(value)
}

fn time(what: &'static str, value: SystemTime) -> Result<String, CredentialsError> {
    Timestamp::try_from(value)
        .ok()
        .filter(|time| (0..=LAST_SECOND).contains(&time.as_second()))
        .map(|time| {
            let utc = time.to_zoned(TimeZone::UTC);
            utc.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        })
        .ok_or(CredentialsError::Time { what })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn credentials(secret: &str, token: &str, expires: u64) -> SessionCredentials {
        SessionCredentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: secret.to_owned().into(),
            session_token: token.to_owned().into(),
            expiration: SystemTime::UNIX_EPOCH + Duration::from_millis(expires * 1000 + 999),
            issued: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    fn role() -> RoleArn {
        RoleArn::parse("arn:aws:iam::123456789012:role/team/reader").unwrap()
    }

    #[test]
    fn documents_have_the_layout_of_the_real_service() {
        let issued = Issued::new(&credentials("s/+=", "t", 1_700_003_600), &role()).unwrap();
        let plain = r#"{
  "Code" : "Success",
  "LastUpdated" : "2023-11-14T22:13:20Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "ASIAEXAMPLE",
  "SecretAccessKey" : "s/+=",
  "Token" : "t",
  "Expiration" : "2023-11-14T23:13:20Z"
}"#;
        assert_eq!(issued.plain(), plain);
        let extended = plain.replace("20Z\"\n}", "20Z\",\n  \"AccountId\" : \"123456789012\"\n}");
        assert_eq!(issued.extended(), extended);
        let arn = r#"123456789012",
  "RoleArn" : "arn:aws:iam::123456789012:role/team/reader""#;
        assert_eq!(issued.container(), extended.replace("123456789012\"", arn));
    }

    #[test]
    fn info_names_an_instance_profile_like_the_role() {
        let issued = Issued::new(&credentials("s", "t", 1_700_003_600), &role()).unwrap();
        let info = r#"{
  "Code" : "Success",
  "LastUpdated" : "2023-11-14T22:13:20Z",
  "InstanceProfileArn" : "arn:aws:iam::123456789012:instance-profile/team/reader"
}"#;
        assert_eq!(issued.info(&role()), info);
    }

    #[test]
    fn any_printable_text_survives_json() {
        let all: String = (0x21..0x7f_u8).map(char::from).collect();
        let issued = Issued::new(&credentials(&all, &all, 1_700_003_600), &role()).unwrap();
        for document in [issued.plain(), issued.extended(), issued.container()] {
            let read: serde_json::Value = serde_json::from_slice(&document).unwrap();
            assert_eq!(read["SecretAccessKey"], all);
            assert_eq!(read["Token"], all);
        }
    }

    #[test]
    fn invalid_credentials_are_rejected() {
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        for bad in ["", "new\nline", "ümlaut", " ", &long] {
            let what = "secret access key";
            let rejected = Issued::new(&credentials(bad, "t", 0), &role());
            assert_eq!(rejected, Err(CredentialsError::Text { what }));
            let what = "session token";
            let rejected = Issued::new(&credentials("s", bad, 0), &role());
            assert_eq!(rejected, Err(CredentialsError::Text { what }));
        }
        let what = "expiration";
        let rejected = Issued::new(&credentials("s", "t", 253_402_300_800), &role());
        assert_eq!(rejected, Err(CredentialsError::Time { what }));
    }

    #[test]
    fn debug_output_has_no_secrets() {
        let issued = Issued::new(&credentials("hunter2", "hunter3", 0), &role()).unwrap();
        let text = format!("{issued:?}");
        assert!(
            text.contains("ASIAEXAMPLE") && !text.contains("hunter"),
            "{text}"
        );
    }
}
