//! STS's answers, as the service writes them.

use jiff::Timestamp;

use super::Keys;
use super::error::StsError;
use super::issued::Principal;
use super::request::AssumeRole;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

pub(super) fn assumed_role(
    wanted: &AssumeRole,
    keys: &Keys,
    principal: &Principal,
    expiration: Timestamp,
    id: &str,
) -> String {
    let source_identity = wanted
        .source_identity
        .as_deref()
        .map_or_else(String::new, |name| {
            format!("    <SourceIdentity>{}</SourceIdentity>\n", escape(name))
        });
    let packed = if wanted.tags.is_empty() {
        ""
    } else {
        "    <PackedPolicySize>6</PackedPolicySize>\n"
    };
    answer(
        "AssumeRole",
        &format!(
            "    <AssumedRoleUser>
      <AssumedRoleId>{}</AssumedRoleId>
      <Arn>{}</Arn>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>{}</AccessKeyId>
      <SecretAccessKey>{}</SecretAccessKey>
      <SessionToken>{}</SessionToken>
      <Expiration>{}</Expiration>
    </Credentials>
{source_identity}{packed}",
            escape(&principal.user_id),
            escape(&principal.arn),
            keys.access_key,
            keys.secret_key,
            keys.session_token.as_deref().unwrap_or_default(),
            expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ),
        id,
    )
}

/// An answer that lacks what it should hold.
pub(super) fn assumed_nothing(id: &str) -> String {
    answer("AssumeRole", "", id)
}

pub(super) fn caller_identity(caller: &Principal, id: &str) -> String {
    answer(
        "GetCallerIdentity",
        &format!(
            "    <Arn>{}</Arn>
    <UserId>{}</UserId>
    <Account>{}</Account>
",
            escape(&caller.arn),
            escape(&caller.user_id),
            caller.account
        ),
        id,
    )
}

pub(super) fn error(error: &StsError, id: &str) -> String {
    format!(
        r#"<ErrorResponse xmlns="{NAMESPACE}">
  <Error>
    <Type>{}</Type>
    <Code>{}</Code>
    <Message>{}</Message>
  </Error>
  <RequestId>{id}</RequestId>
</ErrorResponse>
"#,
        error.side(),
        error.code(),
        escape(&error.to_string()),
    )
}

/// A random id, written as STS writes them.
pub(super) fn request_id() -> String {
    crate::sandbox::random_uuid()
}

fn answer(action: &str, result: &str, id: &str) -> String {
    format!(
        r#"<{action}Response xmlns="{NAMESPACE}">
  <{action}Result>
{result}  </{action}Result>
  <ResponseMetadata>
    <RequestId>{id}</RequestId>
  </ResponseMetadata>
</{action}Response>
"#
    )
}

pub(super) fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut escaped, c| {
            match c {
                '&' => escaped += "&amp;",
                '<' => escaped += "&lt;",
                '>' => escaped += "&gt;",
                '"' => escaped += "&quot;",
                '\r' => escaped += "&#13;",
                c => escaped.push(c),
            }
            escaped
        })
}
