//! Routes of requests, by their paths in any spelling.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Route of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `{version}/meta-data/iam/security-credentials[-extended]`: the name of the pod's role.
    Listing,
    /// `{version}/meta-data/iam/security-credentials/{role}`.
    Credentials {
        /// The role as spelled in the path.
        role: &'a str,
    },
    /// `{version}/meta-data/iam/security-credentials-extended/{role}`.
    Extended {
        /// The role as spelled in the path.
        role: &'a str,
    },
    /// `{version}/meta-data/iam/info`: information about the role.
    Info,
    /// `{version}/api/token`: a token of IMDSv2.
    Token {
        /// True if the version is `latest`, the only one of the real service.
        latest: bool,
    },
    /// `v1/credentials`: credentials for SDKs in containers.
    Container,
    /// `ping`: whether the agent runs, as in kiam.
    Ping,
    /// `health`: whether the node's metadata service answers, as in kiam.
    Health,
    /// Any other path.
    Other,
}

/// Error for a path with invalid percent-encoding or control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid path: percent-encoded text that is not UTF-8, or control characters")]
pub struct PathError;

/// Returns the canonical path: percent-decoded once, without empty and `.` segments, with `..`
/// resolved, and without leading and trailing slashes. Copies only if something changes.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, PathError> {
    let decoded = percent_decode_str(path)
        .decode_utf8()
        .map_err(|_invalid| PathError)?;
    if decoded.chars().any(char::is_control) {
        return Err(PathError);
    }
    let tidy = |text: &str| !text.contains("//") && !text.contains("/.") && !text.starts_with('.');
    match decoded {
        Cow::Borrowed(text) if tidy(text) => Ok(Cow::Borrowed(text.trim_matches('/'))),
        text => {
            let mut parts = Vec::new();
            for part in text.split('/') {
                match part {
                    "" | "." => {}
                    ".." => {
                        parts.pop();
                    }
                    part => parts.push(part),
                }
            }
            Ok(Cow::Owned(parts.join("/")))
        }
    }
}

/// Returns the route of a canonical path.
pub fn route(path: &str) -> Route<'_> {
    let Some((version, rest)) = path.split_once('/') else {
        return match path {
            "ping" => Route::Ping,
            "health" => Route::Health,
            _ => Route::Other,
        };
    };
    if path == "v1/credentials" {
        return Route::Container;
    }
    if rest == "api/token" {
        return Route::Token {
            latest: version == "latest",
        };
    }
    if rest == "meta-data/iam/info" {
        return Route::Info;
    }
    let Some(rest) = rest.strip_prefix("meta-data/iam/security-credentials") else {
        return Route::Other;
    };
    let (extended, rest) = match rest.strip_prefix("-extended") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    match rest.strip_prefix('/') {
        None if rest.is_empty() => Route::Listing,
        None => Route::Other,
        Some(role) if extended => Route::Extended { role },
        Some(role) => Route::Credentials { role },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_a_path_are_equivalent() {
        let plain = "latest/meta-data/iam/security-credentials/reader";
        for path in [
            "/latest/meta-data/iam/security-credentials/reader",
            "/latest/meta-data/iam/security-credentials/reader/",
            "//latest//meta-data/iam/security-credentials//reader",
            "/latest/./meta-data/iam/x/../security-credentials/reader/.",
            "/../../latest/meta-data/iam/security-credentials/reader",
            "/latest/meta-data/iam/security%2Dcredentials%2freader",
            "/latest/meta-data/iam/security-credentials/%72eader",
        ] {
            assert_eq!(canonical(path).unwrap(), plain, "{path}");
        }
        assert!(matches!(canonical(plain), Ok(Cow::Borrowed(_))));
        // Decoded once, not twice.
        assert_eq!(canonical("/a%252fb").unwrap(), "a%2fb");
        for path in ["/%00", "/a%0ab", "/%ff", "/%7f"] {
            assert_eq!(canonical(path), Err(PathError), "{path}");
        }
    }

    #[test]
    fn routes() {
        let arn = "arn:aws:iam::123456789012:role/team/reader";
        let long = format!("2021-03-23/meta-data/iam/security-credentials/{arn}");
        for (path, expected) in [
            ("latest/meta-data/iam/security-credentials", Route::Listing),
            (
                "1.0/meta-data/iam/security-credentials/reader",
                Route::Credentials { role: "reader" },
            ),
            (&long, Route::Credentials { role: arn }),
            (
                "latest/meta-data/iam/security-credentials-extended",
                Route::Listing,
            ),
            (
                "latest/meta-data/iam/security-credentials-extended/reader",
                Route::Extended { role: "reader" },
            ),
            ("latest/api/token", Route::Token { latest: true }),
            ("2021-03-23/api/token", Route::Token { latest: false }),
            ("latest/meta-data/iam/info", Route::Info),
            ("latest/meta-data/iam/info/x", Route::Other),
            ("v1/credentials", Route::Container),
            ("latest/credentials", Route::Other),
            ("ping", Route::Ping),
            ("health", Route::Health),
            ("health/x", Route::Other),
            ("", Route::Other),
            ("latest", Route::Other),
            ("latest/meta-data/iam", Route::Other),
            ("latest/meta-data/iam/security-credentialsx", Route::Other),
            ("meta-data/iam/security-credentials", Route::Other),
            ("x/latest/meta-data/iam/security-credentials", Route::Other),
            ("latest/user-data", Route::Other),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_canonical_path_stays_below_the_root_and_is_stable(path in "(/|\\.|%2e|%2f|[a-z%:]|%25){0,40}") {
            if let Ok(once) = canonical(&path) {
                prop_assert!(once.split('/').all(|part| part != ".." && part != "."));
                prop_assert!(!once.contains("//") && !once.starts_with('/') && !once.ends_with('/'));
            }
        }

        #[test]
        fn no_path_panics(path in any::<String>()) {
            if let Ok(path) = canonical(&path) {
                std::hint::black_box(route(&path));
            }
        }
    }
}
