//! Kinds of clients by their `User-Agent`, reduced to a few families.

/// Substrings of `User-Agent`, and the families that they stand for. The first match counts.
const FAMILIES: [(&str, &str); 17] = [
    ("aws-cli/", "aws-cli"),
    ("boto", "boto"),
    ("aws-sdk-go-v2/", "go-v2"),
    ("aws-sdk-go/", "go"),
    ("aws-sdk-java/", "java"),
    ("aws-sdk-kotlin/", "kotlin"),
    ("aws-sdk-js/", "js"),
    ("aws-sdk-nodejs/", "js"),
    ("aws-sdk-ruby", "ruby"),
    ("aws-sdk-php/", "php"),
    ("aws-sdk-dotnet", "dotnet"),
    ("aws-sdk-rust/", "rust"),
    ("aws-sdk-cpp/", "cpp"),
    ("aws-sdk-swift/", "swift"),
    ("python-", "python"),
    ("go-http-client/", "go-http"),
    ("curl/", "curl"),
];
/// Maximum length of a name that is searched, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// A family of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sdk(u8);

impl Sdk {
    /// Number of families.
    pub(super) const COUNT: usize = FAMILIES.len() + 2;
    /// Any other client.
    const OTHER: Self = Self(FAMILIES.len() as u8);
    /// A client without a `User-Agent`, such as the SDK for JavaScript.
    const NONE: Self = Self(FAMILIES.len() as u8 + 1);

    /// Returns the family of a `User-Agent` header.
    pub(super) fn of(user_agent: Option<&[u8]>) -> Self {
        let Some(name) = user_agent.filter(|name| !name.is_empty()) else {
            return Self::NONE;
        };
        let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
        let has = |part: &str| {
            let part = part.as_bytes();
            name.windows(part.len())
                .any(|found| found.eq_ignore_ascii_case(part))
        };
        let found = FAMILIES.iter().zip(0..).find(|((part, _), _)| has(part));
        found.map_or(Self::OTHER, |(_, at)| Self(at))
    }

    /// Returns all families, in the order of their indexes.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..).take(Self::COUNT).map(Self)
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the name of the family.
    pub fn as_label(self) -> &'static str {
        match FAMILIES.get(self.index()) {
            Some((_, label)) => label,
            None if self == Self::NONE => "unnamed",
            None => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_recognized_by_user_agent() {
        for (name, expected) in [
            ("Boto3/1.35.0 md/Botocore#1.35.0 ua/2.0 os/linux", "boto"),
            ("aws-cli/2.17.0 md/awscrt#0.20 botocore/2", "aws-cli"),
            ("aws-sdk-go/1.44.0 (go1.19; linux; amd64)", "go"),
            ("aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22", "go-v2"),
            ("aws-sdk-java/2.25.0", "java"),
            ("AWS-SDK-PHP/3.1", "php"),
            ("aws-sdk-ruby3/3.190.0", "ruby"),
            ("Go-http-client/1.1", "go-http"),
            ("curl/8.5.0", "curl"),
            ("python-requests/2.31", "python"),
            ("Mozilla/5.0", "other"),
            ("\u{1b}[31m", "other"),
            ("", "unnamed"),
        ] {
            assert_eq!(
                Sdk::of(Some(name.as_bytes())).as_label(),
                expected,
                "{name}"
            );
        }
        assert_eq!(Sdk::of(None).as_label(), "unnamed");
        let late = format!("{}boto", "x".repeat(MAX_NAME_BYTES));
        assert_eq!(Sdk::of(Some(late.as_bytes())).as_label(), "other");
    }

    #[test]
    fn every_family_has_an_index() {
        assert!(Sdk::all().map(Sdk::index).eq(0..Sdk::COUNT));
    }
}
