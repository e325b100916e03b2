//! The way to the server: certificates, and a handshake with each of its addresses.

use std::time::Duration;

use kiam_common::flags::TlsFlags;
use kiam_common::tls::{self, ClientTls, TlsMetrics, TlsSide};
use prometheus::Registry;

use super::Finding;
use crate::args::DoctorArgs;
use crate::stream::Resolve as _;

const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn findings(args: &DoctorArgs) -> Vec<Finding> {
    const CERTIFICATES: &str = "certificates";
    const SERVER: &str = "server";
    let Some(server) = &args.server_address else {
        let found = "not asked for; --server-address, --cert, --key and --ca check them";
        return vec![Finding::ok(SERVER, found)];
    };
    let (Some(cert), Some(key), Some(ca)) = (&args.cert, &args.key, &args.ca) else {
        let found = "--server-address needs --cert, --key and --ca";
        return vec![Finding::fail(SERVER, found, "give the agent's own")];
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
        "they are read, and belong together",
    )];
    let addresses = match server.resolve().await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => {
            let found = format!("{server} has no address");
            let advice = "the server's service must be headless, and its pods ready";
            findings.push(Finding::fail(SERVER, found, advice));
            return findings;
        }
        Err(error) => {
            let found = format!("{server} cannot be resolved: {error}");
            let advice = "with hostNetwork the agent needs dnsPolicy: ClusterFirstWithHostNet";
            findings.push(Finding::fail(SERVER, found, advice));
            return findings;
        }
    };
    for address in addresses {
        let connecting = tls::connect(address, server.name(), &client);
        findings.push(match tokio::time::timeout(LIMIT, connecting).await {
            Ok(Ok(_)) => Finding::ok(SERVER, format!("{address} takes this agent's certificate")),
            Ok(Err(error)) => Finding::error(SERVER, &format!("{address}: {error}")),
            Err(_) => Finding::fail(
                SERVER,
                format!("{address} does not answer within {LIMIT:?}"),
                "a network policy must let the nodes connect to the server's port",
            ),
        });
    }
    findings
}
