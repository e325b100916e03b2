//! The expression by which a namespace permits roles.

mod allowed;

use regex_automata::meta::{BuildError, Config, Regex};

pub use allowed::{AllowedRoles, MAX_EXPRESSION_BYTES};

/// The most memory that one compiled expression may take, in bytes. Whoever may annotate a
/// namespace must not be able to fill the server's memory.
const MAX_COMPILED_BYTES: usize = 1 << 20;

const KIAM: &str = "annotation iam.amazonaws.com/permitted";
const KUBE2IAM: &str = "annotation iam.amazonaws.com/allowed-roles";
const BOTH: &str = "annotations iam.amazonaws.com/permitted and iam.amazonaws.com/allowed-roles";

/// How much of a role's ARN an expression must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anchoring {
    /// All of it.
    #[default]
    Whole,
    /// Any part: kiam's `--disable-strict-namespace-regexp`.
    Part,
}

impl Anchoring {
    fn pattern(self, expression: &str) -> String {
        match self {
            Self::Whole => format!("^(?:{expression})$"),
            Self::Part => expression.to_owned(),
        }
    }
}

/// Which annotations of namespaces count, and how.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// How much of an ARN `iam.amazonaws.com/permitted` must match.
    pub anchoring: Anchoring,
    /// How kube2iam's `iam.amazonaws.com/allowed-roles` is read; not at all if not given.
    pub allowed: Option<AllowedRoles>,
}

impl From<Anchoring> for Reading {
    fn from(anchoring: Anchoring) -> Self {
        Self {
            anchoring,
            allowed: None,
        }
    }
}

/// What a namespace permits, compiled once when its annotation changes.
#[derive(Debug, Clone)]
pub enum Permitted {
    /// It has no annotation, or an empty one.
    Nothing,
    /// ARNs that the expression matches from end to end.
    Matching {
        /// As annotated.
        expression: Box<str>,
        /// Compiled and anchored.
        compiled: Regex,
        /// Which annotations, in words.
        annotations: &'static str,
    },
    /// The annotation is no expression, so nothing is permitted.
    Invalid {
        /// As annotated.
        expression: Box<str>,
        /// Why, on one line.
        problem: Box<str>,
        /// Which annotation, in words.
        annotations: &'static str,
    },
}

/// What an expression says of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is permitted.
    Permitted,
    /// The namespace permits nothing.
    Nothing,
    /// The namespace permits others: its expression.
    Other(&'a str),
    /// The namespace's expression is none: why.
    Invalid(&'a str),
}

impl Permitted {
    /// Compiles an annotation. One that must match the whole ARN is anchored as
    /// `^(?:expression)$`, so that no alternative of it is left open at one end.
    #[must_use]
    pub fn compile(annotation: Option<&str>, anchoring: Anchoring) -> Self {
        let Some(expression) = annotation.filter(|text| !text.is_empty()) else {
            return Self::Nothing;
        };
        let invalid = |problem: String| Self::Invalid {
            expression: expression.into(),
            problem: problem.into_boxed_str(),
            annotations: KIAM,
        };
        if expression.len() > MAX_EXPRESSION_BYTES {
            let bytes = expression.len();
            return invalid(format!(
                "it is {bytes} bytes long; {MAX_EXPRESSION_BYTES} are allowed"
            ));
        }
        // Compiled by itself first: `a)|(b` must not become one by the parentheses around it.
        let compiled = build(expression).and_then(|_| build(&anchoring.pattern(expression)));
        match compiled {
            Ok(compiled) => Self::Matching {
                expression: expression.into(),
                compiled,
                annotations: KIAM,
            },
            Err(problem) => invalid(problem),
        }
    }

    /// Compiles what both annotations permit; one that cannot be read permits nothing, whatever the
    /// other says.
    #[must_use]
    pub fn read(permitted: Option<&str>, allowed: Option<&str>, reading: &Reading) -> Self {
        let of_kiam = Self::compile(permitted, reading.anchoring);
        let allowed = allowed.filter(|text| !text.is_empty());
        let (Some(how), Some(annotation)) = (&reading.allowed, allowed) else {
            return of_kiam;
        };
        let invalid = |problem: String| Self::Invalid {
            expression: annotation.into(),
            problem: problem.into_boxed_str(),
            annotations: KUBE2IAM,
        };
        let globs = match how.expression(annotation) {
            Ok(globs) => format!("^(?:{globs})$"),
            Err(problem) => return invalid(problem),
        };
        let (pattern, expression, annotations) = match of_kiam {
            Self::Nothing => (globs, annotation.to_owned(), KUBE2IAM),
            Self::Invalid { .. } => return of_kiam,
            Self::Matching { expression, .. } => (
                format!("(?:{})|{globs}", reading.anchoring.pattern(&expression)),
                format!("{expression} and {annotation}"),
                BOTH,
            ),
        };
        match build(&pattern) {
            Ok(compiled) => Self::Matching {
                expression: expression.into(),
                compiled,
                annotations,
            },
            Err(problem) => invalid(problem),
        }
    }

    /// The annotations that say so, in words.
    #[must_use]
    pub const fn annotations(&self) -> &'static str {
        match self {
            Self::Nothing => KIAM,
            Self::Matching { annotations, .. } | Self::Invalid { annotations, .. } => annotations,
        }
    }

    /// What it says of a role's ARN.
    #[must_use]
    pub fn verdict(&self, arn: &str) -> Verdict<'_> {
        match self {
            Self::Nothing => Verdict::Nothing,
            Self::Matching { compiled, .. } if compiled.is_match(arn) => Verdict::Permitted,
            Self::Matching { expression, .. } => Verdict::Other(expression),
            Self::Invalid { problem, .. } => Verdict::Invalid(problem),
        }
    }

    fn expression(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Matching { expression, .. } | Self::Invalid { expression, .. } => {
                Some(expression)
            }
        }
    }
}

/// Equal expressions of the same annotations compile to equal things.
impl PartialEq for Permitted {
    fn eq(&self, other: &Self) -> bool {
        self.expression() == other.expression() && self.annotations() == other.annotations()
    }
}

impl Eq for Permitted {}

/// Compiled; or why not, on one line.
fn build(pattern: &str) -> Result<Regex, String> {
    // Without tables of states, which take several KiB for each namespace.
    let config = Config::new()
        .nfa_size_limit(Some(MAX_COMPILED_BYTES))
        .dfa(false)
        .onepass(false)
        .hybrid(false);
    let built = Regex::builder().configure(config).build(pattern);
    built.map_err(|error| one_line(&error))
}

/// The regex crates draw their errors over several lines; the last one says what is wrong.
fn one_line(error: &BuildError) -> String {
    let text = match (error.syntax_error(), error.size_limit()) {
        (Some(error), _) => error.to_string(),
        (None, Some(limit)) => format!("compiled, it exceeds the size limit of {limit} bytes"),
        (None, None) => error.to_string(),
    };
    let last = text.lines().last().unwrap_or(&text).trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
