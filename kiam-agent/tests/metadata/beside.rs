//! Paths beside those of credentials.

use kiam_agent::args::ImdsV2;
use kiam_agent::metadata::Settings;

use crate::service::*;

#[tokio::test]
async fn info_names_the_role_of_the_pod() {
    let service = informed().await;
    let path = "/latest/meta-data/iam/info";
    let answer = service.get(pods::GRANTED, path).await;
    assert_eq!(answer.status, 200);
    let info: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let profile = "arn:aws:iam::123456789012:instance-profile/team/reader";
    assert_eq!(info["InstanceProfileArn"], profile);
    assert_eq!(service.get(pods::NO_ROLE, path).await.status, 404);
    assert_eq!(service.get(pods::FORBIDDEN, path).await.status, 403);
    assert_eq!(service.get(pods::AWAITED, path).await.status, 503);
}

#[tokio::test]
async fn the_redirect_of_kiam_is_served_where_configured() {
    let mut service = serve(Settings {
        legacy_redirects: true,
        ..settings()
    })
    .await;
    service.apply(updates());
    let plain = LISTING.trim_end_matches('/');
    let answer = service.get(pods::GRANTED, plain).await;
    assert_eq!(
        (answer.status, answer.header("location")),
        (301, Some(LISTING))
    );
    let answer = service.get(pods::GRANTED, LISTING).await;
    assert_eq!((answer.status, &*answer.body), (200, "reader"));
    let answer = informed().await.get(pods::GRANTED, plain).await;
    assert_eq!((answer.status, &*answer.body), (200, "reader"));
}

#[tokio::test]
async fn the_container_endpoint_serves_the_same_credentials_where_configured() {
    let path = "/v1/credentials";
    assert_eq!(informed().await.get(pods::GRANTED, path).await.status, 404);
    let mut service = serve(Settings {
        container: true,
        imds_v2: ImdsV2::Required,
        ..settings()
    })
    .await;
    service.apply(updates());
    // These SDKs know no tokens.
    let answer = service.get(pods::GRANTED, path).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    for (key, value) in [
        ("AccessKeyId", "ASIAPOD2"),
        ("SecretAccessKey", "hunter2"),
        ("Token", "hunter3"),
        ("Expiration", "2096-10-02T07:06:40Z"),
        ("AccountId", "123456789012"),
        ("RoleArn", "arn:aws:iam::123456789012:role/team/reader"),
    ] {
        assert_eq!(body[key], value);
    }
    for (pod, method, status) in [
        (pods::GRANTED, "POST", 405),
        (pods::NO_ROLE, "GET", 404),
        (pods::FORBIDDEN, "GET", 403),
        (pods::AWAITED, "GET", 503),
        (pods::ELSEWHERE, "GET", 503),
        (pods::NO_POD, "GET", 403),
    ] {
        assert_eq!(service.request(pod, method, path).await.status, status);
    }
}

#[tokio::test]
async fn requests_without_a_token_are_counted_by_pod_and_client() {
    let mut service = informed().await;
    let ask = |agent: &str| format!("GET {LISTING} HTTP/1.1\r\nHost: x\r\n{agent}\r\n");
    service
        .raw(pods::GRANTED, &ask("User-Agent: Boto3/1.35\r\n"))
        .await;
    service
        .raw(pods::GRANTED, &ask("User-Agent: Boto3/1.36\r\n"))
        .await;
    service.raw(pods::GRANTED, &ask("")).await;
    service
        .raw(pods::FORBIDDEN, &ask("User-Agent: curl/8\r\n"))
        .await;
    service
        .raw(pods::NO_POD, &ask("User-Agent: curl/8\r\n"))
        .await;
    let token = "User-Agent: aws-sdk-go/1\r\nX-aws-ec2-metadata-token: forged\r\n";
    service.raw(pods::GRANTED, &ask(token)).await;
    let count = |service: &Service, pod: u8, sdk: &str| {
        let labels = format!("namespace=\"default\",pod=\"pod-{pod}\",sdk=\"{sdk}\"");
        service.metric(&format!("kiam_metadata_imds_v1_requests_total{{{labels}}}"))
    };
    assert_eq!(count(&service, pods::GRANTED, "boto"), Some(2.0));
    assert_eq!(count(&service, pods::GRANTED, "unnamed"), Some(1.0));
    assert_eq!(count(&service, pods::GRANTED, "go"), None);
    assert_eq!(count(&service, pods::FORBIDDEN, "curl"), Some(1.0));
    // With the pod its counts are gone.
    service.apply([kiam_agent::view::Update::Removed(
        uid(pods::GRANTED).as_str().into(),
    )]);
    assert_eq!(count(&service, pods::GRANTED, "boto"), None);
}
