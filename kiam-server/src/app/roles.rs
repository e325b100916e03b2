//! Settings that follow from the flags for roles and sessions.

use std::time::Duration;

use kiam_common::role::{BaseArn, RoleArn, resolve};

use super::StartError;
use crate::args::RoleFlags;
use crate::permitted::{Anchoring, Kube2iamOptions, PermissionOptions};
use crate::policy::{SessionSettings, Settings};
use crate::sts::StsSettings;

/// The longest session with role chaining (IAM User Guide, "Role chaining").
const LONGEST_CHAINED: Duration = Duration::from_secs(60 * 60);

impl RoleFlags {
    /// Returns which annotations of namespaces count. `base` completes kube2iam's short names.
    pub(crate) fn permission_options(&self, base: Option<&BaseArn>) -> PermissionOptions {
        let anchoring = if self.disable_strict_namespace_regexp {
            Anchoring::Part
        } else {
            Anchoring::Whole
        };
        let allowed = self.kube2iam_allowed_roles.then(|| Kube2iamOptions {
            base: base.cloned(),
        });
        PermissionOptions { anchoring, allowed }
    }

    /// Returns the base ARN: that of the flag, or the one detected on this machine.
    pub(crate) async fn base_arn(&self) -> Result<Option<BaseArn>, StartError> {
        if !self.role_base_arn_autodetect {
            return self.given_base_arn();
        }
        let base = crate::ec2::base_arn(None).await?;
        tracing::info!(base_arn = base.as_str(), "detected the base ARN of roles");
        Ok(Some(base))
    }

    fn given_base_arn(&self) -> Result<Option<BaseArn>, StartError> {
        let parse = |text: &String| {
            BaseArn::parse(text).map_err(|source| StartError::Role {
                flag: "role-base-arn",
                text: text.clone(),
                source,
            })
        };
        self.role_base_arn.as_ref().map(parse).transpose()
    }

    pub(super) fn sts(&self, base: Option<&BaseArn>) -> Result<StsSettings, StartError> {
        let role = |text: &String| -> Result<RoleArn, StartError> {
            resolve(text, base).map_err(|source| StartError::Role {
                flag: "assume-role-arn",
                text: text.clone(),
                source,
            })
        };
        // As in kiam, an empty value counts as unset.
        let asked = self
            .assume_role_arn
            .as_ref()
            .filter(|text| !text.is_empty());
        let assume_role = asked.map(role).transpose()?;
        for (flag, duration) in [
            ("session-duration", self.session_duration),
            ("max-session-duration", self.max_session_duration),
        ] {
            if assume_role.is_some() && duration > LONGEST_CHAINED {
                return Err(StartError::Chaining { flag, duration });
            }
        }
        Ok(StsSettings {
            assume_role,
            region: self.region.clone().filter(|region| !region.is_empty()),
            transitive_tags: self.transitive_session_tags,
        })
    }

    pub(crate) fn settings(&self, base_arn: Option<BaseArn>) -> Settings {
        Settings {
            base_arn,
            session: SessionSettings {
                name: self.session.clone(),
                duration: self.session_duration,
                longest: self.max_session_duration.max(self.session_duration),
                tags: self.session_tags.clone(),
                cluster: self.cluster_name.clone(),
                source_identity: self.source_identity,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;

    fn flags(flags: &[&str]) -> RoleFlags {
        let needed = ["kiam-server", "--cert=c", "--key=k", "--ca=a"];
        Args::parse_from(needed.iter().chain(flags)).roles
    }

    #[test]
    fn the_role_of_the_server_is_resolved_and_limits_sessions_to_one_hour() {
        const BASE: &str = "--role-base-arn=arn:aws:iam::123456789012:role/";
        let role = |arguments: &[&str]| {
            let flags = flags(arguments);
            flags
                .sts(flags.given_base_arn()?.as_ref())
                .map(|sts| sts.assume_role.map(|role| role.to_string()))
        };
        let failed = |arguments: &[&str]| role(arguments).unwrap_err();
        let arn = "arn:aws:iam::123456789012:role/kiam";
        assert_eq!(role(&[]).unwrap(), None);
        assert_eq!(role(&["--assume-role-arn="]).unwrap(), None);
        assert_eq!(
            role(&[BASE, "--assume-role-arn=kiam"]).unwrap().as_deref(),
            Some(arn)
        );
        for (arguments, part) in [
            (vec!["--assume-role-arn=kiam"], "--role-base-arn"),
            (
                vec!["--role-base-arn=arn:foo"],
                "invalid --role-base-arn \"arn:foo\"",
            ),
            (
                vec![BASE, "--assume-role-arn=kiam", "--session-duration=2h"],
                "role chaining",
            ),
            (
                vec![BASE, "--assume-role-arn=kiam", "--max-session-duration=2h"],
                "at most 1h",
            ),
        ] {
            let error = failed(&arguments).to_string();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
