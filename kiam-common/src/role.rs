//! IAM roles: full ARNs, and the short names that annotations use.
//!
//! An annotation contains a full ARN, or the name of a role with or without its path, which the
//! base ARN of the server completes. Anything else is rejected with a reason: the text is untrusted
//! input, from anyone who may annotate a pod.

use std::fmt;
use std::sync::Arc;

/// The longest ARN that STS accepts, in bytes (STS API reference, `AssumeRole`, `RoleArn`).
const MAX_ARN_BYTES: usize = 2048;
/// The longest role name (IAM API reference, `CreateRole`, `RoleName`).
const MAX_NAME_BYTES: usize = 64;

/// The error of a text that does not name a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// The text is longer than any ARN.
    #[error("it is {bytes} bytes long; AWS allows {MAX_ARN_BYTES}")]
    TooLong {
        /// The length of the text.
        bytes: usize,
    },
    /// The text contains a character that is invalid in an ARN: a space, a control character, or a
    /// character outside ASCII.
    #[error(
        "it contains the character {character:?} at position {position}, which is invalid in a role ARN"
    )]
    Character {
        /// The invalid character.
        character: char,
        /// Its position, counted in characters from 1.
        position: usize,
    },
    /// The text starts like an ARN, but is not the ARN of a role.
    #[error(
        "it is not a role ARN: {problem}; expected arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME, for example arn:aws:iam::123456789012:role/reader"
    )]
    Arn {
        /// The invalid part.
        problem: &'static str,
    },
    /// The name of the role is invalid in IAM.
    #[error(
        "its last part {name:?} is not a valid role name: expected 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 + = , . @ _ -"
    )]
    Name {
        /// The part after the last slash.
        name: String,
    },
    /// The text is a short name, and no base ARN is configured.
    #[error(
        "it is a short name, and the server has no --role-base-arn to complete it with; use the role's full ARN, or set the flag"
    )]
    NoBase,
}

/// The validated ARN of an IAM role. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleArn(Arc<str>);

impl RoleArn {
    /// Parses a full ARN.
    ///
    /// # Errors
    /// When the text is not the ARN of an IAM role.
    pub fn parse(text: &str) -> Result<Self, RoleError> {
        check_characters(text)?;
        let resource = split_prefix(text)?.2;
        // IAM allows such paths, but their only use is an attack on a parser that resolves them.
        if resource.split('/').any(|part| part == "." || part == "..") {
            let problem = "its path contains a part . or ..";
            return Err(RoleError::Arn { problem });
        }
        let name = last_part(resource);
        let valid = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(valid) {
            return Err(RoleError::Name {
                name: name.to_owned(),
            });
        }
        Ok(Self(text.into()))
    }

    /// Returns the whole ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether `name` refers to this role: its name, a suffix of its path with its name, or
    /// its full ARN.
    pub fn matches(&self, name: &str) -> bool {
        if name == &*self.0 {
            return true;
        }
        let Some((_, path)) = self.0.split_once(":role/") else {
            return false;
        };
        match path.strip_suffix(name) {
            Some(before) => !name.is_empty() && (before.is_empty() || before.ends_with('/')),
            None => false,
        }
    }

    /// Returns the name without the path, as the metadata service lists it.
    pub fn name(&self) -> &str {
        last_part(&self.0)
    }

    /// Returns the twelve digits of the account that owns the role.
    pub fn account(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The prefix that completes a short role name: `arn:aws:iam::123456789012:role/`, or with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArn(String);

impl BaseArn {
    /// Parses a base ARN, and appends a missing slash.
    ///
    /// # Errors
    /// When a role name appended to it would not give the ARN of a role.
    pub fn parse(text: &str) -> Result<Self, RoleError> {
        check_characters(text)?;
        let base = if text.ends_with('/') {
            text.to_owned()
        } else {
            format!("{text}/")
        };
        split_prefix(&base)?;
        Ok(Self(base))
    }

    /// Returns the base ARN for the account and partition of an instance profile, whose ARN is in
    /// `iam/info` of the metadata service.
    ///
    /// # Errors
    /// When the text is not the ARN of an instance profile.
    pub fn of_instance_profile(arn: &str) -> Result<Self, RoleError> {
        check_characters(arn)?;
        let Some((prefix, _)) = arn.split_once(":instance-profile/") else {
            return Err(RoleError::Arn {
                problem: "it is not the ARN of an instance profile",
            });
        };
        Self::parse(&format!("{prefix}:role/"))
    }

    /// Returns the base ARN, which ends with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Resolves the name of a role: returns a full ARN unchanged, and appends anything else to `base`
/// without its leading slash.
///
/// # Errors
/// When the result is not the ARN of a role.
pub fn resolve(name: &str, base: Option<&BaseArn>) -> Result<RoleArn, RoleError> {
    check_characters(name)?;
    if name.starts_with("arn:") {
        return RoleArn::parse(name);
    }
    let base = base.ok_or(RoleError::NoBase)?;
    let relative = name.strip_prefix('/').unwrap_or(name);
    RoleArn::parse(&format!("{}{relative}", base.0))
}

fn check_characters(text: &str) -> Result<(), RoleError> {
    if text.is_empty() {
        return Err(RoleError::Empty);
    }
    if text.len() > MAX_ARN_BYTES {
        return Err(RoleError::TooLong { bytes: text.len() });
    }
    match text
        .chars()
        .enumerate()
        .find(|(_, c)| !c.is_ascii_graphic())
    {
        Some((at, character)) => Err(RoleError::Character {
            character,
            position: at + 1,
        }),
        None => Ok(()),
    }
}

/// Splits a role ARN into its partition, its account, and its path and name.
fn split_prefix(arn: &str) -> Result<(&str, &str, &str), RoleError> {
    let problem = |problem| RoleError::Arn { problem };
    let mut parts = arn.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (scheme, partition, service, region, account, resource) =
        (next(), next(), next(), next(), next(), next());
    if scheme != "arn" {
        return Err(problem("it does not start with arn:"));
    }
    let known_form = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase());
    let mut words = partition.split('-');
    if words.next() != Some("aws") || !words.all(known_form) {
        return Err(problem(
            "its partition is not one of aws, aws-cn, aws-us-gov, aws-iso, …",
        ));
    }
    if service != "iam" {
        return Err(problem("its service is not iam"));
    }
    if !region.is_empty() {
        return Err(problem("it has a region, but IAM is global"));
    }
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return Err(problem("its account is not twelve digits"));
    }
    let resource = resource
        .strip_prefix("role/")
        .ok_or_else(|| problem("its resource is not role/…"))?;
    Ok((partition, account, resource))
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
