//! Brings pods' connections to the agent by the node's firewall, and knows pods by their address.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use nix::net::if_::if_nameindex;

use super::{RedirectError, Redirected, reached};
use crate::args::Args;
use crate::caller::AddressIdentity;
use crate::iptables::{Firewall, FirewallMetrics, HostInterface, Rules};
use crate::token_key::TokenKey;

/// By rules of the node's firewall.
pub(crate) async fn iptables(
    args: &Args,
    address: SocketAddr,
) -> Result<Redirected, RedirectError> {
    let agent = reached(address)?;
    let flags = &args.iptables;
    let interface = flags.host_interface.clone();
    let interface = interface.ok_or(RedirectError::NoInterface)?;
    look_at(&interface);
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
        "pods' connections to the metadata service come here by firewall rules; pods are known by their addresses"
    );
    let remove = flags.iptables_remove;
    Ok(Redirected {
        // The firewall knows pods by the interfaces that they come in by: the agent comes in by none.
        check: None,
        identify: Arc::new(AddressIdentity),
        token_key: token_key(&flags.token_key_dir),
        guarded: true,
        upkeep: Box::new(move |_view, stop| Box::pin(firewall.keep(stop, remove))),
        metrics: vec![Box::new(counted)],
        keep: Box::new(()),
    })
}

/// The node's key of tokens; one that ends with this agent where none can be kept.
fn token_key(folder: &Path) -> TokenKey {
    TokenKey::kept_in(folder).unwrap_or_else(|error| {
        tracing::warn!(
            %error,
            "tokens of IMDSv2 end with this agent, and some clients get no other for six hours: no key can be kept (--token-key-dir)"
        );
        TokenKey::random()
    })
}

/// Warns of interfaces that are probably not the pods'.
fn look_at(interface: &HostInterface) {
    let names: Vec<_> = match if_nameindex() {
        Ok(all) => all
            .iter()
            .map(|one| one.name().to_string_lossy().into_owned())
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot list the node's network interfaces");
            return;
        }
    };
    if let Some(warning) = interface.warning(&names) {
        tracing::warn!("{warning}");
    }
}
