//! AWS's Signature Version 4 in the `Authorization` header: making one, and taking one apart.
//!
//! Implements "Create a signed AWS API request" of the IAM guide, for requests to `/` and for S3.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Request};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE_HEADER: &str = "x-amz-date";
/// The header in which S3's clients say what of the body they sign.
const CONTENT_HEADER: &str = "x-amz-content-sha256";
/// The header that carries the session token.
pub const TOKEN_HEADER: &str = "x-amz-security-token";
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Credentials that sign.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The access key's id.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// The session token, with temporary credentials.
    pub session_token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.access_key).finish()
    }
}

/// A request's signature, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The id of the access key that signed.
    pub access_key: String,
    /// When it was signed.
    pub time: Timestamp,
    scope: Scope,
    signed_headers: Vec<String>,
    signature: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    date: String,
    region: String,
    service: String,
}

/// Reason for which there is no signature to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// No `Authorization` header.
    Missing,
    /// One that is no signature of this kind, or lacks a part.
    Incomplete,
}

impl Authorization {
    /// Reads a request's headers.
    ///
    /// # Errors
    /// When they hold no complete signature.
    pub fn parse(headers: &HeaderMap) -> Result<Self, Malformed> {
        let header = headers
            .get(http::header::AUTHORIZATION)
            .ok_or(Malformed::Missing)?;
        let header = header.to_str().map_err(|_binary| Malformed::Incomplete)?;
        Self::from_header(header, headers).ok_or(Malformed::Incomplete)
    }

    fn from_header(header: &str, headers: &HeaderMap) -> Option<Self> {
        let fields = header.strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let field = |name: &str| {
            let mut fields = fields
                .split(',')
                .filter_map(|field| field.trim().split_once('='));
            fields.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let [access_key, date, region, service, "aws4_request"] =
            field("Credential")?.split('/').collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let signed_headers: Vec<_> = field("SignedHeaders")?
            .split(';')
            .map(str::to_owned)
            .collect();
        let time = headers.get(DATE_HEADER)?.to_str().ok()?;
        let time = DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
        let covered = |name: &str| signed_headers.iter().any(|header| header == name);
        if !covered("host") || (headers.contains_key(TOKEN_HEADER) && !covered(TOKEN_HEADER)) {
            return None;
        }
        Some(Self {
            access_key: access_key.to_owned(),
            time: time.to_zoned(TimeZone::UTC).ok()?.timestamp(),
            scope: Scope {
                date: date.to_owned(),
                region: region.to_owned(),
                service: service.to_owned(),
            },
            signed_headers,
            signature: field("Signature")?.to_owned(),
        })
    }

    /// Returns whether the request is signed by this secret key, for this service.
    pub fn is_by<B: AsRef<[u8]>>(&self, secret: &str, service: &str, request: &Request<B>) -> bool {
        let Self {
            time,
            scope,
            signed_headers,
            signature,
            ..
        } = self;
        let expected = sign(secret, *time, scope, signed_headers, request);
        scope.service == service
            && scope.date == time.strftime("%Y%m%d").to_string()
            && *signature == expected
    }
}

/// Signs a request: adds the headers that carry time, session token and signature.
///
/// # Panics
/// If the session token holds what no header can.
pub fn add_signature<B: AsRef<[u8]>>(
    request: &mut Request<B>,
    keys: &Keys,
    region: &str,
    service: &str,
    time: Timestamp,
) {
    let header = |text: &str| text.parse().expect("printable");
    let date = time.strftime("%Y%m%dT%H%M%SZ").to_string();
    let headers = request.headers_mut();
    headers.insert(DATE_HEADER, header(&date));
    if let Some(token) = &keys.session_token {
        headers.insert(TOKEN_HEADER, header(token));
    }
    let mut signed: Vec<_> = headers
        .keys()
        .map(|name| name.as_str().to_owned())
        .collect();
    signed.sort();
    let scope = Scope {
        date: time.strftime("%Y%m%d").to_string(),
        region: region.to_owned(),
        service: service.to_owned(),
    };
    let signature = sign(&keys.secret_key, time, &scope, &signed, request);
    let (key, signed) = (&keys.access_key, signed.join(";"));
    let authorization = format!(
        "{ALGORITHM} Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}"
    );
    request
        .headers_mut()
        .insert(http::header::AUTHORIZATION, header(&authorization));
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            date,
            region,
            service,
        } = self;
        write!(f, "{date}/{region}/{service}/aws4_request")
    }
}

