//! Requests: parameters of the Query protocol, validated like those of STS.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Request};
use percent_encoding::percent_decode_str;

use super::error::StsError;

const VERSION: &str = "2011-06-15";
const DEFAULT_SECONDS: u32 = 3600;
const MAX_TAGS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    AssumeRole(AssumeRole),
    GetCallerIdentity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AssumeRole {
    pub(super) role: String,
    pub(super) session: String,
    pub(super) external_id: Option<String>,
    pub(super) seconds: u32,
    pub(super) tags: Vec<(String, String)>,
    pub(super) source_identity: Option<String>,
}

impl Action {
    pub(super) fn parse(request: &Request<Bytes>) -> Result<Self, StsError> {
        let form = match *request.method() {
            Method::POST => String::from_utf8_lossy(request.body()),
            _ => request.uri().query().unwrap_or_default().into(),
        };
        let parameters = parameters(&form);
        let parameter = |name: &str| parameters.get(name).cloned().unwrap_or_default();
        let (action, version) = (parameter("Action"), parameter("Version"));
        match (action.as_str(), version.as_str()) {
            ("AssumeRole", VERSION) => AssumeRole::parse(&parameters).map(Self::AssumeRole),
            ("GetCallerIdentity", VERSION) => Ok(Self::GetCallerIdentity),
            _ => Err(StsError::InvalidAction { action, version }),
        }
    }
}

impl AssumeRole {
    fn parse(parameters: &BTreeMap<String, String>) -> Result<Self, StsError> {
        let get = |name: &str| parameters.get(name).cloned();
        let required = |name: &str, member: &str| {
            get(name).ok_or_else(|| {
                invalid(&format!(
                    "Value null at '{member}' failed to satisfy constraint: Member must not be null"
                ))
            })
        };
        let role = required("RoleArn", "roleArn")?;
        length(&role, "roleArn", 20, 2048)?;
        let parts: Vec<_> = role.splitn(6, ':').collect();
        let is_role = matches!(parts[..], ["arn", _, "iam", "", account, resource]
            if is_account(account) && resource.strip_prefix("role/").is_some_and(|name| !name.is_empty()));
        if !is_role {
            return Err(StsError::Validation(format!("{role} is invalid")));
        }
        let session = required("RoleSessionName", "roleSessionName")?;
        length(&session, "roleSessionName", 2, 64)?;
        pattern(&session, "roleSessionName", r"[\w+=,.@-]*", "_+=,.@-")?;
        let external_id = get("ExternalId");
        if let Some(id) = &external_id {
            length(id, "externalId", 2, 1224)?;
            pattern(id, "externalId", r"[\w+=,.@:\/-]*", "_+=,.@:/-")?;
        }
        let source_identity = get("SourceIdentity");
        if let Some(name) = &source_identity {
            length(name, "sourceIdentity", 2, 64)?;
            pattern(name, "sourceIdentity", r"[\w+=,.@-]*", "_+=,.@-")?;
        }
        Ok(Self {
            role,
            session,
            external_id,
            seconds: seconds(get("DurationSeconds"))?,
            tags: tags(parameters)?,
            source_identity,
        })
    }
}

fn parameters(form: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    form.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn seconds(text: Option<String>) -> Result<u32, StsError> {
    let Some(text) = text else {
        return Ok(DEFAULT_SECONDS);
    };
    let bound = |text: &str, word: &str, limit: u32| {
        invalid(&format!(
            "Value '{text}' at 'durationSeconds' failed to satisfy constraint: Member must have value {word} than or equal to {limit}"
        ))
    };
    match text.parse() {
        Ok(seconds @ 900..=43200) => Ok(seconds),
        Ok(0..900) => Err(bound(&text, "greater", 900)),
        Ok(_) => Err(bound(&text, "less", 43200)),
        Err(_invalid) => Err(StsError::Validation(format!("{text} is no number"))),
    }
}

fn tags(parameters: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, StsError> {
    let get = |at: usize, name: &str| parameters.get(&format!("Tags.member.{at}.{name}")).cloned();
    let tags = (1..).map_while(|at| Some((get(at, "Key")?, get(at, "Value").unwrap_or_default())));
    let tags: Vec<_> = tags.take(MAX_TAGS + 1).collect();
    if tags.len() > MAX_TAGS {
        return Err(invalid(
            "Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50",
        ));
    }
    for (key, value) in &tags {
        length(key, "tags.1.member.key", 1, 128)?;
        length(value, "tags.1.member.value", 0, 256)?;
    }
    Ok(tags)
}

fn length(value: &str, member: &str, least: usize, most: usize) -> Result<(), StsError> {
    let length = value.chars().count();
    let (word, limit) = match length {
        _ if length < least => ("greater", least),
        _ if length > most => ("less", most),
        _ => return Ok(()),
    };
    Err(invalid(&format!(
        "Value '{value}' at '{member}' failed to satisfy constraint: Member must have length {word} than or equal to {limit}"
    )))
}

fn pattern(value: &str, member: &str, pattern: &str, marks: &str) -> Result<(), StsError> {
    if value
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
    {
        return Ok(());
    }
    Err(invalid(&format!(
        "Value '{value}' at '{member}' failed to satisfy constraint: Member must satisfy regular expression pattern: {pattern}"
    )))
}

fn invalid(problem: &str) -> StsError {
    StsError::Validation(format!("1 validation error detected: {problem}"))
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}
