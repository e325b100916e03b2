//! kube2iam's annotation of a namespace: a JSON list of role names, paths or ARNs, in which `*`
//! matches anything.

use kiam_common::role::BaseArn;

/// The longest expression that is compiled, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 4096;

/// Options for kube2iam's annotation.
#[derive(Debug, Clone, Default)]
pub struct Kube2iamOptions {
    /// Completes names that are not ARNs.
    pub base: Option<BaseArn>,
}

impl Kube2iamOptions {
    /// Converts the annotation into a regular expression that matches whole ARNs.
    pub(super) fn expression(&self, annotation: &str) -> Result<String, String> {
        if annotation.len() > MAX_EXPRESSION_BYTES {
            let bytes = annotation.len();
            return Err(format!(
                "it is {bytes} bytes long; the limit is {MAX_EXPRESSION_BYTES}"
            ));
        }
        let roles: Vec<String> = serde_json::from_str(annotation)
            .map_err(|error| format!("it is not a JSON list of strings: {error}"))?;
        let patterns: Result<Vec<_>, _> = roles.iter().map(|role| self.pattern(role)).collect();
        Ok(match patterns?.as_slice() {
            // Matches nothing.
            [] => r"[^\s\S]".to_owned(),
            patterns => patterns.join("|"),
        })
    }

    fn pattern(&self, role: &str) -> Result<String, String> {
        let whole = if role.starts_with("arn:") {
            role.to_owned()
        } else {
            let base = self.base.as_ref().ok_or_else(|| {
                format!(
                    "{role:?} is not an ARN, and the server has no --role-base-arn to complete it"
                )
            })?;
            format!("{}{}", base.as_str(), role.trim_start_matches('/'))
        };
        let parts: Vec<_> = whole.split('*').map(regex_syntax::escape).collect();
        Ok(parts.join(".*"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Anchoring, PermissionOptions, Permitted, Verdict};
    use super::*;

    const BASE: &str = "arn:aws:iam::123456789012:role/";

    fn options() -> PermissionOptions {
        PermissionOptions {
            anchoring: Anchoring::Whole,
            allowed: Some(Kube2iamOptions {
                base: Some(BaseArn::parse(BASE).unwrap()),
            }),
        }
    }

    fn permits(permitted: Option<&str>, allowed: Option<&str>, role: &str) -> bool {
        let role = format!("{BASE}{role}");
        let read = Permitted::read(permitted, allowed, &options());
        read.verdict(&role) == Verdict::Permitted
    }

    #[test]
    fn a_list_permits_names_paths_and_arns_with_wildcards() {
        for (allowed, role, expected) in [
            (r#"["reader"]"#, "reader", true),
            (r#"["reader"]"#, "reader-2", false),
            (r#"["reader"]"#, "path/reader", false),
            (r#"["/path/reader"]"#, "path/reader", true),
            (r#"["a", "b-*"]"#, "b-1", true),
            (r#"["a", "b-*"]"#, "a-1", false),
            (r#"["*-reader"]"#, "x/y-reader", true),
            (r#"["*"]"#, "anything/at/all", true),
            (r#"["arn:aws:iam::123456789012:role/a*"]"#, "abc", true),
            (r#"["arn:aws:iam::999999999999:role/*"]"#, "abc", false),
            // Only the wildcard is special.
            (r#"["a.c"]"#, "abc", false),
            (r#"["a|b"]"#, "b", false),
            (r#"["(a"]"#, "(a", true),
            ("[]", "a", false),
        ] {
            assert_eq!(
                permits(None, Some(allowed), role),
                expected,
                "{allowed} {role}"
            );
        }
    }

    #[test]
    fn a_role_is_permitted_if_either_annotation_permits_it() {
        let both = |role| permits(Some(&format!("{BASE}kiam-.*")), Some(r#"["k2i-*"]"#), role);
        assert!(both("kiam-x") && both("k2i-x"));
        assert!(!both("other") && !both("x/k2i-x") && !both("x-kiam-x"));
    }

    #[test]
    fn an_invalid_list_permits_nothing_and_is_explained() {
        let long = format!("[\"{}\"]", "x".repeat(MAX_EXPRESSION_BYTES));
        for (allowed, part) in [
            ("reader", "not a JSON list"),
            (r#"{"a": 1}"#, "not a JSON list"),
            ("[1]", "not a JSON list"),
            (&long, "bytes long"),
        ] {
            let read = Permitted::read(Some(".*"), Some(allowed), &options());
            match read.verdict(&format!("{BASE}reader")) {
                Verdict::Invalid(problem) => assert!(problem.contains(part), "{problem}"),
                other => panic!("{allowed}: {other:?}"),
            }
        }
        let without = PermissionOptions {
            allowed: Some(Kube2iamOptions::default()),
            ..PermissionOptions::default()
        };
        let read = Permitted::read(None, Some(r#"["reader"]"#), &without);
        let verdict = read.verdict("arn:aws:iam::1:role/reader");
        assert!(
            matches!(verdict, Verdict::Invalid(problem) if problem.contains("--role-base-arn"))
        );
    }

    #[test]
    fn the_annotation_is_ignored_by_default() {
        let read = Permitted::read(None, Some(r#"["*"]"#), &PermissionOptions::default());
        assert_eq!(read.verdict(&format!("{BASE}reader")), Verdict::Nothing);
        assert_eq!(read.annotations(), "annotation iam.amazonaws.com/permitted");
        let read = Permitted::read(None, Some(r#"["x"]"#), &options());
        assert_eq!(
            read.annotations(),
            "annotation iam.amazonaws.com/allowed-roles"
        );
    }
}
