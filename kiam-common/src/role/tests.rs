//! Cases of kiam's own tests (kiam's `arn_resolver_test`), cases that it gets wrong, and
//! properties.

use proptest::prelude::*;

use super::*;

const BASE: &str = "arn:aws:iam::123456789012:role/";

fn base(text: &str) -> BaseArn {
    BaseArn::parse(text).unwrap()
}

#[test]
fn full_arns_and_short_names_resolve() {
    for (base_arn, spelling, expected) in [
        (BASE, "reader", "arn:aws:iam::123456789012:role/reader"),
        (BASE, "/reader", "arn:aws:iam::123456789012:role/reader"),
        (
            BASE,
            "team/reader",
            "arn:aws:iam::123456789012:role/team/reader",
        ),
        (
            BASE,
            "/team/reader",
            "arn:aws:iam::123456789012:role/team/reader",
        ),
        (
            BASE,
            "arn:aws:iam::210987654321:role/x",
            "arn:aws:iam::210987654321:role/x",
        ),
        (
            "arn:aws-cn:iam::123456789012:role/sub",
            "reader",
            "arn:aws-cn:iam::123456789012:role/sub/reader",
        ),
        (
            "arn:aws-iso-b:iam::123456789012:role/",
            "reader",
            "arn:aws-iso-b:iam::123456789012:role/reader",
        ),
    ] {
        let role = resolve(spelling, Some(&base(base_arn))).unwrap();
        assert_eq!(role.as_str(), expected);
        assert_eq!(role.name(), expected.rsplit('/').next().unwrap());
        assert_eq!(role.account().len(), 12);
    }
}

#[test]
fn names_that_are_not_roles_are_rejected_with_a_reason() {
    let long = "x".repeat(3000);
    for (spelling, reason) in [
        ("", "empty"),
        (long.as_str(), "3000 bytes"),
        ("arn:foo", "its partition"),
        ("arn:", "its partition"),
        ("arn:aws:s3:::bucket", "service"),
        ("arn:aws:iam:eu-west-1:123456789012:role/x", "region"),
        ("arn:aws:iam::123:role/x", "twelve digits"),
        ("arn:aws:iam::123456789012:user/x", "role/"),
        ("arn:aws:iam::123456789012:role/", "role name"),
        ("arn:aws-:iam::123456789012:role/x", "partition"),
        ("reader/", "role name"),
        ("read er", "' ' at position 5"),
        ("reader\n", "'\\n' at position 7"),
        ("rôle", "'ô' at position 2"),
        ("a:b", "role name"),
        ("../../writer", "its path"),
        ("team/./reader", "its path"),
        ("arn:aws:iam::123456789012:role/team/../writer", "its path"),
    ] {
        let error = resolve(spelling, Some(&base(BASE)))
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{spelling:?}: {error}");
    }
    assert_eq!(resolve("reader", None), Err(RoleError::NoBase));
    assert!(resolve("arn:aws:iam::123456789012:role/x", None).is_ok());
}

#[test]
fn the_base_arn_keeps_account_and_partition_of_the_instance_profile() {
    for (profile, expected) in [
        ("arn:aws:iam::123456789012:instance-profile/nodes", BASE),
        ("arn:aws:iam::123456789012:instance-profile/a/b/nodes", BASE),
        (
            "arn:aws-us-gov:iam::123456789012:instance-profile/nodes",
            "arn:aws-us-gov:iam::123456789012:role/",
        ),
    ] {
        assert_eq!(
            BaseArn::of_instance_profile(profile).unwrap().as_str(),
            expected
        );
    }
    assert!(BaseArn::of_instance_profile("arn:aws:iam::123456789012:role/x").is_err());
}

proptest! {
    #[test]
    fn every_name_that_resolves_is_an_arn(spelling in any::<String>()) {
        if let Ok(role) = resolve(&spelling, Some(&base(BASE))) {
            prop_assert!(role.as_str().starts_with("arn:aws"));
            prop_assert!(!role.name().is_empty() && !role.name().contains('/'));
            prop_assert_eq!(RoleArn::parse(role.as_str()), Ok(role.clone()));
            // The name that the metadata service lists resolves to the same role if the role has no
            // path beside that of the base ARN.
            if role.as_str() == format!("{BASE}{}", role.name()) {
                prop_assert_eq!(resolve(role.name(), Some(&base(BASE))), Ok(role));
            }
        }
    }

    #[test]
    fn malformed_arns_do_not_panic(spelling in "arn(:[a-z0-9/-]{0,14}){0,8}") {
        let _ = resolve(&spelling, None);
        let _ = BaseArn::parse(&spelling);
        let _ = BaseArn::of_instance_profile(&spelling);
    }
}
