//! The roles that a namespace permits, by an expression in its annotations.

mod kube2iam;

use regex_automata::meta::{BuildError, Config, Regex};

pub use kube2iam::{Kube2iamOptions, MAX_EXPRESSION_BYTES};

/// The largest compiled expression, in bytes: anyone who may annotate a namespace must not be able
/// to exhaust the memory of the server.
const MAX_COMPILED_BYTES: usize = 1 << 20;

const KIAM: &str = "annotation iam.amazonaws.com/permitted";
const KUBE2IAM: &str = "annotation iam.amazonaws.com/allowed-roles";
const BOTH: &str = "annotations iam.amazonaws.com/permitted and iam.amazonaws.com/allowed-roles";

/// The part of a role ARN that an expression must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anchoring {
    /// The whole ARN.
    #[default]
    Whole,
    /// Any part of it: `--disable-strict-namespace-regexp`.
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

/// Options that determine which annotations of namespaces count, and how.
#[derive(Debug, Clone, Default)]
pub struct PermissionOptions {
    /// The part of an ARN that `iam.amazonaws.com/permitted` must match.
    pub anchoring: Anchoring,
    /// Options for kube2iam's `iam.amazonaws.com/allowed-roles`; `None` ignores the annotation.
    pub allowed: Option<Kube2iamOptions>,
}

impl From<Anchoring> for PermissionOptions {
    fn from(anchoring: Anchoring) -> Self {
        Self {
            anchoring,
            allowed: None,
        }
    }
}

/// The roles that a namespace permits, compiled once when its annotations change.
#[derive(Debug, Clone)]
pub enum Permitted {
    /// No role: the namespace has no annotation, or an empty one.
    Nothing,
    /// The roles whose ARN matches.
    Matching {
        /// The annotation.
        expression: Box<str>,
        /// The compiled and anchored expression.
        compiled: Regex,
        /// The name of the annotations, for messages.
        annotations: &'static str,
    },
    /// No role: the annotation is invalid.
    Invalid {
        /// The annotation.
        expression: Box<str>,
        /// The error, on one line.
        problem: Box<str>,
        /// The name of the annotation, for messages.
        annotations: &'static str,
    },
}

/// The verdict of a namespace on a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    Permitted,
    /// The namespace permits no role.
    Nothing,
    /// The namespace permits other roles, by this expression.
    Other(&'a str),
    /// The expression of the namespace is invalid, for this reason.
    Invalid(&'a str),
}

impl Permitted {
    /// Compiles the annotation `iam.amazonaws.com/permitted`. An expression that must match the
    /// whole ARN is anchored as `^(?:expression)$`, so that both ends of each alternative are
    /// anchored.
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
                "it is {bytes} bytes long; the limit is {MAX_EXPRESSION_BYTES}"
            ));
        }
        // Compiled unanchored first: `a)|(b` must not become valid inside the parentheses.
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

    /// Compiles both annotations. If one of them is invalid, no role is permitted.
    pub fn read(
        permitted: Option<&str>,
        allowed: Option<&str>,
        options: &PermissionOptions,
    ) -> Self {
        let of_kiam = Self::compile(permitted, options.anchoring);
        let allowed = allowed.filter(|text| !text.is_empty());
        let (Some(how), Some(annotation)) = (&options.allowed, allowed) else {
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
                format!("(?:{})|{globs}", options.anchoring.pattern(&expression)),
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

    /// Returns the name of the annotations, for messages.
    pub const fn annotations(&self) -> &'static str {
        match self {
            Self::Nothing => KIAM,
            Self::Matching { annotations, .. } | Self::Invalid { annotations, .. } => annotations,
        }
    }

    /// Returns the verdict on a role ARN.
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

/// Equal annotations compile to equal expressions.
impl PartialEq for Permitted {
    fn eq(&self, other: &Self) -> bool {
        self.expression() == other.expression() && self.annotations() == other.annotations()
    }
}

impl Eq for Permitted {}

/// Compiles an expression, or returns the error on one line.
fn build(pattern: &str) -> Result<Regex, String> {
    // Without DFAs, which need several KiB for each namespace.
    let config = Config::new()
        .nfa_size_limit(Some(MAX_COMPILED_BYTES))
        .dfa(false)
        .onepass(false)
        .hybrid(false);
    let built = Regex::builder().configure(config).build(pattern);
    built.map_err(|error| one_line(&error))
}

/// Returns the last line of the error, which has the message; the others quote the expression.
fn one_line(error: &BuildError) -> String {
    let text = match (error.syntax_error(), error.size_limit()) {
        (Some(error), _) => error.to_string(),
        (None, Some(limit)) => format!("compiled, it exceeds the size limit of {limit} bytes"),
        (None, None) => error.to_string(),
    };
    let last = text.lines().last().unwrap_or(&text).trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
