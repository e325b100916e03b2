//! Answers to each pod: method, path and pod in; status, headers, body out.

use crate::service::*;

#[tokio::test]
async fn the_role_name_has_no_newline_in_any_spelling_of_the_path() {
    let service = informed().await;
    for path in [
        LISTING,
        "/latest/meta-data/iam/security-credentials",
        "/1.0/meta-data/iam/security-credentials/",
        "/2021-03-23/meta-data/iam/security-credentials",
        "//latest//meta-data/iam/security-credentials//",
        "/latest/meta-data/./iam/x/../security-credentials/",
        "/latest/meta%2Ddata/iam/security-credentials/",
        "/latest/meta-data/iam/security-credentials-extended/",
        "/latest/meta-data/iam/security-credentials/?x=y",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    ] {
        let answer = service.get(pods::GRANTED, path).await;
        assert_eq!((answer.status, &*answer.body), (200, "reader"), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(answer.header("server"), Some("EC2ws"));
        assert_eq!(answer.header("content-length"), Some("6"));
    }
    let ok = "kiam_metadata_success_total{handler=\"roleName\"}";
    assert_eq!(service.metric(ok), Some(10.0));
}

#[tokio::test]
async fn credentials_are_the_document_of_the_real_service_in_any_spelling_of_the_role() {
    let service = informed().await;
    let document = r#"{
  "Code" : "Success",
  "LastUpdated" : "2023-11-14T22:13:20Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "ASIAPOD2",
  "SecretAccessKey" : "hunter2",
  "Token" : "hunter3",
  "Expiration" : "2096-10-02T07:06:40Z"
}"#;
    for role in [
        "reader",
        "reader/",
        "/reader",
        "team/reader",
        "team%2Freader",
        "%72eader",
        ARN,
        &ARN.replace(':', "%3A").replace('/', "%2f"),
    ] {
        let path = format!("{LISTING}{role}");
        let answer = service.get(pods::GRANTED, &path).await;
        assert_eq!((answer.status, &*answer.body), (200, document), "{path}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    let path = "/latest/meta-data/iam/security-credentials-extended/reader";
    let answer = service.get(pods::GRANTED, path).await;
    let extended = document.replace("40Z\"\n", "40Z\",\n  \"AccountId\" : \"123456789012\"\n");
    assert_eq!((answer.status, answer.body), (200, extended));
}

#[tokio::test]
async fn each_pod_is_answered_by_its_state() {
    let service = informed().await;
    let credentials = format!("{LISTING}reader");
    let of_other = format!("{LISTING}admin");
    let (listing, credentials, of_other) = (LISTING, &*credentials, &*of_other);
    // Pod, path, status, and what the one line says.
    let table: [(u8, &str, u16, &str); 23] = [
        (
            pods::NO_ROLE,
            listing,
            404,
            "iam.amazonaws.com/role on the pod or on its service account \"builder\"",
        ),
        (pods::NO_ROLE, credentials, 404, "default/pod-3 has no role"),
        (pods::FORBIDDEN, listing, 403, "iam.amazonaws.com/permitted"),
        (
            pods::FORBIDDEN,
            of_other,
            403,
            "default/pod-4 may not use the role \"admin\"",
        ),
        (
            pods::UNDECIDED,
            listing,
            503,
            "waiting for the namespace default",
        ),
        (pods::UNDECIDED, credentials, 503, "not yet decided"),
        (pods::AWAITED, listing, 200, "reader"),
        (pods::AWAITED, credentials, 503, "have not arrived yet"),
        (pods::FAILING, listing, 200, "reader"),
        (pods::FAILING, credentials, 503, "STS does not answer"),
        (
            pods::DENIED,
            credentials,
            403,
            "the trust policy of the role",
        ),
        (
            pods::EXPIRED,
            credentials,
            503,
            "expired at 2023-11-14T23:13:20Z",
        ),
        (
            pods::ELSEWHERE,
            listing,
            503,
            "comes from 127.0.0.10, which is not among",
        ),
        (
            pods::ELSEWHERE,
            credentials,
            503,
            "addresses of pod default/pod-10",
        ),
        (pods::UNKNOWN, listing, 503, "is not yet known"),
        (pods::UNKNOWN, credentials, 503, "is not yet known"),
        (pods::NO_POD, listing, 403, "outside of any pod"),
        (pods::NO_POD, credentials, 403, ""),
        (pods::HOST_NETWORK, credentials, 200, "ASIAPOD13"),
        (pods::FAILING_WITH_VALID, credentials, 200, "ASIAPOD14"),
        (
            pods::GRANTED,
            of_other,
            403,
            "requested the role \"admin\", but its role is reader",
        ),
        (
            pods::GRANTED,
            "/latest/user-data",
            404,
            "\"/latest/user-data\" is not served",
        ),
        (
            pods::GRANTED,
            "/latest/dynamic/../%2e%2e/x%00",
            400,
            "invalid path",
        ),
    ];
    for (pod, path, status, text) in table {
        let answer = service.get(pod, path).await;
        assert_eq!(answer.status, status, "{pod} {path}: {answer:?}");
        assert!(answer.body.contains(text), "{pod} {path}: {answer:?}");
        if status != 200 {
            let line = answer.body.strip_suffix('\n').expect("a line");
            assert!(!line.contains('\n') && !line.is_empty(), "{answer:?}");
            assert!(!answer.body.contains("hunter"), "{answer:?}");
        }
        let retry = answer.header("retry-after").is_some();
        assert_eq!(retry, status == 503, "{pod} {path}: {answer:?}");
    }
    let refused = |reason: &str| {
        let line = format!("kiam_metadata_refusals_total{{reason=\"{reason}\"}}");
        service.metric(&line)
    };
    assert_eq!(refused("address_mismatch"), Some(2.0));
    assert_eq!(refused("not_a_pod"), Some(2.0));
    assert_eq!(refused("no_role"), Some(2.0));
    assert_eq!(
        service.metric("kiam_metadata_proxy_requests_blocked_total"),
        Some(2.0)
    );
    assert_eq!(
        service.metric("kiam_metadata_empty_role_total{handler=\"roleName\"}"),
        Some(1.0)
    );
    let code = "kiam_metadata_responses_total{code=\"503\",handler=\"credentials\"}";
    assert_eq!(service.metric(code), Some(6.0));
}

#[tokio::test]
async fn no_pod_gets_credentials_of_another_or_of_the_node() {
    let service = informed().await;
    for pod in pods::ALL {
        for path in [
            "/latest/meta-data/iam/security-credentials/reader",
            "/latest/meta-data/iam/security-credentials-extended/reader",
            "/latest/meta-data/iam/info",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/user-data",
            "/latest/dynamic/instance-identity/document",
            "/",
        ] {
            let answer = service.get(pod, path).await;
            if let Some((_, key)) = answer.body.split_once("ASIAPOD") {
                assert!(
                    key.starts_with(&format!("{pod}\"")),
                    "{pod} {path}: {answer:?}"
                );
                assert!(path.ends_with("/reader"));
            }
        }
    }
}

#[tokio::test]
async fn methods_other_than_get_and_head_are_not_allowed() {
    let service = informed().await;
    for path in [LISTING, "/latest/meta-data/iam/security-credentials/reader"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
            let answer = service.request(pods::GRANTED, method, path).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
        let head = service.request(pods::GRANTED, "HEAD", path).await;
        let get = service.get(pods::GRANTED, path).await;
        assert_eq!((head.status, &*head.body), (200, ""));
        assert_eq!(head.header("content-length"), get.header("content-length"));
    }
}
