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
/// to the agents on the nodes of the pods.
#[derive(Debug, Clone, Parser)]
#[command(name = "kiam-server", version = kiam_common::cli::version(), after_help = AFTER_HELP)]
pub struct Args {
    /// Serve agents on this address
    #[arg(long, default_value = "127.0.0.1:9610", value_name = "ADDR:PORT")]
    pub bind: SocketAddr,

    #[command(flatten)]
    pub tls: TlsFlags,

    #[command(flatten)]
    pub cluster: ClusterFlags,

    #[command(flatten)]
    pub nodes: NodeFlags,

    #[command(flatten)]
    pub roles: RoleFlags,

    #[command(flatten)]
    pub telemetry: TelemetryFlags,

    /// Write the audit log to stdout, to file:PATH, or nowhere (off)
    ///
    /// The audit log has one line of JSON for each grant, refusal and revocation of a pod's role.
    /// Nothing else is written to stdout.
    #[arg(
        long,
        default_value = "off",
        value_name = "WHERE",
        help_heading = "Logs and metrics"
    )]
    pub audit_log: AuditLog,

    #[command(flatten)]
    pub compat: CompatFlags,
}

const AFTER_HELP: &str = "\
The environment variables of the AWS SDK apply: AWS_REGION, AWS_ENDPOINT_URL_STS,
AWS_USE_FIPS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_WEB_IDENTITY_TOKEN_FILE,
AWS_CONTAINER_CREDENTIALS_FULL_URI, …";

/// Flags for the source of the objects of the cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// Read the objects of the cluster from kubernetes, or from file:PATH
    ///
    /// PATH is a YAML file of Kubernetes objects, or a folder of such files.
    #[arg(long, default_value = "kubernetes", value_name = "SOURCE")]
    pub source: SourceFlag,

    /// Use this kubeconfig. Without it: the one in KUBECONFIG, or the service account of the pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Flags for agents and their nodes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Nodes")]
pub struct NodeFlags {
    /// Proof that an agent gives of the node that it runs on
    #[arg(long, value_enum, default_value_t = NodeAuthorization::Token)]
    pub node_authorization: NodeAuthorization,

    /// Also serve agents of kiam v3 and v4, during a migration
    ///
    /// These agents do not prove their node: with any certificate of --ca they can get the
    /// credentials of any pod.
    #[arg(long)]
    pub legacy_agents: bool,

    /// Audience that the tokens of agents must have
    #[arg(long, default_value = "kiam-server", value_name = "NAME")]
    pub token_audience: String,

    /// Close node streams after about this time, so that agents spread over new servers
    #[arg(long, default_value = "30m", value_parser = duration::parse, value_name = "DURATION")]
    pub grpc_max_connection_age_duration: Duration,

    /// Service account of the agents
    #[arg(
        long,
        default_value = "kube-system/kiam-agent",
        value_name = "NAMESPACE/NAME"
    )]
    pub agent_service_account: ServiceAccountName,

    /// Remove this taint from nodes whose agent guards them, and add it when the agent is gone
    ///
    /// For example kiam.io/agent-not-ready:NoSchedule.
    #[arg(long, value_name = "KEY[:EFFECT]")]
    pub node_taint: Option<Taint>,

    /// Add the taint to a node that has had no pod of an agent for this time
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "DURATION")]
    pub node_taint_after: Duration,
}

/// The proof that an agent gives of the node that it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NodeAuthorization {
    /// The service account token of its pod, reviewed by the Kubernetes API
    Token,
    /// A name in its certificate: NODE.node.kiam, or spiffe://DOMAIN/node/NODE
    Certificate,
    /// No proof: every agent may ask for every node
    None,
}

/// Flags for roles and sessions.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Roles and sessions")]
pub struct RoleFlags {
    /// Prefix that completes short role names, for example arn:aws:iam::123456789012:role/
    #[arg(long, value_name = "ARN")]
    pub role_base_arn: Option<String>,

    /// Complete short role names with the account and partition of the instance profile of this
    /// machine
    ///
    /// They are read from the metadata service at start, with IMDSv2.
    #[arg(long, conflicts_with = "role_base_arn")]
    pub role_base_arn_autodetect: bool,

    /// Session name, after kiam-, for pods without the annotation iam.amazonaws.com/session-name
    #[arg(long, default_value = "kiam", value_name = "NAME")]
    pub session: String,

    /// Duration of sessions
    #[arg(long, default_value = "60m", value_parser = duration::parse, value_name = "DURATION")]
    pub session_duration: Duration,

    /// Renew sessions this long before they expire
    #[arg(long, default_value = "30m", value_parser = duration::parse, value_name = "DURATION")]
    pub session_refresh: Duration,

    /// Longest duration that a pod may request with iam.amazonaws.com/session-duration
    ///
    /// AWS allows at most one hour if the credentials of the server are those of a role.
    #[arg(long, default_value = "60m", value_parser = duration::parse, value_name = "DURATION")]
    pub max_session_duration: Duration,

    /// Assume this role (a name or an ARN) first, and the roles of pods from it
    #[arg(long, value_name = "ROLE")]
    pub assume_role_arn: Option<String>,

    /// Use STS in this region. Without it: the region of the AWS SDK's environment, or us-east-1
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// Let the expressions of namespaces match any part of a role ARN, as in kiam before v4
    #[arg(long)]
    pub disable_strict_namespace_regexp: bool,

    /// Also read kube2iam's annotation iam.amazonaws.com/allowed-roles of namespaces
    ///
    /// The annotation is a JSON list of role names, paths or ARNs, in which * matches anything. A
    /// role is permitted if either annotation permits it.
    #[arg(long)]
    pub kube2iam_allowed_roles: bool,

    /// Session tags, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TAGS")]
    pub session_tags: Vec<SessionTag>,

    /// Make the session tags transitive: sessions that a pod creates from its own inherit them
    #[arg(long, requires = "session_tags")]
    pub transitive_session_tags: bool,

    /// Name of the cluster, for the session tag cluster-name
    #[arg(
        long,
        default_value = "",
        value_name = "NAME",
        required_if_eq("session_tags", "cluster-name")
    )]
    pub cluster_name: String,

    /// Set the source identity of sessions to NAMESPACE.SERVICE-ACCOUNT
    ///
    /// The trust policies of the roles must allow sts:SetSourceIdentity.
    #[arg(long)]
    pub source_identity: bool,
}

/// Namespace and name of a service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountName {
    pub namespace: String,
    pub name: String,
}

/// The error of a text that is not NAMESPACE/NAME.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected NAMESPACE/NAME")]
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
    fn invalid_flags_are_rejected_with_a_hint() {
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
    fn the_flags_of_kiam_are_accepted() {
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
