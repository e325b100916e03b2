//! Checks of the connection to the server: certificates, and a handshake with each address.

use std::time::Duration;

use kiam_common::flags::TlsFlags;
use kiam_common::metrics::Registry;
use kiam_common::tls::{self, ClientTls, TlsMetrics, TlsSide};

use super::Finding;
use crate::args::DoctorArgs;
use crate::stream::Resolve as _;

const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn findings(args: &DoctorArgs) -> Vec<Finding> {
    const CERTIFICATES: &str = "certificates";
    const SERVER: &str = "server";
    let Some(server) = &args.server_address else {
        let found = "not checked: needs --server-address, --cert, --key and --ca";
        return vec![Finding::ok(SERVER, found)];
    };
    let (Some(cert), Some(key), Some(ca)) = (&args.cert, &args.key, &args.ca) else {
        let found = "--server-address needs --cert, --key and --ca";
        return vec![Finding::fail(SERVER, found, "give the files of the agent")];
    };
    let (cert, key, ca) = (cert.clone(), key.clone(), ca.clone());
    let metrics = TlsMetrics::new(TlsSide::Client, &Registry::new());
    let client = match metrics.map(|metrics| ClientTls::client(TlsFlags { cert, key, ca }, metrics))
    {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return vec![Finding::error(CERTIFICATES, &error)],
        Err(error) => return vec![Finding::error(CERTIFICATES, &error)],
    };
    let mut findings = vec![Finding::ok(
        CERTIFICATES,
        "readable, and certificate and key match",
    )];
    let addresses = match server.resolve().await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => {
            let found = format!("{server} has no address");
            let advice = "make the server's service headless, and wait until its pods are ready";
            findings.push(Finding::fail(SERVER, found, advice));
            return findings;
        }
        Err(error) => {
            let found = format!("cannot resolve {server}: {error}");
            let advice = "with hostNetwork, set dnsPolicy: ClusterFirstWithHostNet for the agent";
            findings.push(Finding::fail(SERVER, found, advice));
            return findings;
        }
    };
    for address in addresses {
        let connecting = tls::connect(address, server.name(), &client);
        findings.push(match tokio::time::timeout(LIMIT, connecting).await {
            Ok(Ok(_)) => Finding::ok(SERVER, format!("{address} accepts the agent's certificate")),
            Ok(Err(error)) => Finding::error(SERVER, &format!("{address}: {error}")),
            Err(_) => Finding::fail(
                SERVER,
                format!("no answer from {address} within {LIMIT:?}"),
                "permit nodes to connect to the server's port in network policies",
            ),
        });
    }
    findings
}
