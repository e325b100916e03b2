//! The cluster's DNS: names of Services, as their EndpointSlices have them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};

use super::DNS;
use testbed::doubles::dns::{Dns, Reply};
use testbed::sandbox::{Guest, Sandbox};

const SERVICE: &str = "kubernetes.io/service-name";

/// DNS that follows the API until it is dropped.
#[derive(Debug)]
pub(super) struct Names {
    _follower: Guest,
}

impl Names {
    /// Serves in the sandbox's control namespace.
    pub(super) fn follow(sandbox: &Sandbox, kubeconfig: &Path) -> Result<Self> {
        let netns = sandbox.control().netns();
        let socket = netns.run(|| UdpSocket::bind(DNS))?;
        let socket = socket.with_context(|| format!("cannot bind {DNS}"))?;
        let dns = Dns::start(socket, Reply::Names(BTreeMap::new()))?;
        let config = Kubeconfig::read_from(kubeconfig).context("cannot read a kubeconfig")?;
        let follower = netns.host("names", move || async move {
            if let Err(error) = follow(config, &dns).await {
                // Whoever looks names up fails, and its check with it.
                dns.reply_with(Reply::Failure);
                drop(error);
            }
        })?;
        Ok(Self {
            _follower: follower,
        })
    }
}

async fn follow(config: Kubeconfig, dns: &Dns) -> Result<()> {
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
    let slices: Api<EndpointSlice> = Api::all(kube::Client::try_from(config)?);
    let events = watcher(slices, watcher::Config::default());
    pin_mut!(events);
    let mut known = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => known.clear(),
            Ok(Event::Apply(slice) | Event::InitApply(slice)) => {
                known.insert(key(&slice), slice);
            }
            Ok(Event::Delete(slice)) => {
                known.remove(&key(&slice));
            }
            Ok(Event::InitDone) | Err(_) => {}
        }
        dns.reply_with(Reply::Names(names(known.values())));
    }
    Ok(())
}

fn key(slice: &EndpointSlice) -> (Option<String>, Option<String>) {
    let metadata = &slice.metadata;
    (metadata.namespace.clone(), metadata.name.clone())
}

/// Addresses of what is ready, by the name of its Service. Services with an address of their own
/// have those of their endpoints too: kube-proxy would choose one.
fn names<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> BTreeMap<String, Vec<Ipv4Addr>> {
    let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE));
        let (Some(service), Some(namespace)) = (service, &slice.metadata.namespace) else {
            continue;
        };
        let name = format!("{service}.{namespace}.svc.cluster.local");
        let addresses = names.entry(name).or_default();
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().and_then(|is| is.ready);
            if ready != Some(false) {
                let parsed = endpoint.addresses.iter();
                addresses.extend(parsed.filter_map(|address| address.parse::<Ipv4Addr>().ok()));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_the_addresses_of_ready_endpoints() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "kiam-server-x", "namespace": "kube-system",
                "labels": { SERVICE: "kiam-server" },
            },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.244.1.2"], "conditions": { "ready": true } },
                { "addresses": ["10.244.1.3"], "conditions": { "ready": false } },
            ],
        }))
        .unwrap();
        let expected = vec![Ipv4Addr::new(10, 244, 1, 2)];
        let name = "kiam-server.kube-system.svc.cluster.local".to_owned();
        assert_eq!(names([&slice]), BTreeMap::from([(name, expected)]));
    }
}
