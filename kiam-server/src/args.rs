//! The command line.

mod command;
mod compat;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kiam_common::duration;
use kiam_common::flags::{TelemetryFlags, TlsFlags};

use crate::policy::SessionTag;
use crate::report::AuditLog;
use crate::source::SourceFlag;
use crate::taint::Taint;
pub use command::{Cli, Command, ExplainArgs, Explained, HealthArgs, PodName};
pub use compat::CompatFlags;

/// Decides which pods may have which IAM roles, gets their credentials from STS, and streams them
/// to the agents of the pods' nodes.
#[derive(Debug, Clone, Parser)]
#[command(name = "kiam-server", version = kiam_common::cli::version(), after_help = AFTER_HELP)]
pub struct Args {
    /// Serve agents on this address
    #[arg(long, default_value = "127.0.0.1:9610", value_name = "ADDR:PORT")]
    pub bind: SocketAddr,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub tls: TlsFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub cluster: ClusterFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub nodes: NodeFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub roles: RoleFlags,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub telemetry: TelemetryFlags,

    /// Write a line of JSON for each grant, refusal and revocation of a pod's role: to stdout (where
    /// nothing else goes), to file:PATH, or off
    #[arg(
        long,
        default_value = "off",
        value_name = "WHERE",
        help_heading = "Logs and metrics"
    )]
    pub audit_log: AuditLog,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its type")]
    pub compat: CompatFlags,
}

const AFTER_HELP: &str = "\
The AWS SDK's environment variables hold: AWS_REGION, AWS_ENDPOINT_URL_STS, AWS_USE_FIPS_ENDPOINT,
AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_FULL_URI, …";

/// Where the cluster's objects come from.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// kubernetes, or file:PATH for a YAML file (or a folder of them) of the same objects
    #[arg(long, default_value = "kubernetes", value_name = "SOURCE")]
    pub source: SourceFlag,

    /// Reach the API as this file says; without it as a pod of the cluster, or as KUBECONFIG says
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// How agents prove their node.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Nodes")]
pub struct NodeFlags {
    /// How an agent proves which node it is on
    #[arg(long, value_enum, default_value_t = NodeAuthorization::Token)]
    pub node_authorization: NodeAuthorization,

    /// Serve agents of kiam v3 and v4 too, while a cluster is migrated. They prove no node: any
    /// certificate of --ca is good for any pod's credentials
    #[arg(long)]
    pub legacy_agents: bool,

    /// The audience that agents' tokens must be meant for
    #[arg(long, default_value = "kiam-server", value_name = "NAME")]
    pub token_audience: String,

    /// End node streams after about this long, so that agents spread over new servers
    #[arg(long, default_value = "30m", value_parser = duration::parse, value_name = "DURATION")]
    pub grpc_max_connection_age_duration: Duration,

    /// The service account that agents run as
    #[arg(
        long,
        default_value = "kube-system/kiam-agent",
        value_name = "NAMESPACE/NAME"
    )]
    pub agent_service_account: ServiceAccountName,

    /// Take this taint off nodes once their agents guard them, as in
    /// kiam.io/agent-not-ready:NoSchedule, and put it back when the agent is gone
    #[arg(long, value_name = "KEY[:EFFECT]")]
    pub node_taint: Option<Taint>,

    /// Put the taint back when a node has had no agent's pod for this long
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub node_taint_after: Duration,
}

/// How an agent proves which node it is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeAuthorization {
    /// By its pod's service-account token, checked with the Kubernetes API
    Token,
    /// By the name in its certificate: NODE.node.kiam, or spiffe://DOMAIN/node/NODE
    Certificate,
    /// Not at all: every agent may ask for every node
    None,
}

/// How roles are named and sessions made.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Roles and sessions")]
pub struct RoleFlags {
    /// Completes short role names, as in arn:aws:iam::123456789012:role/
    #[arg(long, value_name = "ARN")]
    pub role_base_arn: Option<String>,

    /// Complete short role names with the account and partition of this machine's instance profile,
    /// asked for at start by IMDSv2
    #[arg(long, conflicts_with = "role_base_arn")]
    pub role_base_arn_autodetect: bool,

    /// Names the sessions of pods that name none, behind kiam-
    #[arg(long, default_value = "kiam", value_name = "NAME")]
    pub session: String,

