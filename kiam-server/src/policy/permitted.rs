//! The expression by which a namespace permits roles.

use regex::{Regex, RegexBuilder};

/// The longest expression that is compiled, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 4096;
/// The most memory that one compiled expression may take, in bytes. Whoever may annotate a
/// namespace must not be able to fill the server's memory.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// How much of a role's ARN an expression must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anchoring {
    /// All of it.
    #[default]
    Whole,
    /// Any part: kiam's `--disable-strict-namespace-regexp`.
    Part,
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
    },
    /// The annotation is no expression, so nothing is permitted.
    Invalid {
        /// As annotated.
        expression: Box<str>,
        /// Why, on one line.
        problem: Box<str>,
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
        };
        if expression.len() > MAX_EXPRESSION_BYTES {
            let bytes = expression.len();
            return invalid(format!(
                "it is {bytes} bytes long; {MAX_EXPRESSION_BYTES} are allowed"
            ));
        }
        // Compiled by itself first: `a)|(b` must not become one by the parentheses around it.
        let compiled = build(expression).and_then(|part| match anchoring {
            Anchoring::Whole => build(&format!("^(?:{expression})$")),
            Anchoring::Part => Ok(part),
        });
        match compiled {
            Ok(compiled) => Self::Matching {
                expression: expression.into(),
                compiled,
            },
            Err(error) => invalid(one_line(&error)),
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

/// Equal expressions compile to equal things.
impl PartialEq for Permitted {
    fn eq(&self, other: &Self) -> bool {
        self.expression() == other.expression()
    }
}

impl Eq for Permitted {}

fn build(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .build()
}

/// The regex crate draws its errors over several lines; the last one says what is wrong.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or(&text).trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}
