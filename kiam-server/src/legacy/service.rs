//! The three calls of kiam v4. As in its server, all errors have the code `Unknown`. Its agents
//! compare some of the texts, which must not change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};
use kiam_common::api::legacy::kiam_service_server::KiamService;
use kiam_common::api::legacy::{
    Credentials, GetHealthRequest, GetPodCredentialsRequest, GetPodRoleRequest, HealthStatus, Role,
};
use kiam_common::credentials::SessionCredentials;
use kiam_common::role::resolve;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::Leases;
use crate::clock::Clock;
use crate::cluster::{Cluster, PodContext};
use crate::decision_log;
use crate::policy::{self, Outcome, Settings};

/// `GetPodRole` found no pod.
const POD_NOT_FOUND: &str = "pod not found";
/// `GetPodCredentials` found no pod. Agents compare this text, and retry.
const NO_POD_FOUND: &str = "no pod found";
/// Agents compare this text, and do not retry.
const FORBIDDEN: &str = "forbidden by policy";
const EMPTY_ROLE: &str = "role can't be empty";

/// The limit for the response of STS: longer than STS takes, and shorter than agents wait.
const STS_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC service of kiam v4.
#[derive(Debug)]
pub(crate) struct LegacyService {
    cluster: Arc<Cluster>,
    settings: Arc<Settings>,
    leases: Leases,
    clock: Arc<dyn Clock>,
}

impl LegacyService {
    /// Decides about the pods in `cluster` according to `settings`.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        settings: Arc<Settings>,
        leases: Leases,
        clock: Arc<dyn Clock>,
    ) -> Self {
        cluster.index_addresses();
        Self {
            cluster,
            settings,
            leases,
            clock,
        }
    }

    fn find(&self, ip: &str) -> Option<PodContext> {
        let address: IpAddr = ip.parse().ok()?;
        self.cluster.by_address(address)
    }

    async fn credentials(&self, context: &PodContext, asked: &str) -> Result<Credentials, String> {
        if asked.is_empty() {
            return Err(EMPTY_ROLE.to_owned());
        }
        let outcome = policy::decide(context, &self.settings);
        let span = decision_log::span(&context.pod, &outcome);
        self.answer(context, outcome, asked).instrument(span).await
    }

    async fn answer(
        &self,
        context: &PodContext,
        outcome: Outcome,
        asked: &str,
    ) -> Result<Credentials, String> {
        let identity = match outcome {
            Outcome::NoRole => return Err(EMPTY_ROLE.to_owned()),
            Outcome::Undecided { awaiting } => {
                return Err(format!("{awaiting} is not known yet; retry"));
            }
            Outcome::Forbidden { role, reason } => {
                log(context, &role, &reason);
                return Err(FORBIDDEN.to_owned());
            }
            Outcome::Granted(identity) => identity,
        };
        let full = resolve(asked, self.settings.base_arn.as_ref());
        if full.as_ref() != Ok(&identity.role) && !identity.role.matches(asked) {
            let role = format!("{asked:?}");
            log(context, &role, "it is not the role of the pod");
            return Err(FORBIDDEN.to_owned());
        }
        let waited = tokio::time::timeout(STS_TIMEOUT, self.leases.get(&identity)).await;
        let snapshot = waited.map_err(|_elapsed| {
            format!("STS did not respond within {} s", STS_TIMEOUT.as_secs())
        })?;
        let now = self.clock.now();
        let valid = snapshot
            .credentials
            .filter(|credentials| credentials.expiration > now);
        match (valid, snapshot.failure) {
            (Some(credentials), _) => {
                tracing::info!(
                    pod.namespace = %context.pod.namespace,
                    pod.name = %context.pod.name,
                    pod.iam.role = %identity.role,
                    credentials.access.key = credentials.access_key_id,
                    "sent credentials to an agent of kiam v4"
                );
                Ok(message(&credentials))
            }
            (None, Some(failure)) => Err(failure.error.message.clone()),
            (None, None) => Err("the credentials have expired; retry".to_owned()),
        }
    }
}

#[tonic::async_trait]
impl KiamService for LegacyService {
    async fn get_pod_role(
        &self,
        request: Request<GetPodRoleRequest>,
    ) -> Result<Response<Role>, Status> {
        let context = self.find(&request.get_ref().ip);
        let context = context.ok_or_else(|| Status::unknown(POD_NOT_FOUND))?;
        // The unresolved annotation: the agent lists it to the pod, whose SDK requests it.
        let role = policy::annotated(&context).map_or("", |(role, _)| role);
        Ok(Response::new(Role {
            name: role.to_owned(),
        }))
    }

    async fn get_pod_credentials(
        &self,
        request: Request<GetPodCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let GetPodCredentialsRequest { ip, role } = request.get_ref();
        let context = self.find(ip);
        let context = context.ok_or_else(|| Status::unknown(NO_POD_FOUND))?;
        let credentials = self.credentials(&context, role).await;
        credentials.map(Response::new).map_err(Status::unknown)
    }

    async fn get_health(
        &self,
        _request: Request<GetHealthRequest>,
    ) -> Result<Response<HealthStatus>, Status> {
        Ok(Response::new(HealthStatus {
            message: "ok".to_owned(),
        }))
    }
}

/// Converts credentials into kiam's message, which its agents pass on to pods.
fn message(credentials: &SessionCredentials) -> Credentials {
    // Struct update syntax is impossible for a type that implements Drop.
    let mut message = Credentials::default();
    "Success".clone_into(&mut message.code);
    "AWS-HMAC".clone_into(&mut message.r#type);
    credentials
        .access_key_id
        .clone_into(&mut message.access_key_id);
    credentials
        .secret_access_key
        .expose()
        .clone_into(&mut message.secret_access_key);
    credentials
        .session_token
        .expose()
        .clone_into(&mut message.token);
    message.expiration = seconds(credentials.expiration);
    message.last_updated = seconds(credentials.issued);
    message
}

/// Formats a time as `2006-01-02T15:04:05Z`.
fn seconds(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    // Rounded down: credentials must not appear to expire later than they do.
    let rounded = jiff::TimestampRound::new()
        .smallest(Unit::Second)
        .mode(jiff::RoundMode::Floor);
    time.round(rounded).unwrap_or(time).to_string()
}

fn log(context: &PodContext, role: &str, reason: &str) {
    tracing::warn!(
        pod.namespace = %context.pod.namespace,
        pod.name = %context.pod.name,
        pod.iam.requestedRole = role,
        policy.explanation = reason,
        "refused credentials to an agent of kiam v4"
    );
}
