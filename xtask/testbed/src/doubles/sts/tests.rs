//! The double against a client of its own; the sandbox tests have botocore.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::*;
use crate::doubles::sigv4;

const ROLE: &str = "arn:aws:iam::123456789012:role/team/reader";

fn start() -> Sts {
    Sts::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap()
}

/// Signs and sends a form; the status and the body that came back.
fn call(sts: &Sts, keys: &Keys, form: &str) -> (u16, String) {
    call_at(sts, keys, form, Timestamp::now())
}

fn call_at(sts: &Sts, keys: &Keys, form: &str, time: Timestamp) -> (u16, String) {
    let mut request = Request::post("/")
        .header("host", sts.address.to_string())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.to_owned())
        .unwrap();
    sigv4::add_signature(&mut request, keys, "us-east-1", "sts", time);
    send(sts, &request)
}

fn send(sts: &Sts, request: &Request<String>) -> (u16, String) {
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    let body = request.body();
    text += &format!(
        "connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(sts.address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return (0, answer);
    };
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn tag<'a>(xml: &'a str, name: &str) -> &'a str {
    let (_, rest) = xml
        .split_once(&format!("<{name}>"))
        .unwrap_or_else(|| panic!("{name}: {xml}"));
    rest.split_once(&format!("</{name}>")).unwrap().0
}

fn assume(more: &str) -> String {
    let role = ROLE.replace(':', "%3A").replace('/', "%2F");
    format!("Action=AssumeRole&Version=2011-06-15&RoleArn={role}&RoleSessionName=pod-a{more}")
}

fn keys_of(xml: &str) -> Keys {
    Keys {
        access_key: tag(xml, "AccessKeyId").to_owned(),
        secret_key: tag(xml, "SecretAccessKey").to_owned(),
        session_token: Some(tag(xml, "SessionToken").to_owned()),
    }
}

const WHO: &str = "Action=GetCallerIdentity&Version=2011-06-15";

#[test]
fn a_session_is_what_its_keys_sign_for() {
    let sts = start();
    let (status, xml) = call(&sts, &sts.server_keys(), &assume("&DurationSeconds=900"));
    assert_eq!(status, 200, "{xml}");
    let arn = "arn:aws:sts::123456789012:assumed-role/reader/pod-a";
    assert_eq!(tag(&xml, "Arn"), arn);
    let expiration: Timestamp = tag(&xml, "Expiration").parse().unwrap();
    let left = expiration.duration_since(Timestamp::now()).as_secs();
    assert!((895..=900).contains(&left), "{left}");

    let keys = keys_of(&xml);
    let (status, who) = call(&sts, &keys, WHO);
    assert_eq!((status, tag(&who, "Arn")), (200, arn));
    assert_eq!(tag(&who, "UserId"), tag(&xml, "AssumedRoleId"));
    let (_, server) = call(&sts, &sts.server_keys(), WHO);
    assert_eq!(
        tag(&server, "Arn"),
        "arn:aws:iam::123456789012:user/kiam-server"
    );

    let (status, xml) = call(&sts, &keys, &assume(""));
    assert_eq!(
        (status, tag(&xml, "Code")),
        (403, "AccessDenied"),
        "no way on from a pod's session"
    );
    assert_eq!(sts.assume_role_calls(), 2);
    let calls = sts.calls();
    assert_eq!((calls[0].role.as_str(), calls[0].seconds), (ROLE, 900));
    assert_eq!(calls[0].result.as_ref(), Ok(&keys.access_key));
    assert_eq!(calls[1].result, Err("AccessDenied".to_owned()));
    assert_eq!(sts.traffic().connections(), 4);
}

#[test]
fn a_wrong_signature_key_or_token_is_refused() {
    let sts = start();
    let server = sts.server_keys();
    let (_, xml) = call(&sts, &server, &assume(""));
    let keys = keys_of(&xml);
    let code = |keys: &Keys| {
        let (status, xml) = call(&sts, keys, WHO);
        (status, tag(&xml, "Code").to_owned())
    };
    let refused = |code: &str| (403, code.to_owned());
    let secret_key = "wrong".to_owned();
    assert_eq!(
        code(&Keys {
            secret_key,
            ..keys.clone()
        }),
        refused("SignatureDoesNotMatch")
    );
    let access_key = "ASIAUNKNOWN".to_owned();
    assert_eq!(
        code(&Keys {
            access_key,
            ..keys.clone()
        }),
        refused("InvalidClientTokenId")
    );
    for session_token in [None, Some("other".to_owned())] {
        assert_eq!(
            code(&Keys {
                session_token,
                ..keys.clone()
            }),
            refused("InvalidClientTokenId")
        );
    }
    let session_token = Some("superfluous".to_owned());
    assert_eq!(
        code(&Keys {
            session_token,
            ..server.clone()
        }),
        refused("InvalidClientTokenId")
    );

    let old = Timestamp::now() - SignedDuration::from_mins(16);
    let (status, xml) = call_at(&sts, &keys, WHO, old);
    assert_eq!((status, tag(&xml, "Code")), (403, "SignatureDoesNotMatch"));
    assert!(tag(&xml, "Message").contains("expired"), "{xml}");

    let unsigned = Request::post("/").body(WHO.to_owned()).unwrap();
    let (status, xml) = send(&sts, &unsigned);
    assert_eq!(
        (status, tag(&xml, "Code")),
        (403, "MissingAuthenticationToken")
    );
}