    /// How long sessions last
    #[arg(long, default_value = "60m", value_parser = duration::parse, value_name = "DURATION")]
    pub session_duration: Duration,

    /// How long before their end sessions are renewed
    #[arg(long, default_value = "30m", value_parser = duration::parse, value_name = "DURATION")]
    pub session_refresh: Duration,

    /// The longest session that a pod may ask for by iam.amazonaws.com/session-duration; AWS allows
    /// one hour to servers whose own credentials are of a role
    #[arg(long, default_value = "60m", value_parser = duration::parse, value_name = "DURATION")]
    pub max_session_duration: Duration,

    /// Assume this role first (a name or an ARN), and the pods' roles from it
    #[arg(long, value_name = "ROLE")]
    pub assume_role_arn: Option<String>,

    /// Ask the STS of this region; else as the AWS SDK's environment says, else us-east-1
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// Let namespaces' expressions match any part of a role's ARN, as kiam before v4 did
    #[arg(long)]
    pub disable_strict_namespace_regexp: bool,

    /// Read kube2iam's annotation iam.amazonaws.com/allowed-roles of namespaces, too: a JSON list of
    /// names, paths or ARNs, in which a * stands for anything. What either annotation permits is
    /// permitted
    #[arg(long)]
    pub kube2iam_allowed_roles: bool,

    /// Tag sessions with these, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TAGS")]
    pub session_tags: Vec<SessionTag>,

    /// Let sessions that pods make from theirs carry the same tags
    #[arg(long, requires = "session_tags")]
    pub transitive_session_tags: bool,

    /// The cluster's name, for the session tag cluster-name
    #[arg(
        long,
        default_value = "",
        value_name = "NAME",
        required_if_eq("session_tags", "cluster-name")
    )]
    pub cluster_name: String,

    /// Make NAMESPACE.SERVICE-ACCOUNT the sessions' source identity, which roles' trust policies must
    /// allow (sts:SetSourceIdentity)
    #[arg(long)]
    pub source_identity: bool,
}

/// Namespace and name of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Why a text names no service account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write NAMESPACE/NAME")]
pub struct ServiceAccountNameError;

impl FromStr for ServiceAccountName {
    type Err = ServiceAccountNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(ServiceAccountNameError),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, clap::Error> {
        let needed = ["kiam-server", "--cert=c", "--key=k", "--ca=a"];
        Args::try_parse_from(needed.iter().chain(flags))
    }

    #[test]
    fn flags_that_need_others_say_so() {
        let args = parse(&[
            "--session-tags=namespace,pod-name",
            "--transitive-session-tags",
        ]);
        assert_eq!(args.unwrap().roles.session_tags.len(), 2);
        for (flags, part) in [
            (vec!["--transitive-session-tags"], "--session-tags"),
            (vec!["--session-tags=cluster-name"], "--cluster-name"),
            (vec!["--session-tags=colour"], "possible values"),
            (vec!["--session-duration=15"], "15m"),
            (vec!["--sesion=x"], "--session"),
            (
                vec!["--role-base-arn=x", "--role-base-arn-autodetect"],
                "cannot be used with",
            ),
            (vec!["--source=files"], "file:PATH"),
            (
                vec!["--audit-log=/var/log/kiam"],
                "stdout, file:PATH or off",
            ),
            (vec!["--agent-service-account=x"], "NAMESPACE/NAME"),
            (vec!["--node-taint=kiam.io/x=y:NoSchedule"], "KEY:EFFECT"),
            (vec!["--node-taint=kiam.io/x:Never"], "NoExecute"),
        ] {
            let error = parse(&flags).unwrap_err().to_string();
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }

    #[test]
    fn kiam_s_own_manifest_starts_it() {
        // kiam v4.2, deploy/server.daemonset.yaml.
        let args = parse(&[
            "--json-log",
            "--level=warn",
            "--bind=0.0.0.0:443",
            "--role-base-arn-autodetect",
            "--sync=1m",
            "--prometheus-listen-addr=0.0.0.0:9620",
            "--prometheus-sync-interval=5s",
        ]);
        let given = args.unwrap().compat.given();
        let flags: Vec<_> = given.into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(flags, ["--sync", "--prometheus-sync-interval"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
