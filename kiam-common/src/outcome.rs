//! The outcome of the policies for one pod.

/// The decision of the policies about a pod. `Grant` is the data of a granted pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<Grant> {
    /// Neither the pod nor its service account names a role.
    NoRole,
    /// The policies permit the role.
    Granted(Grant),
    /// A policy refuses the role.
    Forbidden {
        /// The role as annotated, cut to a readable length.
        role: Box<str>,
        /// One line for the owner of the pod: which policy refused, and which annotation to change.
        reason: Box<str>,
    },
    /// The decision depends on something that is not known yet.
    Undecided {
        /// The object that is not known yet.
        awaiting: Box<str>,
    },
}

/// All values of [`Outcome::as_label`].
pub const OUTCOME_LABELS: [&str; 4] = ["no_role", "granted", "forbidden", "undecided"];

impl<Grant> Outcome<Grant> {
    /// Returns the value of the label `outcome` of metrics and logs.
    pub const fn as_label(&self) -> &'static str {
        let [no_role, granted, forbidden, undecided] = OUTCOME_LABELS;
        match self {
            Self::NoRole => no_role,
            Self::Granted(_) => granted,
            Self::Forbidden { .. } => forbidden,
            Self::Undecided { .. } => undecided,
        }
    }

    /// Maps the data of a granted pod; the other outcomes stay as they are.
    pub fn map<T>(self, grant: impl FnOnce(Grant) -> T) -> Outcome<T> {
        match self {
            Self::NoRole => Outcome::NoRole,
            Self::Granted(granted) => Outcome::Granted(grant(granted)),
            Self::Forbidden { role, reason } => Outcome::Forbidden { role, reason },
            Self::Undecided { awaiting } => Outcome::Undecided { awaiting },
        }
    }

    /// Returns the data of a granted pod.
    pub const fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Granted(grant) => Some(grant),
            Self::NoRole | Self::Forbidden { .. } | Self::Undecided { .. } => None,
        }
    }
}
