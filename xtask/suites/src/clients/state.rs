//! States in which clients are tried, and the expected result of each.

use clap::ValueEnum;

const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";

/// A state of kiam, or of a pod, that a client meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// The pod has a role that its namespace permits.
    Granted,
    /// The pod's role is refused by a policy.
    Refused,
    /// The pod has no role.
    NoRole,
    /// The agent is restarted and the credentials are rotated, while the client lives on.
    Restarted,
    /// Many clients in one pod send requests at once.
    Many,
    /// The agent requires IMDSv2.
    ImdsV2,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v1/credentials`
    RelativeUri,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI` with an address; only reported.
    FullUri,
    /// The agent runs with `--legacy-redirects`; only reported.
    LegacyRedirects,
}

/// Flags that the agent is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agents {
    /// Defaults, for most states.
    Usual,
    /// `--imds-v2=required`
    ImdsV2,
    /// `--legacy-redirects`
    LegacyRedirects,
}

impl State {
    /// All, in the order of the table.
    pub(super) const ALL: [Self; 9] = [
        Self::Granted,
        Self::Refused,
        Self::NoRole,
        Self::Restarted,
        Self::Many,
        Self::ImdsV2,
        Self::RelativeUri,
        Self::FullUri,
        Self::LegacyRedirects,
    ];

    /// The heading of its column.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::NoRole => "no role",
            Self::Restarted => "restarted",
            Self::Many => "many at once",
            Self::ImdsV2 => "IMDSv2 only",
            Self::RelativeUri => "`RELATIVE_URI`",
            Self::FullUri => "`FULL_URI`",
            Self::LegacyRedirects => "`--legacy-redirects`",
        }
    }

    pub(super) const fn agents(self) -> Agents {
        match self {
            Self::ImdsV2 => Agents::ImdsV2,
            Self::LegacyRedirects => Agents::LegacyRedirects,
            _ => Agents::Usual,
        }
    }

    /// Returns whether the client must get credentials.
    pub(super) const fn serves(self) -> bool {
        !matches!(self, Self::Refused | Self::NoRole)
    }

    /// Returns whether a failure of a client is one of the command. The results of states that are
    /// known not to work everywhere are only reported.
    pub(super) const fn counts(self) -> bool {
        !matches!(self, Self::FullUri | Self::LegacyRedirects)
    }

    /// Environment of the client. Where the container endpoint is tried, no other source may serve.
    pub(super) const fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::RelativeUri => &[
                (RELATIVE_URI, "/v1/credentials"),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ],
            Self::FullUri => &[
                (FULL_URI, "http://169.254.170.2/v1/credentials"),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ],
            _ => &[],
        }
    }
}

impl Agents {
    pub(super) const ALL: [Self; 3] = [Self::Usual, Self::ImdsV2, Self::LegacyRedirects];

    pub(super) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Usual => &["--container-credentials-address=169.254.170.2"],
            Self::ImdsV2 => &["--imds-v2=required"],
            Self::LegacyRedirects => &["--legacy-redirects"],
        }
    }
}
