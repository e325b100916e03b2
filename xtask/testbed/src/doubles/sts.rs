//! AWS STS, as far as kiam and its pods use it: `AssumeRole` and `GetCallerIdentity` over the
//! real Query protocol.
//!
//! It checks every signature against the keys that it gave out, so who a caller is comes from
//! what the caller can sign, not from what it says.

mod error;
mod issued;
mod request;
mod s3;
mod xml;

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};

use super::http::{self as server, Answer, Traffic};
use super::sigv4::{self, Authorization, Keys, TOKEN_HEADER};
use crate::sandbox::Guest;
use error::StsError;
pub use issued::Record;
use issued::{Issued, Principal};
use request::{Action, AssumeRole};
pub use s3::S3;

/// The account of the server's user, and of every role in examples.
pub const ACCOUNT: &str = "123456789012";

/// Signatures are good for this long around the time that they carry.
const SIGNATURE_AGE: SignedDuration = SignedDuration::from_mins(15);
/// Older calls are counted, and their details forgotten.
const MAX_CALLS: usize = 100_000;
const HANG: Duration = Duration::from_secs(3600);

/// Behavior towards calls for a role.
#[derive(Debug, Clone, Default)]
pub struct Behavior {
    /// Time until the answer.
    pub latency: Duration,
    /// Failure in place of an answer.
    pub fault: Option<Fault>,
    /// The credentials' life, in place of what was asked for; a negative one has ended.
    pub lifetime: Option<SignedDuration>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
}

/// Failure in place of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The error for a trust policy that does not name the caller, and for a role that does not exist.
    AccessDenied,
    /// Too many calls.
    Throttling,
    /// A failure of AWS's own.
    InternalFailure,
    /// A failure in front of the service.
    ServiceUnavailable,
    /// An answer that is no XML.
    Garbage,
    /// An answer without credentials.
    NoCredentials,
    /// The connection is closed without an answer.
    Disconnect,
    /// There is no answer for an hour.
    Hang,
}

/// A call to `AssumeRole`.
#[derive(Debug, Clone)]
pub struct Call {
    /// The role.
    pub role: String,
    /// The session's name.
    pub session: String,
    /// The external id.
    pub external_id: Option<String>,
    /// Requested duration of the session, in seconds.
    pub seconds: u32,
    /// The session's tags.
    pub tags: Vec<(String, String)>,
    /// The credentials that were issued.
    pub result: Result<String, String>,
}

/// A request that was signed with keys that were given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The access key.
    pub access_key: String,
    /// The role's session that it was given to.
    pub arn: String,
}

/// An STS that serves until it is dropped.
#[derive(Debug)]
pub struct Sts {
    address: SocketAddr,
    traffic: Arc<Traffic>,
    state: Arc<State>,
    _server: Guest,
}

#[derive(Debug, Default)]
struct State {
    issued: Mutex<Issued>,
    behavior: Mutex<HashMap<Option<String>, Behavior>>,
    calls: Mutex<(u64, VecDeque<Call>)>,
    signed: Mutex<VecDeque<Signed>>,
}

