//! IAM roles: full ARNs, and the shorter spellings that annotations use.
//!
//! A spelling is a full ARN, or a role's name with or without its path, completed by the base
//! ARN that the server is given. Anything else is refused with a reason: the text comes from
//! whoever may annotate a pod.

use std::fmt;
use std::sync::Arc;

/// The longest ARN that STS takes, in bytes (STS API reference, `AssumeRole`, `RoleArn`).
const MAX_ARN_BYTES: usize = 2048;
/// The longest role name (IAM API reference, `CreateRole`, `RoleName`).
const MAX_NAME_BYTES: usize = 64;

/// Why a text names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RoleError {
    /// There is no text.
    #[error("it is empty")]
    Empty,
    /// It is longer than any ARN.
    #[error("it is {bytes} bytes long, and AWS allows {MAX_ARN_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It has a character that no ARN has: a space, a control character, one outside of ASCII.
    #[error("it has the character {character:?} at position {position}, which no role ARN has")]
    Character {
        /// The character.
        character: char,
        /// Its place, counted in characters from 1.
        position: usize,
    },
    /// It begins like an ARN and is not one of a role.
    #[error(
        "it is no role ARN: {problem}; expected arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME, as in arn:aws:iam::123456789012:role/reader"
    )]
    Arn {
        /// Which part is wrong.
        problem: &'static str,
    },
    /// The role's name is none that IAM would create.
    #[error(
        "its last part {name:?} is no role name: 1 to {MAX_NAME_BYTES} of the characters A-Z a-z 0-9 + = , . @ _ -"
    )]
    Name {
        /// The part after the last slash.
        name: String,
    },
    /// A short name was given, and there is nothing to complete it with.
    #[error(
        "it is a short name, and the server has no --role-base-arn to complete it with; use the role's full ARN, or set the flag"
    )]
    NoBase,
}

/// The ARN of an IAM role, checked. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleArn(Arc<str>);

impl RoleArn {
    /// Reads a full ARN.
    ///
    /// # Errors
    /// When the text is not the ARN of an IAM role.
    pub fn parse(text: &str) -> Result<Self, RoleError> {
        check_characters(text)?;
        let resource = split_prefix(text)?.2;
        // IAM allows such paths, and nobody has them: but for somebody who hopes that one of the
        // many readers of an ARN resolves them.
        if resource.split('/').any(|part| part == "." || part == "..") {
            let problem = "its path has a part . or ..";
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

    /// The whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a client's spelling of a role means this one: its name, its path and name or the end
    /// of that, or its full ARN.
    #[must_use]
    pub fn is_spelled(&self, spelling: &str) -> bool {
        if spelling == &*self.0 {
            return true;
        }
        let Some((_, path)) = self.0.split_once(":role/") else {
            return false;
        };
        match path.strip_suffix(spelling) {
            Some(before) => !spelling.is_empty() && (before.is_empty() || before.ends_with('/')),
            None => false,
        }
    }

    /// The role's name without its path: what the metadata service lists.
    #[must_use]
    pub fn name(&self) -> &str {
        last_part(&self.0)
    }

    /// The twelve digits of the account that owns the role.
    #[must_use]
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

/// What completes a short role name: `arn:aws:iam::123456789012:role/`, maybe with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArn(String);

impl BaseArn {
    /// Reads a base ARN. A missing slash at its end is added.
    ///
    /// # Errors
    /// When a role's name behind it would not make a role's ARN.
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

    /// The base ARN of the account that an instance profile (as `iam/info` of the metadata
    /// service names it) belongs to, in its partition.
    ///
    /// # Errors
    /// When the text is no instance profile's ARN.
    pub fn of_instance_profile(arn: &str) -> Result<Self, RoleError> {
        check_characters(arn)?;
        let Some((prefix, _)) = arn.split_once(":instance-profile/") else {
            return Err(RoleError::Arn {
                problem: "it is not of an instance profile",
            });
        };
        Self::parse(&format!("{prefix}:role/"))
    }

    /// The base ARN itself, ending in a slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The role that `spelling` names: a full ARN as it is, else `base` with the spelling behind it,
/// less one leading slash.
///
/// # Errors
/// When the spelling, completed, is no role's ARN.
pub fn resolve(spelling: &str, base: Option<&BaseArn>) -> Result<RoleArn, RoleError> {
    check_characters(spelling)?;
    if spelling.starts_with("arn:") {
        return RoleArn::parse(spelling);
    }
    let base = base.ok_or(RoleError::NoBase)?;
    let relative = spelling.strip_prefix('/').unwrap_or(spelling);
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

/// Partition, account, and what stands behind `role/`.
fn split_prefix(arn: &str) -> Result<(&str, &str, &str), RoleError> {
    let problem = |problem| RoleError::Arn { problem };
    let mut parts = arn.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (scheme, partition, service, region, account, resource) =
        (next(), next(), next(), next(), next(), next());
    if scheme != "arn" {
        return Err(problem("it does not begin with arn:"));
    }
    let known_form = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase());
    let mut words = partition.split('-');
    if words.next() != Some("aws") || !words.all(known_form) {
        return Err(problem(
            "its partition is none of aws, aws-cn, aws-us-gov, aws-iso, …",
        ));
    }
    if service != "iam" {
        return Err(problem("its service is not iam"));
    }
    if !region.is_empty() {
        return Err(problem("it has a region, and IAM has none"));
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
