//! Output of pods, parsed: see `files/pod.c`.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use testbed::doubles::imds::{NODE_ACCESS_KEY, NODE_ROLE};
use testbed::doubles::sigv4::Keys;

/// A namespace, pods and a Job in it.
pub(super) const PODS: &str = include_str!("files/pods.yaml");
/// A pod that the kubelet starts by itself.
pub(super) const STATIC: &str = include_str!("files/static.yaml");
/// The pods' namespace.
pub(super) const NAMESPACE: &str = "pods";

/// One answer that a container got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// 0 without an answer.
    pub(super) status: u16,
    /// The role, or the reason why not.
    pub(super) text: String,
    /// True if the container was asked to end before.
    pub(super) terminating: bool,
}

/// The answers of a container, in order.
pub(super) fn answers(log: &str) -> Vec<Answer> {
    let mut terminating = false;
    let mut answers = Vec::new();
    for line in log.lines() {
        let Some((_, rest)) = line.strip_prefix('+').and_then(|line| line.split_once(' ')) else {
            continue;
        };
        if rest.starts_with("terminating") {
            terminating = true;
            continue;
        }
        let rest = rest.strip_prefix("bad ").unwrap_or(rest);
        let Some((status, text)) = rest.split_once(' ') else {
            continue;
        };
        let text = text.rsplit_once(" [").map_or(text, |(text, _)| text);
        if let Ok(status) = status.parse() {
            answers.push(Answer {
                status,
                text: text.trim().to_owned(),
                terminating,
            });
        }
    }
    answers
}

/// Identification of pods by a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentifiedBy {
    /// At once.
    Cgroup,
    /// Identified by address, as soon as the API reports it: requests until then are answered 503,
    /// and SDKs repeat them.
    Address,
}

/// Fails unless each answer names this role, from the first on that it can be known, and there is
/// one.
pub(super) fn all_of(log: &str, role: &str, known: IdentifiedBy) -> Result<Vec<Answer>> {
    not_the_nodes(log)?;
    let mut answers = answers(log);
    if known == IdentifiedBy::Address {
        let early = answers.iter().take_while(|answer| answer.status == 503);
        answers.drain(..early.count());
    }
    ensure!(!answers.is_empty(), "it sent no request: {log}");
    for (number, answer) in answers.iter().enumerate() {
        ensure!(
            answer.status == 200 && answer.text == role,
            "answer {} of {} is {} {:?}, not {role}",
            number + 1,
            answers.len(),
            answer.status,
            answer.text
        );
    }
    Ok(answers)
}

/// Fails unless each request was refused, and there was one.
pub(super) fn all_refused(log: &str) -> Result<()> {
    not_the_nodes(log)?;
    let answers = answers(log);
    ensure!(!answers.is_empty(), "it sent no request: {log}");
    let served = answers.iter().find(|answer| answer.status == 200);
    ensure!(served.is_none(), "it was served: {served:?}");
    Ok(())
}

/// Fails if anything of the node's own shows.
pub(super) fn not_the_nodes(log: &str) -> Result<()> {
    for secret in [NODE_ROLE, NODE_ACCESS_KEY] {
        ensure!(!log.contains(secret), "a pod received {secret}: {log}");
    }
    Ok(())
}

/// The keys that a container has printed last.
pub(super) fn keys(log: &str) -> Result<Keys> {
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("keys "));
    let line = line.with_context(|| format!("no keys: {log}"))?;
    let keys: Value = serde_json::from_str(line).context("credentials are not JSON")?;
    let field = |name: &str| -> Result<String> {
        let value = keys[name].as_str();
        Ok(value.with_context(|| format!("no {name}"))?.to_owned())
    };
    Ok(Keys {
        access_key: field("AccessKeyId")?,
        secret_key: field("SecretAccessKey")?,
        session_token: Some(field("Token")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "+0.1 200 a-role [ok 1 bad 0]\n+9.0 bad 403 no role [ok 1 bad 1]\n\
        +12 terminating [ok 1 bad 1]\n+13.5 bad 0 Connection refused [ok 1 bad 2]\n\
        end [ok 1 bad 2]\n";

    #[test]
    fn answers_are_read_with_their_status_and_reason() {
        let answers = answers(LOG);
        let plain: Vec<_> = answers
            .iter()
            .map(|answer| (answer.status, &*answer.text, answer.terminating))
            .collect();
        assert_eq!(
            plain,
            [
                (200, "a-role", false),
                (403, "no role", false),
                (0, "Connection refused", true)
            ]
        );
    }

    #[test]
    fn another_role_a_refusal_and_silence_are_distinguished() {
        all_of(
            "+0.1 200 a-role [ok 1 bad 0]\n",
            "a-role",
            IdentifiedBy::Cgroup,
        )
        .unwrap();
        let error = all_of(LOG, "a-role", IdentifiedBy::Cgroup)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "answer 2 of 3 is 403 \"no role\", not a-role");
        let error = all_of(LOG, "b-role", IdentifiedBy::Cgroup)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("answer 1 of 3 is 200"), "{error}");
        assert!(all_of("", "a-role", IdentifiedBy::Address).is_err() && all_refused("").is_err());
        all_refused("+1.0 bad 404 nothing [ok 0 bad 1]\n").unwrap();
        assert!(all_refused(LOG).is_err());
    }

    #[test]
    fn credentials_of_the_node_are_never_those_of_a_pod() {
        for secret in [NODE_ROLE, NODE_ACCESS_KEY] {
            assert!(not_the_nodes(&format!("+1.0 200 {secret} [ok 1 bad 0]")).is_err());
        }
    }

    #[test]
    fn keys_are_the_last_ones() {
        let line = |key: &str| {
            format!(r#"keys {{"AccessKeyId":"{key}","SecretAccessKey":"s","Token":"t"}}"#)
        };
        let log = format!("{}\n{}\nend\n", line("A"), line("B"));
        assert_eq!(keys(&log).unwrap().access_key, "B");
        assert!(keys("end\n").is_err());
    }
}