impl Sts {
    /// Serves a socket.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let address = listener
            .local_addr()
            .context("cannot read a socket's address")?;
        let state = Arc::new(State::default());
        let traffic = Arc::new(Traffic::default());
        let answering = Arc::clone(&state);
        let answer = move |request| Arc::clone(&answering).answer(request);
        let server = server::serve("sts", vec![listener], Arc::clone(&traffic), answer)?;
        Ok(Self {
            address,
            traffic,
            state,
            _server: server,
        })
    }

    /// URL of the double, for `AWS_ENDPOINT_URL_STS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The keys of the user that kiam-server runs as: the only one who may assume roles.
    pub fn server_keys(&self) -> Keys {
        lock(&self.state.issued).server_keys()
    }

    /// ARN of the holder of these keys, found by a request that is signed with them.
    ///
    /// # Errors
    /// The code of STS's refusal.
    pub fn identify(&self, keys: &Keys) -> Result<String, String> {
        let mut request = Request::post("/")
            .header(http::header::HOST, self.address.to_string())
            .body(Bytes::from_static(
                b"Action=GetCallerIdentity&Version=2011-06-15",
            ))
            .map_err(|error| error.to_string())?;
        sigv4::add_signature(&mut request, keys, "us-east-1", "sts", Timestamp::now());
        let caller = self.state.authenticate("sts", &request);
        caller
            .map(|caller| caller.arn)
            .map_err(|error| error.code().to_owned())
    }

    /// The credentials that were issued under an access key, if they were issued here.
    pub fn record(&self, access_key: &str) -> Option<Record> {
        lock(&self.state.issued).record(access_key)
    }

    /// The secret keys and session tokens that were given out in the last hour.
    pub fn secrets(&self) -> Vec<String> {
        lock(&self.state.issued).secrets()
    }

    /// Sets its behavior towards one role, or towards all others with `None`.
    pub fn behave(&self, role: Option<&str>, behavior: Behavior) {
        let role = role.map(str::to_owned);
        lock(&self.state.behavior).insert(role, behavior);
    }

    /// Number of calls of `AssumeRole`, successful or not.
    pub fn assume_role_calls(&self) -> u64 {
        lock(&self.state.calls).0
    }

    /// The last calls of `AssumeRole`, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state.calls).1.iter().cloned().collect()
    }

    /// Serves a socket as S3, which knows the same keys.
    ///
    /// # Errors
    /// When it cannot be served.
    pub fn s3(&self, listener: TcpListener) -> Result<S3> {
        S3::start(Arc::clone(&self.state), listener)
    }

    /// Takes the requests for who one is and for what S3 holds, that a role's sessions have signed
    /// since the last time, oldest first.
    pub fn take_signed(&self, role: &str) -> Vec<Signed> {
        let infix = format!(":assumed-role/{role}/");
        let mut all = lock(&self.state.signed);
        let of_role = |signed: &Signed| signed.arn.contains(&infix);
        let taken = all
            .iter()
            .filter(|signed| of_role(signed))
            .cloned()
            .collect();
        all.retain(|signed| !of_role(signed));
        taken
    }

    /// Traffic that has arrived.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Bytes>) -> Answer {
        let id = xml::request_id();
        let result = match self.action(&request) {
            Ok((Action::GetCallerIdentity, caller)) => {
                self.note_signed(&request, &caller);
                Ok(xml::caller_identity(&caller, &id))
            }
            Ok((Action::AssumeRole(wanted), caller)) => {
                let behavior = self.behavior(&wanted.role);
                tokio::time::sleep(behavior.latency).await;
                match behavior.fault {
                    Some(Fault::Disconnect) => {
                        self.note(&wanted, Err("no answer".into()));
                        return None;
                    }
                    Some(Fault::Hang) => {
                        self.note(&wanted, Err("no answer".into()));
                        tokio::time::sleep(HANG).await;
                        return None;
                    }
                    _ => {}
                }
                self.assume(&wanted, &caller, &behavior, &id)
            }
            Err(error) => Err(error),
        };
        let (status, body) = match result {
            Ok(body) => (http::StatusCode::OK, body),
            Err(error) => (error.status(), xml::error(&error, &id)),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let xml = http::HeaderValue::from_static("text/xml");
        headers.insert(http::header::CONTENT_TYPE, xml);
        if let Ok(id) = id.parse() {
            headers.insert("x-amzn-requestid", id);
        }
        Some(response)
    }

    /// The request and its caller.
    fn action(&self, request: &Request<Bytes>) -> Result<(Action, Principal), StsError> {
        let caller = self.authenticate("sts", request)?;
        Ok((Action::parse(request)?, caller))
    }

    fn authenticate(&self, service: &str, request: &Request<Bytes>) -> Result<Principal, StsError> {
        let authorization = Authorization::parse(request.headers())?;
        let issued = lock(&self.issued);
        let (keys, principal) = issued
            .find(&authorization.access_key)
            .ok_or(StsError::InvalidClientTokenId)?;
        let token = request
            .headers()
            .get(TOKEN_HEADER)
            .map(http::HeaderValue::as_bytes);
        if token != keys.session_token.as_deref().map(str::as_bytes) {
            return Err(StsError::InvalidClientTokenId);
        }
        if !authorization.is_by(&keys.secret_key, service, request) {
            return Err(StsError::SignatureDoesNotMatch);
        }
        let now = Timestamp::now();
        if authorization.time.duration_until(now).abs() > SIGNATURE_AGE {
            return Err(StsError::SignatureExpired(authorization.time));
        }
        if principal.expired(now) {
            return Err(StsError::ExpiredToken);
        }
        Ok(principal.clone())
    }

    fn note_signed(&self, request: &Request<Bytes>, caller: &Principal) {
        if let Ok(authorization) = Authorization::parse(request.headers()) {
            let mut signed = lock(&self.signed);
            if signed.len() == MAX_CALLS {
                signed.pop_front();
            }
            signed.push_back(Signed {
                access_key: authorization.access_key,
                arn: caller.arn.clone(),
            });
        }
    }

    fn behavior(&self, role: &str) -> Behavior {
        let behavior = lock(&self.behavior);
        let of_role = behavior.get(&Some(role.to_owned()));
        of_role
            .or_else(|| behavior.get(&None))
            .cloned()
            .unwrap_or_default()
    }

    fn assume(
        &self,
        wanted: &AssumeRole,
        caller: &Principal,
        behavior: &Behavior,
        id: &str,
    ) -> Result<String, StsError> {
        let denied = || StsError::AssumeRoleDenied {
            caller: caller.arn.clone(),
            role: wanted.role.clone(),
        };
        let trusts = behavior.external_id.is_none() || behavior.external_id == wanted.external_id;
        let result = match behavior.fault {
            None if !trusts || !caller.may_assume_roles() => Err(denied()),
            None => Ok(()),
            Some(Fault::AccessDenied) => Err(denied()),
            Some(Fault::Throttling) => Err(StsError::Throttling),
            Some(Fault::InternalFailure) => Err(StsError::InternalFailure),
            Some(Fault::ServiceUnavailable) => Err(StsError::ServiceUnavailable),
            Some(Fault::Garbage) => {
                self.note(wanted, Err("garbage".into()));
                return Ok("<AssumeRoleResponse><Cred".to_owned());
            }
            Some(Fault::NoCredentials) => {
                self.note(wanted, Err("no credentials".into()));
                return Ok(xml::assumed_nothing(id));
            }
            Some(Fault::Disconnect | Fault::Hang) => unreachable!("there is no answer then"),
        };
        if let Err(error) = result {
            self.note(wanted, Err(error.code().to_owned()));
            return Err(error);
        }
        let asked = SignedDuration::from_secs(wanted.seconds.into());
        let expiration = Timestamp::now() + behavior.lifetime.unwrap_or(asked);
        let (keys, principal) = lock(&self.issued).issue(wanted, expiration);
        self.note(wanted, Ok(keys.access_key.clone()));
        Ok(xml::assumed_role(wanted, &keys, &principal, expiration, id))
    }

    fn note(&self, wanted: &AssumeRole, result: Result<String, String>) {
        let (count, calls) = &mut *lock(&self.calls);
        *count += 1;
        if calls.len() == MAX_CALLS {
            calls.pop_front();
        }
        calls.push_back(Call {
            role: wanted.role.clone(),
            session: wanted.session.clone(),
            external_id: wanted.external_id.clone(),
            seconds: wanted.seconds,
            tags: wanted.tags.clone(),
            result,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