fn sign<B: AsRef<[u8]>>(
    secret: &str,
    time: Timestamp,
    scope: &Scope,
    signed_headers: &[String],
    request: &Request<B>,
) -> String {
    let content = content(&scope.service, request);
    let canonical = canonical(request, signed_headers, &content);
    let time = time.strftime("%Y%m%dT%H%M%SZ");
    let text = format!(
        "{ALGORITHM}\n{time}\n{scope}\n{}",
        hex(&Sha256::digest(canonical))
    );
    let Scope {
        date,
        region,
        service,
    } = scope;
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [date, region, service, "aws4_request"] {
        key = hmac(&key, part);
    }
    hex(&hmac(&key, &text))
}

/// The body's digest; with S3 a client may say in its place that it signs no body.
fn content<B: AsRef<[u8]>>(service: &str, request: &Request<B>) -> String {
    let unsigned = "UNSIGNED-PAYLOAD";
    let declared = request.headers().get(CONTENT_HEADER);
    if service == "s3" && declared.is_some_and(|declared| declared == unsigned) {
        return unsigned.to_owned();
    }
    hex(&Sha256::digest(request.body()))
}

fn canonical<B: AsRef<[u8]>>(
    request: &Request<B>,
    signed_headers: &[String],
    content: &str,
) -> String {
    let encode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8_lossy().into_owned();
        utf8_percent_encode(&decoded, UNRESERVED).to_string()
    };
    let query = request.uri().query().unwrap_or_default();
    let mut query: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    query.sort();
    let mut headers = String::new();
    for name in signed_headers {
        let values = request.headers().get_all(name).iter();
        let values: Vec<_> = values.map(|value| collapsed(value.as_bytes())).collect();
        headers += &format!("{name}:{}\n", values.join(","));
    }
    [
        request.method().as_str(),
        request.uri().path(),
        &query.join("&"),
        &headers,
        &signed_headers.join(";"),
        content,
    ]
    .join("\n")
}

fn collapsed(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get-vanilla-query-order-key-case` and `get-vanilla` of AWS's own test suite.
    #[test]
    fn signatures_equal_those_of_the_aws_test_suite() {
        let keys = Keys {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let time: Timestamp = "2015-08-30T12:36:00Z".parse().unwrap();
        for (path, signature) in [
            (
                "/",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "/?Param2=value2&Param1=value1",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
        ] {
            let request = Request::get(path).header("host", "example.amazonaws.com");
            let mut request = request.body(Vec::new()).unwrap();
            add_signature(&mut request, &keys, "us-east-1", "service", time);
            let authorization = Authorization::parse(request.headers()).unwrap();
            assert_eq!(authorization.signature, signature);
            assert_eq!(authorization.time, time);
            assert!(authorization.is_by(&keys.secret_key, "service", &request));
            assert!(!authorization.is_by(&keys.secret_key, "sts", &request));
            assert!(!authorization.is_by("other", "service", &request));
            request.body_mut().push(b'x');
            assert!(!authorization.is_by(&keys.secret_key, "service", &request));
        }
    }

    #[test]
    fn incomplete_signatures_are_told_from_missing_ones() {
        let mut headers = HeaderMap::new();
        assert_eq!(Authorization::parse(&headers), Err(Malformed::Missing));
        for text in [
            "Basic abc",
            "AWS4-HMAC-SHA256 Credential=a/b/c",
            "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, Signature=1",
            "AWS4-HMAC-SHA256 Credential=a/20150830/r/s/aws4_request, SignedHeaders=x-amz-date, Signature=1",
        ] {
            headers.insert("authorization", text.parse().unwrap());
            headers.insert(DATE_HEADER, "20150830T123600Z".parse().unwrap());
            assert_eq!(
                Authorization::parse(&headers),
                Err(Malformed::Incomplete),
                "{text}"
            );
        }
    }
}
