//! `--redirect=iptables`: firewall rules redirect pods, and their addresses identify them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use nix::net::if_::if_nameindex;

use super::{RedirectError, Redirected, check_reachable};
use crate::app::BackgroundTask;
use crate::args::Args;
use crate::caller::AddressIdentity;
use crate::iptables::{Firewall, FirewallMetrics, HostInterface, Rules};
use crate::token_key::TokenKey;

/// Installs the firewall rules.
pub(crate) async fn iptables(
    args: &Args,
    address: SocketAddr,
) -> Result<Redirected, RedirectError> {
    let agent = check_reachable(address)?;
    let flags = &args.iptables;
    let interface = flags.host_interface.clone();
    let interface = interface.ok_or(RedirectError::NoInterface)?;
    warn_of_missing(&interface);
    let metrics = FirewallMetrics::new()?;
    let counted = metrics.collector();
    let rules = Rules {
        interface,
        agent,
        container: args.metadata.container_credentials_address,
    };
    let firewall = Firewall::install(rules.clone(), metrics).await?;
    tracing::info!(
        interface = %rules.interface,
        %agent,
        variant = firewall.variant().as_label(),
        "firewall rules redirect pods' connections to the agent; pods are identified by address"
    );
    let remove = flags.iptables_remove;
    let task = BackgroundTask::new("firewall", move |_view, stop| firewall.run(stop, remove));
    Ok(Redirected {
        // The rules match by interface, and connections of the agent itself arrive on none.
        check: None,
        identify: Arc::new(AddressIdentity),
        token_key: token_key(&flags.token_key_dir),
        guarded: true,
        tasks: vec![task],
        metrics: vec![Box::new(counted)],
        programs: None,
    })
}

/// Returns the node's key of tokens, or a key for this agent only if it cannot be stored.
fn token_key(folder: &Path) -> TokenKey {
    TokenKey::load_or_create(folder).unwrap_or_else(|error| {
        tracing::warn!(
            %error,
            "cannot store the key of IMDSv2 tokens: tokens become invalid when this agent stops, and some clients get no other for six hours; check --token-key-dir"
        );
        TokenKey::random()
    })
}

/// Warns if the interfaces are probably not those of pods.
fn warn_of_missing(interface: &HostInterface) {
    let names: Vec<_> = match if_nameindex() {
        Ok(all) => all
            .iter()
            .map(|one| one.name().to_string_lossy().into_owned())
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the network interfaces of the node");
            return;
        }
    };
    if let Some(warning) = interface.warning(&names) {
        tracing::warn!("{warning}");
    }
}