#[test]
fn sessions_expire_and_external_ids_are_asked_for() {
    let sts = start();
    let lifetime = Some(SignedDuration::from_secs(-1));
    sts.behave(
        Some(ROLE),
        Behavior {
            lifetime,
            ..Behavior::default()
        },
    );
    let (_, xml) = call(&sts, &sts.server_keys(), &assume(""));
    let (status, xml) = call(&sts, &keys_of(&xml), WHO);
    assert_eq!((status, tag(&xml, "Code")), (403, "ExpiredToken"));

    let external_id = Some("a:b".to_owned());
    sts.behave(
        Some(ROLE),
        Behavior {
            external_id,
            ..Behavior::default()
        },
    );
    assert_eq!(call(&sts, &sts.server_keys(), &assume("")).0, 403);
    assert_eq!(
        call(&sts, &sts.server_keys(), &assume("&ExternalId=a%3Ab")).0,
        200
    );
}

#[test]
fn bad_parameters_are_named() {
    let sts = start();
    let refused = |form: &str, code: &str, text: &str| {
        let (status, xml) = call(&sts, &sts.server_keys(), form);
        assert_eq!((status, tag(&xml, "Code")), (400, code), "{form}");
        assert!(tag(&xml, "Message").contains(text), "{form}: {xml}");
    };
    refused(
        "Action=Nothing&Version=2011-06-15",
        "InvalidAction",
        "Nothing",
    );
    refused(
        "Action=AssumeRole&Version=2010-01-01",
        "InvalidAction",
        "2010-01-01",
    );
    refused(
        "Action=AssumeRole&Version=2011-06-15",
        "ValidationError",
        "roleArn",
    );
    let base = "Action=AssumeRole&Version=2011-06-15&RoleArn=";
    refused(
        &format!("{base}arn:foo"),
        "ValidationError",
        "length greater than or equal to 20",
    );
    refused(
        &format!("{base}arn:aws:iam::12345:role/long-enough"),
        "ValidationError",
        "is invalid",
    );
    let role = "arn:aws:iam::123456789012:role/r";
    for (session, text) in [
        ("x", "greater than or equal to 2"),
        ("a%20b", "regular expression"),
    ] {
        refused(
            &format!("{base}{role}&RoleSessionName={session}"),
            "ValidationError",
            text,
        );
    }
    let long = "s".repeat(65);
    refused(
        &format!("{base}{role}&RoleSessionName={long}"),
        "ValidationError",
        "less than or equal",
    );
    refused(
        &assume("&DurationSeconds=60"),
        "ValidationError",
        "durationSeconds",
    );
    refused(
        &assume("&DurationSeconds=43201"),
        "ValidationError",
        "less than or equal to 43200",
    );
    refused(
        &assume("&ExternalId=a%26b"),
        "ValidationError",
        "externalId",
    );
}

#[test]
fn faults_are_played() {
    let sts = start();
    let other = "arn:aws:iam::123456789012:role/other";
    sts.behave(
        Some(other),
        Behavior {
            fault: Some(Fault::AccessDenied),
            ..Default::default()
        },
    );
    for (fault, status, text) in [
        (
            Fault::AccessDenied,
            403,
            "is not authorized to perform: sts:AssumeRole on resource: arn",
        ),
        (Fault::Throttling, 400, "<Code>Throttling</Code>"),
        (Fault::InternalFailure, 500, "<Type>Receiver</Type>"),
        (Fault::ServiceUnavailable, 503, "ServiceUnavailable"),
        (Fault::Garbage, 200, "<Cred"),
        (Fault::NoCredentials, 200, "AssumeRoleResult"),
        (Fault::Disconnect, 0, ""),
    ] {
        sts.behave(
            None,
            Behavior {
                fault: Some(fault),
                ..Behavior::default()
            },
        );
        let (got, xml) = call(&sts, &sts.server_keys(), &assume(""));
        assert_eq!(got, status, "{fault:?}");
        assert!(xml.contains(text), "{fault:?}: {xml}");
    }
    assert_eq!(sts.assume_role_calls(), 7);
    sts.behave(None, Behavior::default());
    assert_eq!(call(&sts, &sts.server_keys(), &assume("")).0, 200);
}

#[test]
fn session_tags_and_source_identity_are_noted() {
    let sts = start();
    let more = "&Tags.member.1.Key=team&Tags.member.1.Value=a+b&SourceIdentity=me";
    let (status, xml) = call(&sts, &sts.server_keys(), &assume(more));
    assert_eq!((status, tag(&xml, "SourceIdentity")), (200, "me"), "{xml}");
    assert!(xml.contains("PackedPolicySize"), "{xml}");
    assert_eq!(sts.calls()[0].tags, [("team".to_owned(), "a b".to_owned())]);
}
