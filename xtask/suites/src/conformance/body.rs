//! Checks of a body: the role's name, a token, a document. `None` if nothing is wrong.

pub(super) fn the_role(body: &str, role: &str) -> Option<String> {
    (body != role).then(|| format!("the body is {body:?} and not {role:?}"))
}

pub(super) fn nothing(body: &str, _role: &str) -> Option<String> {
    (!body.is_empty()).then(|| "there is a body".to_owned())
}

/// 56 characters of base64url, with padding: AWS's C runtime keeps a token in 64 bytes.
pub(super) fn a_token(body: &str, _role: &str) -> Option<String> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let letters = body.strip_suffix("==").unwrap_or_default();
    let fits = body.len() == 56 && letters.bytes().all(letter);
    (!fits).then(|| "the body is no token of 56 characters".to_owned())
}

fn document(body: &str, keys: &[&str]) -> Option<String> {
    let Ok(serde_json::Value::Object(found)) = serde_json::from_str(body) else {
        return Some("the body is no JSON object".to_owned());
    };
    let missing = keys.iter().find(|key| !found.contains_key(**key));
    if let Some(missing) = missing {
        return Some(format!("the document has no {missing}"));
    }
    if found["Code"] != "Success" {
        return Some("Code is not Success".to_owned());
    }
    let time = |key: &str| {
        let text = found.get(key).and_then(serde_json::Value::as_str);
        let text = text.unwrap_or_default();
        let whole = text.len() == "2026-01-01T00:00:00Z".len();
        whole
            .then(|| text.parse::<jiff::Timestamp>().ok())
            .flatten()
    };
    let bad = ["LastUpdated", "Expiration"]
        .into_iter()
        .find(|key| keys.contains(key) && time(key).is_none());
    bad.map(|key| format!("{key} is no time in whole seconds of UTC"))
}

pub(super) fn credentials(body: &str, _role: &str) -> Option<String> {
    let keys = [
        "Code",
        "LastUpdated",
        "Type",
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
    ];
    document(body, &keys)
}

pub(super) fn extended(body: &str, _role: &str) -> Option<String> {
    let keys = [
        "Code",
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
        "AccountId",
    ];
    document(body, &keys)
}

pub(super) fn info(body: &str, _role: &str) -> Option<String> {
    document(body, &["Code", "LastUpdated", "InstanceProfileArn"])
}
