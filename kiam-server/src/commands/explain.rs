//! `kiam-server explain pod`: why a pod gets the credentials of its role, or why not and what to
//! do.

mod steps;
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

/// The limit for the response of a server.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_RESPONSE_BYTES: usize = 64 << 10;

/// The error of [`explain`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// A flag is invalid, or the client of the API cannot be created.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The pod cannot be looked up.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The report cannot be serialized.
    #[error("cannot serialize the report: {0}")]
    Report(#[from] serde_json::Error),
}

/// The result of an explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The policies grant the role, and no failure is known.
    Granted,
    /// Neither the pod nor its service account names a role.
    NoRole,
    /// A policy refuses the role.
    Forbidden,
    /// The requested role is not the role of the pod.
    OtherRole,
    /// The decision depends on something that is not known yet.
    Undecided,
    /// The role is granted, but STS does not issue its credentials.
    Failing,
}

/// One step of an explanation, in the order in which the steps decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The subject of the step.
    pub about: &'static str,
    /// The finding.
    pub found: String,
    /// True if the finding prevents the credentials.
    pub in_the_way: bool,
}

/// The explanation for one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `NAMESPACE/NAME`.
    pub pod: String,
    pub verdict: Verdict,
    pub steps: Vec<Step>,
    /// The remedy, if there is one.
    pub to_do: Option<String>,
}

/// The response of a running server.
#[derive(Debug)]
enum Server {
    /// The status of the pod.
    Status(Box<PodStatus>),
    /// The server does not know the pod.
    UnknownPod,
    /// There is no response, for this reason.
    Unreachable(String),
}

/// Explains a pod. Returns the text to print, and whether the pod gets its credentials.
///
/// # Errors
/// When the pod or the API cannot be read.
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
    let key = (name.namespace.as_str(), name.name.as_str());
    let given = roles.base_arn().await?;
    let mut context = lookup(
        client.clone(),
        key,
        &roles.permission_options(given.as_ref()),
    )
    .await?;
    let server = ask(server, context.pod.uid.as_str()).await;
    let base = match (given, &server) {
        (None, Server::Status(status)) => {
            let text = status.role_base_arn.as_deref();
            let base = text.and_then(|text| BaseArn::parse(text).ok());
            // The base ARN may complete names in the annotations of the namespace, too.
            context = lookup(client, key, &roles.permission_options(base.as_ref())).await?;
            base
        }
        (given, _) => given,
    };
    let settings = roles.settings(base);
    let explanation = steps::explain(&context, &settings, role.as_deref(), &server);
    let granted = explanation.verdict == Verdict::Granted;
    let text = if json {
        serde_json::to_string_pretty(&explanation)? + "\n"
    } else {
        explanation.text()
    };
    Ok((text, granted))
}

/// Asks a server for the status of a pod.
async fn ask(address: std::net::SocketAddr, uid: &str) -> Server {
    let request = Request::get(format!("{PATH}{uid}"))
        .header(header::HOST, "kiam-server")
        .body(Empty::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Server::Unreachable(error.to_string()),
    };
    let answer = http_client::send(address, request, MAX_RESPONSE_BYTES);
    match tokio::time::timeout(RESPONSE_TIMEOUT, answer).await {
        Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
            match serde_json::from_slice(answer.body()) {
                Ok(status) => Server::Status(Box::new(status)),
                Err(error) => Server::Unreachable(format!(
                    "{address} is not a server of this version: {error}"
                )),
            }
        }
        Ok(Ok(answer)) if answer.status() == StatusCode::NOT_FOUND => Server::UnknownPod,
        Ok(Ok(answer)) => {
            Server::Unreachable(format!("{address} responded with {}", answer.status()))
        }
        Ok(Err(error)) => Server::Unreachable(error.to_string()),
        Err(_elapsed) => Server::Unreachable(format!("no response from {address}")),
    }
}

impl Explanation {
    /// Formats the explanation for people.
    fn text(&self) -> String {
        let mut text = format!("pod {}: {}\n\n", self.pod, self.verdict.words());
        for Step {
            about,
            found,
            in_the_way,
        } in &self.steps
        {
            let mark = if *in_the_way { "no" } else { "ok" };
            // Writing to a String cannot fail.
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
            Self::Granted => "it gets the credentials of its role",
            Self::NoRole => "it gets no credentials, because it has no role",
            Self::Forbidden => "it gets no credentials, because its role is forbidden",
            Self::OtherRole => "it does not get this role, which is not the role of the pod",
            Self::Undecided => "it gets no credentials yet",
            Self::Failing => "its role is granted, but STS does not issue the credentials",
        }
    }
}
