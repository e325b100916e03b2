//! Migration from kiam v4 as in docs/migrate.md: servers first, then agents node by node, and back.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use kiam_common::api::legacy::kiam_service_client::KiamServiceClient;
use kiam_common::api::legacy::{GetPodCredentialsRequest, GetPodRoleRequest};
use kiam_common::flags::TlsFlags;
use kiam_common::metrics::Registry;
use kiam_common::tls::{self, ClientTls, TlsMetrics, TlsSide};
use rustls::pki_types::ServerName;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::super::fixture::{Fixture, ROLE};
use super::super::report::Facts;
use super::tools::{Asking, has, is, seen};
use testbed::cluster::{Kubelet, PodTemplate, Running};
use testbed::kiam::SERVER_PORT;
use testbed::sandbox::CONTROL_IP;

const POD: &str = "moving";
const POD_ROLE: &str = "billing-moving";

/// Client of a server as kiam v4's agent: its calls, with its certificate, from its node.
struct OldAgent(KiamServiceClient<Channel>);

impl OldAgent {
    async fn connect(fixture: &Fixture) -> Result<Self> {
        let registry = Registry::new();
        let flags = TlsFlags {
            cert: fixture.tls.cert.clone(),
            key: fixture.tls.key.clone(),
            ca: fixture.tls.ca.clone(),
        };
        let client = ClientTls::client(flags, TlsMetrics::new(TlsSide::Client, &registry)?)?;
        let name = ServerName::IpAddress(CONTROL_IP.into());
        let address = (CONTROL_IP, SERVER_PORT).into();
        let channel = tls::connect(address, name, &client).await;
        Ok(Self(KiamServiceClient::new(channel?)))
    }

    /// Answer of that agent to a pod at this address: the name of its role, and whether there are
    /// credentials of it.
    async fn answer(&mut self, ip: IpAddr) -> Result<String, Status> {
        let ip = ip.to_string();
        let role = GetPodRoleRequest { ip: ip.clone() };
        let role = self.0.get_pod_role(role).await?.into_inner().name;
        let of_role = GetPodCredentialsRequest {
            ip,
            role: role.clone(),
        };
        let credentials = self.0.get_pod_credentials(of_role).await?.into_inner();
        if credentials.code == "Success" && !credentials.secret_access_key.is_empty() {
            return Ok(role);
        }
        Err(Status::internal(format!(
            "credentials of {role}: {}",
            credentials.code
        )))
    }
}

pub(super) async fn node_by_node(fixture: &mut Fixture) -> Result<Facts> {
    // 1: a node that has been moved, and one that has kiam's agent still.
    let template = PodTemplate {
        namespace: "billing",
        name: "moved",
        annotations: &[(ROLE, "billing-moved")],
        ..PodTemplate::default()
    };
    let moved = fixture.pod(&template).await?;
    is(fixture, &moved, "billing-moved")?;
    let kubelet = fixture.kubelets[1].clone();
    let old = pod_of_old_node(&kubelet).await?;
    let ip: IpAddr = old.pod().ip().context("a pod has an address")?.into();

    // 2: servers first. The pod of the moved node does not notice.
    let asking = Asking::begin(&moved, "billing-moved");
    fixture.stop_server()?;
    fixture.start_server_with(&["--legacy-agents"])?;
    let role = served(fixture, ip).await?;
    ensure!(role == POD_ROLE, "kiam's agent receives {role}");
    // Both kinds at once, each with its own node's pod.
    has(&moved, "billing-moved")?;

    // 3: the other node's agent is replaced.
    let (agent_pod, token) = fixture.agent_pod(&kubelet).await?;
    let mut agent = fixture.start_agent(&kubelet, &agent_pod, &token, &[])?;
    agent.ready()?;
    is(fixture, old.place(), POD_ROLE)?;
    // And back: kiam's agent would still be served while the flag is there.
    agent.stop()?;
    let again = served(fixture, ip).await?;
    ensure!(
        again == POD_ROLE,
        "after the rollback kiam's agent receives {again}"
    );

    // 4: the flag goes away, and servers have nothing for kiam's agents.
    fixture.end_server()?;
    fixture.start_server()?;
    let refused = OldAgent::connect(fixture).await?.answer(ip).await;
    let refused = refused.err().map(|status| status.code());
    ensure!(
        refused == Some(Code::Unimplemented),
        "after it: {refused:?}"
    );
    let (_, _) = seen(|| has(&moved, "billing-moved")).await?;
    let asked = asking.end().await?;
    kubelet.stop(agent_pod).await?;
    kubelet.stop(old).await?;
    Ok(vec![format!(
        "kiam v4's calls and the node stream at once; the moved node's pod asked {asked} times meanwhile and got its \
         credentials each time"
    )])
}

async fn pod_of_old_node(kubelet: &Kubelet) -> Result<Running> {
    let template = PodTemplate {
        namespace: "billing",
        name: POD,
        annotations: &[(ROLE, POD_ROLE)],
        ..PodTemplate::default()
    };
    kubelet.run(&template).await
}

/// With a connection of its own.
fn ask_once(fixture: &Fixture, ip: IpAddr) -> Result<Result<String, Status>> {
    let netns = fixture.sandbox.control().netns();
    netns.block_on(async || {
        let mut agent = OldAgent::connect(fixture).await?;
        Ok(agent.answer(ip).await)
    })?
}

/// kiam's agent tries again until the server has seen the pod, and so does this.
async fn served(fixture: &Fixture, ip: IpAddr) -> Result<String> {
    let (role, _after) = seen(|| ask_once(fixture, ip)?.map_err(anyhow::Error::from)).await?;
    Ok(role)
}
