//! A pod of a snapshot, with everything that an answer to it needs.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use kiam_common::outcome::Outcome;
use kiam_common::role::RoleArn;

use super::credentials::Issued;
use super::update::{Failure, PodFacts};

/// A pod and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Properties of the pod.
    pub facts: Arc<PodFacts>,
    /// The decision of the policies, with credentials.
    pub outcome: Outcome<Grant>,
}

/// A granted role, and its credentials if they have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: RoleArn,
    /// Name of the role, as the metadata service lists it.
    pub listing: Bytes,
    /// The newest credentials, expired or not.
    pub issued: Option<Arc<Issued>>,
    /// The last failure to get newer ones, if they failed since.
    pub failure: Option<Arc<Failure>>,
}

impl Pod {
    /// Returns whether `source` can be an address of this pod: false only if its addresses are
    /// known and `source` is not among them.
    pub(crate) fn may_call_from(&self, source: IpAddr) -> bool {
        let PodFacts {
            addresses,
            host_network,
            ..
        } = &*self.facts;
        *host_network || addresses.is_empty() || addresses.contains(&source.to_canonical())
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.facts.namespace, self.facts.name)
    }
}

impl Grant {
    /// Returns the credentials if AWS still accepts them at `now`.
    pub fn valid(&self, now: SystemTime) -> Option<&Arc<Issued>> {
        self.issued
            .as_ref()
            .filter(|issued| issued.expiration() > now)
    }

    /// Returns whether a client's spelling means this role: its name, its path and name or the end
    /// of these, or its ARN.
    pub fn is(&self, spelling: &str) -> bool {
        self.role.matches(spelling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(role: &str) -> Grant {
        let role = RoleArn::parse(role).unwrap();
        Grant {
            listing: Bytes::copy_from_slice(role.name().as_bytes()),
            role,
            issued: None,
            failure: None,
        }
    }

    #[test]
    fn a_role_is_recognized_in_all_its_spellings() {
        let grant = grant("arn:aws:iam::123456789012:role/base/team/reader");
        for own in [
            "reader",
            "team/reader",
            "base/team/reader",
            "arn:aws:iam::123456789012:role/base/team/reader",
        ] {
            assert!(grant.is(own), "{own}");
        }
        for other in [
            "",
            "/",
            "Reader",
            "eader",
            "m/reader",
            "role/base/team/reader",
            "team",
            "reader/",
            "base/reader",
            "arn:aws:iam::123456789012:role/reader",
            "arn:aws:iam::210987654321:role/base/team/reader",
        ] {
            assert!(!grant.is(other), "{other}");
        }
    }

    #[test]
    fn known_addresses_are_checked_in_either_form() {
        let facts = PodFacts {
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
            service_account: "s".into(),
            addresses: Box::new(["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            host_network: false,
            static_hash: None,
        };
        let pod = |facts| Pod {
            facts: Arc::new(facts),
            outcome: Outcome::NoRole,
        };
        let known = pod(facts.clone());
        for (source, expected) in [
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("fd00::1", true),
            ("10.0.0.2", false),
        ] {
            assert_eq!(known.may_call_from(source.parse().unwrap()), expected);
        }
        let anywhere = "10.9.9.9".parse().unwrap();
        let host_network = PodFacts {
            host_network: true,
            ..facts.clone()
        };
        assert!(pod(host_network).may_call_from(anywhere));
        let unpublished = PodFacts {
            addresses: Box::new([]),
            ..facts
        };
        assert!(pod(unpublished).may_call_from(anywhere));
    }
}
