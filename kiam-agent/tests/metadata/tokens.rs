//! IMDSv2's tokens: who gets one, and what one is good for.

use kiam_agent::args::ImdsV2;
use kiam_agent::metadata::Settings;

use crate::service::*;

const TOKEN: &str = "/latest/api/token";

impl Service {
    async fn with(&self, pod: u8, method: &str, path: &str, headers: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        parse(&self.raw(pod, &request).await)
    }

    pub(crate) async fn token(&self, pod: u8) -> String {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
        let answer = self.with(pod, "PUT", TOKEN, ttl).await;
        let echoed = answer.header("x-aws-ec2-metadata-token-ttl-seconds");
        assert_eq!((answer.status, echoed), (200, Some("21600")), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(answer.body.len(), 56, "{answer:?}");
        answer.body
    }
}

#[tokio::test]
async fn tokens_are_given_as_the_real_service_gives_them() {
    let service = informed().await;
    let ttl = |ttl: &str| format!("X-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\n");
    let forwarded = format!("{}X-Forwarded-For: 10.0.0.1\r\n", ttl("60"));
    let dated = "/2021-03-23/api/token";
    for (pod, method, path, headers, status) in [
        (pods::GRANTED, "PUT", TOKEN, ttl("1"), 200),
        (pods::GRANTED, "PUT", TOKEN, ttl("21600"), 200),
        (pods::GRANTED, "PUT", "/latest//api/token/", ttl("60"), 200),
        (pods::GRANTED, "PUT", TOKEN, String::new(), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("0"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("21601"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("-1"), 400),
        (pods::GRANTED, "PUT", TOKEN, ttl("six hours"), 400),
        (
            pods::GRANTED,
            "PUT",
            TOKEN,
            ttl("99999999999999999999"),
            400,
        ),
        (pods::GRANTED, "PUT", TOKEN, forwarded, 403),
        (pods::GRANTED, "PUT", dated, ttl("60"), 403),
        (pods::GRANTED, "GET", TOKEN, ttl("60"), 405),
        (pods::GRANTED, "POST", TOKEN, ttl("60"), 405),
        // A pod that has no role, or is not known yet, finds that out with a token in hand.
        (pods::NO_ROLE, "PUT", TOKEN, ttl("60"), 200),
        (pods::UNKNOWN, "PUT", TOKEN, ttl("60"), 200),
        (pods::NO_POD, "PUT", TOKEN, ttl("60"), 403),
    ] {
        let answer = service.with(pod, method, path, &headers).await;
        assert_eq!(
            answer.status, status,
            "{pod} {method} {path} {headers}: {answer:?}"
        );
        let allowed = answer.header("allow");
        assert_eq!(allowed, (status == 405).then_some("PUT"));
    }
}

#[tokio::test]
async fn a_token_of_another_pod_is_rejected() {
    let mut service = informed().await;
    let header = |token: &str| format!("X-aws-ec2-metadata-token: {token}\r\n");
    let (own, other) = (
        header(&service.token(pods::GRANTED).await),
        header(&service.token(pods::FAILING).await),
    );
    let path = format!("{LISTING}reader");
    let paths = [LISTING, &path];
    for path in paths {
        for (headers, status) in [
            (&own, 200),
            (&String::new(), 200),
            (&other, 401),
            (&header(""), 401),
            (&header("AQAEAexample=="), 401),
        ] {
            let answer = service.with(pods::GRANTED, "GET", path, headers).await;
            assert_eq!(answer.status, status, "{headers}: {answer:?}");
        }
    }
    let answer = service
        .with(pods::GRANTED, "GET", "/latest/user-data", &other)
        .await;
    assert_eq!(answer.status, 401);
    let versions = |version: &str| {
        let line = format!("kiam_metadata_imds_requests_total{{version=\"{version}\"}}");
        service.metric(&line).unwrap()
    };
    assert_eq!((versions("v1"), versions("v2")), (2.0, 9.0));

    let required = Settings {
        imds_v2: ImdsV2::Required,
        ..settings()
    };
    service = serve(required).await;
    service.apply(updates());
    let own = header(&service.token(pods::GRANTED).await);
    for path in paths {
        let answer = service.with(pods::GRANTED, "GET", path, &own).await;
        assert_eq!(answer.status, 200);
        let answer = service.get(pods::GRANTED, path).await;
        assert_eq!(answer.status, 401);
        assert!(answer.body.contains("PUT /latest/api/token"), "{answer:?}");
    }
}
