//! `kiam-server explain pod`: why a pod gets its role's credentials, or does not, and what to do.

mod judge;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::Empty;
use kiam_common::http_client;
use kiam_common::role::BaseArn;
use serde::Serialize;

use crate::app::{self, StartError};
use crate::args::ExplainArgs;
use crate::source::{LookupError, lookup};
use crate::status::{PATH, PodStatus};

/// For a server's answer.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The API's client, or a flag.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The pod.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Report(#[from] serde_json::Error),
}

/// What comes of it in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The policies grant the role, and nothing is known to fail.
    Granted,
    /// No role is named for it.
    NoRole,
    /// A policy refuses the role.
    Forbidden,
    /// The role that was asked about is not the pod's.
    OtherRole,
    /// Something that decides is not there yet.
    Undecided,
    /// The role is granted, and STS does not give its credentials.
    Failing,
}

/// One thing that was looked at, in the order in which they decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What.
    pub about: &'static str,
    /// What was found.
    pub found: String,
    /// Whether it stands in the way.
    pub in_the_way: bool,
}

/// Why a pod gets what it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `NAMESPACE/NAME`.
    pub pod: String,
    /// What comes of it.
    pub verdict: Verdict,
    /// What was looked at.
    pub steps: Vec<Step>,
    /// What to do, if there is something to do.
    pub to_do: Option<String>,
}

/// What a running server said.
#[derive(Debug)]
enum Server {
    /// This, of the pod.
    Knows(Box<PodStatus>),
    /// That it knows no such pod.
    Ignorant,
    /// Nothing: why.
    Silent(String),
}

/// Explains. Returns what to print, and whether the pod gets its role's credentials.
///
/// # Errors
/// When nothing can be said, as the pod or the API is not there.
pub async fn explain(args: ExplainArgs) -> Result<(String, bool), ExplainError> {
    let ExplainArgs {
        name,
        role,
        json,
        server,
        cluster,
        roles,
        ..
    } = args;
    let client = app::kubernetes(&cluster).await?;
    let place = (name.namespace.as_str(), name.name.as_str());
    let given = roles.base_arn().await?;
    let mut member = lookup(client.clone(), place, &roles.reading(given.as_ref())).await?;
    let server = ask(server, &member.pod.uid).await;
    let base = match (given, &server) {
        (None, Server::Knows(status)) => {
            let text = status.role_base_arn.as_deref();
            let base = text.and_then(|text| BaseArn::parse(text).ok());
            // It may complete names in the namespace's annotations too.
            member = lookup(client, place, &roles.reading(base.as_ref())).await?;
            base
        }
        (given, _) => given,
    };
    let settings = roles.settings(base);
    let explanation = judge::judge(&member, &settings, role.as_deref(), &server);
    let granted = explanation.verdict == Verdict::Granted;
    let text = if json {
        serde_json::to_string_pretty(&explanation)? + "\n"
    } else {
        explanation.text()
    };
    Ok((text, granted))
}

/// What a server says of a pod, if one is there.
async fn ask(address: std::net::SocketAddr, uid: &str) -> Server {
    let request = Request::get(format!("{PATH}{uid}"))
        .header(header::HOST, "kiam-server")
        .body(Empty::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Server::Silent(error.to_string()),
    };
    let answer = http_client::send(address, request, MAX_ANSWER_BYTES);
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
            match serde_json::from_slice(answer.body()) {
                Ok(status) => Server::Knows(Box::new(status)),
                Err(error) => {
                    Server::Silent(format!("{address} speaks of something else: {error}"))
                }
            }
        }
        Ok(Ok(answer)) if answer.status() == StatusCode::NOT_FOUND => Server::Ignorant,
        Ok(Ok(answer)) => Server::Silent(format!("{address} answers {}", answer.status())),
        Ok(Err(error)) => Server::Silent(error.to_string()),
        Err(_elapsed) => Server::Silent(format!("{address} does not answer")),
    }
}

impl Explanation {
    /// For people.
    fn text(&self) -> String {
        let mut text = format!("pod {}: {}\n\n", self.pod, self.verdict.words());
        for Step {
            about,
            found,
            in_the_way,
        } in &self.steps
        {
            let mark = if *in_the_way { "no" } else { "ok" };
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {mark}  {about:<12} {found}");
        }
        if let Some(to_do) = &self.to_do {
            let _ = write!(text, "\nTo do: {to_do}\n");
        }
        text
    }
}

impl Verdict {
    const fn words(self) -> &'static str {
        match self {
            Self::Granted => "it gets its role's credentials",
            Self::NoRole => "it gets nothing, as no role is named for it",
            Self::Forbidden => "it gets nothing, as its role is refused",
            Self::OtherRole => "it does not get this role, which is not its own",
            Self::Undecided => "it gets nothing yet",
            Self::Failing => "it may have its role, and STS does not give the credentials",
        }
    }
}
