//! kiam v4's three calls. Every refusal is of the code `Unknown`, as its server's were, and some of
//! the texts are read by its agents: they must stay as they are.

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

use super::Holds;
use crate::clock::Clock;
use crate::cluster::{Cluster, Member};
use crate::decision;
use crate::policy::{self, Outcome, Settings};

/// `GetPodRole` knows no such pod.
const POD_NOT_FOUND: &str = "pod not found";
/// `GetPodCredentials` knows no such pod: agents compare this text, and try again.
const NO_POD_FOUND: &str = "no pod found";
/// Agents compare this text, and do not try again.
const FORBIDDEN: &str = "forbidden by policy";
const EMPTY_ROLE: &str = "role can't be empty";

/// Longer than STS takes, and shorter than agents wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug)]
pub struct LegacyService {
    cluster: Arc<Cluster>,
    settings: Arc<Settings>,
    holds: Holds,
    clock: Arc<dyn Clock>,
}

impl LegacyService {
    /// Answers by what `cluster` knows and `settings` say.
    #[must_use]
    pub fn new(
        cluster: Arc<Cluster>,
        settings: Arc<Settings>,
        holds: Holds,
        clock: Arc<dyn Clock>,
    ) -> Self {
        cluster.keep_addresses();
        Self {
            cluster,
            settings,
            holds,
            clock,
        }
    }

    fn find(&self, ip: &str) -> Option<Member> {
        let address: IpAddr = ip.parse().ok()?;
        self.cluster.at(address)
    }

    async fn credentials(&self, member: &Member, asked: &str) -> Result<Credentials, String> {
        if asked.is_empty() {
            return Err(EMPTY_ROLE.to_owned());
        }
        let outcome = policy::decide(member, &self.settings);
        let span = decision::span(&member.pod, &outcome);
        self.answer(member, outcome, asked).instrument(span).await
    }

    async fn answer(
        &self,
        member: &Member,
        outcome: Outcome,
        asked: &str,
    ) -> Result<Credentials, String> {
        let identity = match outcome {
            Outcome::NoRole => return Err(EMPTY_ROLE.to_owned()),
            Outcome::Undecided { awaiting } => {
                return Err(format!("{awaiting} is not known yet; try again"));
            }
            Outcome::Forbidden { role, reason } => {
                log(member, &role, &reason);
                return Err(FORBIDDEN.to_owned());
            }
            Outcome::Granted(identity) => identity,
        };
        let full = resolve(asked, self.settings.base_arn.as_ref());
        if full.as_ref() != Ok(&identity.role) && !identity.role.is_spelled(asked) {
            let role = format!("{asked:?}");
            log(member, &role, "it is not the pod's role");
            return Err(FORBIDDEN.to_owned());
        }
        let waited = tokio::time::timeout(PATIENCE, self.holds.ask(&identity)).await;
        let snapshot = waited
            .map_err(|_elapsed| format!("STS has not answered within {} s", PATIENCE.as_secs()))?;
        let now = self.clock.now();
        let valid = snapshot
            .credentials
            .filter(|credentials| credentials.expiration > now);
        match (valid, snapshot.failure) {
            (Some(credentials), _) => {
                tracing::info!(
                    pod.namespace = %member.pod.namespace,
                    pod.name = %member.pod.name,
                    pod.iam.role = %identity.role,
                    credentials.access.key = credentials.access_key_id,
                    "given to an agent of kiam v4"
                );
                Ok(written(&credentials))
            }
            (None, Some(failure)) => Err(failure.error.message.clone()),
            (None, None) => Err("the credentials have expired; try again".to_owned()),
        }
    }
}

#[tonic::async_trait]
impl KiamService for LegacyService {
    async fn get_pod_role(
        &self,
        request: Request<GetPodRoleRequest>,
    ) -> Result<Response<Role>, Status> {
        let member = self.find(&request.get_ref().ip);
        let member = member.ok_or_else(|| Status::unknown(POD_NOT_FOUND))?;
        // As annotated: the agent hands it to the pod, whose SDK asks for it.
        let role = policy::annotated(&member).map_or("", |(role, _)| role);
        Ok(Response::new(Role {
            name: role.to_owned(),
        }))
    }

    async fn get_pod_credentials(
        &self,
        request: Request<GetPodCredentialsRequest>,
    ) -> Result<Response<Credentials>, Status> {
        let GetPodCredentialsRequest { ip, role } = request.get_ref();
        let member = self.find(ip);
        let member = member.ok_or_else(|| Status::unknown(NO_POD_FOUND))?;
        let credentials = self.credentials(&member, role).await;
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

/// As kiam wrote them, and its agents hand them on.
fn written(credentials: &SessionCredentials) -> Credentials {
    // Secrets are wiped when dropped, so the message has no update syntax.
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

/// `2006-01-02T15:04:05Z`
fn seconds(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    // Downwards: credentials never seem to last longer than they do.
    let rounded = jiff::TimestampRound::new()
        .smallest(Unit::Second)
        .mode(jiff::RoundMode::Floor);
    time.round(rounded).unwrap_or(time).to_string()
}

fn log(member: &Member, role: &str, reason: &str) {
    tracing::warn!(
        pod.namespace = %member.pod.namespace,
        pod.name = %member.pod.name,
        pod.iam.requestedRole = role,
        policy.explanation = reason,
        "forbidden to an agent of kiam v4"
    );
}
