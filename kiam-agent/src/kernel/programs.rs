//! The programs: loaded, configured, attached to the cgroup of all pods.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::{BtfError, Ebpf, EbpfLoader};
use clap::ValueEnum as _;
use kiam_ebpf::{
    CONTAINER_V4, Config, EVENT_LEVEL, Hook, LAYOUT, Verdict, count_index, egress, host_network,
    maps,
};

use super::attestor::{Attestations, Attestor, ConsumedCounts};
use super::closed::ClosedCount;
use super::error::{KernelError, typed};
use super::events::{Events, KernelLog};
use super::host_pods::{HostNetwork, HostPods};
use super::links::{self, Attached};
use super::object;
use super::pins::Pins;

/// BTF of the running kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Configuration of the programs.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// The cgroup of all pods.
    pub pods: PathBuf,
    /// The address that the agent listens on, which pods must be able to reach.
    pub agent: SocketAddrV4,
    /// The network namespace of the node: see [`own_netns_cookie`](super::own_netns_cookie).
    pub host_netns_cookie: u64,
    /// Treatment of `hostNetwork` pods that `HostPods` has no entry for.
    pub host_network: HostNetwork,
    /// Drop pods' packets to the metadata service.
    pub guard_egress: bool,
    /// A second address whose port 80 is redirected to the agent.
    pub container: Option<Ipv4Addr>,
    /// Decisions to report.
    pub log: KernelLog,
    /// The BPF file system for pins, by which the programs outlive the agent.
    pub bpffs: PathBuf,
}

/// The loaded, attached and pinned programs. They stay attached when this value is dropped.
pub struct Programs {
    attached: Attached,
    verdicts: PerCpuArray<MapData, u64>,
    closed: ClosedCount,
    attestor: Arc<Attestor>,
    host_pods: HostPods,
    events: Mutex<Option<Events>>,
    _object: Ebpf,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads and configures the programs, and attaches them or replaces those of an earlier agent.
    ///
    /// The configuration is written before any program is attached, and the guard is attached
    /// first: at no time does a program send a pod anywhere but to an agent. On failure, what was
    /// guarded stays guarded.
    pub fn attach(redirect: &Redirect) -> Result<Self, KernelError> {
        let pods = std::fs::metadata(&redirect.pods).map_err(|source| KernelError::Cgroup {
            path: redirect.pods.clone(),
            source,
        })?;
        let config = Config {
            layout: LAYOUT,
            host_v4: u32::from_ne_bytes(redirect.agent.ip().octets()),
            port: redirect.agent.port().to_be(),
            host_network: match redirect.host_network {
                HostNetwork::Passthrough | HostNetwork::Annotated => host_network::REAL,
                HostNetwork::Deny => host_network::REFUSED,
            },
            egress: if redirect.guard_egress {
                egress::GUARDED
            } else {
                egress::OPEN
            },
            host_netns_cookie: redirect.host_netns_cookie,
            pods_cgroup: pods.ino(),
            ..Config::NONE
        };
        Self::attach_configured(Some((&config, redirect)), &redirect.pods, &redirect.bpffs)
    }

    /// Attaches unconfigured programs, as an agent leaves them that dies before it has configured
    /// them. They refuse everything.
    pub fn attach_unconfigured(pods: &Path, bpffs: &Path) -> Result<Self, KernelError> {
        Self::attach_configured(None, pods, bpffs)
    }

    fn attach_configured(
        config: Option<(&Config, &Redirect)>,
        pods: &Path,
        bpffs: &Path,
    ) -> Result<Self, KernelError> {
        // Locked until everything is attached.
        let pins = Pins::open(bpffs)?;
        let constants = config.map_or_else(Constants::default, |(_, redirect)| Constants {
            container: redirect.container,
            log: redirect.log,
        });
        let mut object = load(Some(&pins), constants)?;
        if let Some((config, _)) = config {
            configure(&mut object, config)?;
        }
        let verdicts = typed(
            maps::VERDICTS,
            take(&mut object, maps::VERDICTS)?.try_into(),
        )?;
        let closed = typed(
            maps::CLOSED,
            ClosedCount::new(take(&mut object, maps::CLOSED)?),
        )?;
        let Map::Array(consumed) = take(&mut object, maps::CONSUMED)? else {
            return Err(KernelError::Missing {
                name: maps::CONSUMED,
            });
        };
        let consumed = typed(maps::CONSUMED, ConsumedCounts::new(&consumed))?;
        let Map::HashMap(attestations) = take(&mut object, maps::ATTESTATIONS)? else {
            return Err(KernelError::Missing {
                name: maps::ATTESTATIONS,
            });
        };
        let attestations = typed(maps::ATTESTATIONS, Attestations::new(attestations))?;
        let events = match constants.log {
            KernelLog::Off => None,
            KernelLog::Refused | KernelLog::All => Some(Events::of(&mut object)?),
        };
        let host_pods = take(&mut object, maps::HOST_PODS)?;
        let host_pods = typed(maps::HOST_PODS, HostPods::new(host_pods, pods))?;
        let attached = links::attach(&mut object, pods, &pins)?;
        pins.remove_other_versions()?;
        Ok(Self {
            attached,
            verdicts,
            closed,
            attestor: Arc::new(Attestor::new(attestations, consumed)),
            host_pods,
            events: Mutex::new(events),
            _object: object,
        })
    }

    /// Returns how many programs are new, and how many replaced others.
    pub const fn attached(&self) -> Attached {
        self.attached
    }

    /// Returns the attestor.
    pub fn attestor(&self) -> Arc<Attestor> {
        Arc::clone(&self.attestor)
    }

    /// Returns the table of `hostNetwork` pods.
    pub(crate) fn host_pods(&self) -> HostPods {
        self.host_pods.clone()
    }

    /// Returns the reader of decisions, once, if `--kernel-log` asks for them.
    pub fn take_events(&self) -> Option<Events> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.take()
    }

    /// Returns the number of closed connections that were older than the programs.
    pub fn closed(&self) -> Result<u64, KernelError> {
        self.closed.read()
    }

    /// Returns the verdicts since the programs were attached, summed over CPUs and hooks.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, KernelError> {
        let counts = self.counts()?;
        let of = |verdict| {
            let counts = counts.iter().filter(|count| count.1 == verdict);
            (verdict, counts.map(|count| count.2).sum())
        };
        Ok(Verdict::ALL.into_iter().map(of).collect())
    }

    /// Returns the verdicts of each hook since the programs were attached, summed over CPUs.
    pub fn counts(&self) -> Result<Vec<(Hook, Verdict, u64)>, KernelError> {
        let count = |hook, verdict| {
            let index = count_index(hook, verdict);
            let values = typed(maps::VERDICTS, self.verdicts.get(&index, 0))?;
            Ok((hook, verdict, values.iter().sum()))
        };
        let of = |hook| Verdict::ALL.map(|verdict| count(hook, verdict));
        Hook::ALL.into_iter().flat_map(of).collect()
    }
}

/// Lets the kernel verify all programs for all log levels, and attaches none.
pub(crate) fn verify() -> Result<(), KernelError> {
    KernelLog::value_variants().iter().try_for_each(|log| {
        let constants = Constants {
            container: None,
            log: *log,
        };
        links::load_all(&mut load(None, constants)?)
    })
}

/// Values that are constants to the verifier, which removes unreachable code.
#[derive(Debug, Clone, Copy, Default)]
struct Constants {
    container: Option<Ipv4Addr>,
    log: KernelLog,
}

fn load(pins: Option<&Pins>, constants: Constants) -> Result<Ebpf, KernelError> {
    let bytes = object::embedded().ok_or(KernelError::NoObject)?;
    if let Err(error) = std::fs::metadata(BTF) {
        let path = BTF.into();
        return Err(KernelError::NoBtf(Box::new(BtfError::FileError {
            path,
            error,
        })));
    }
    let container = constants.container;
    let container = container.map(|address| u32::from_ne_bytes(address.octets()));
    let level = constants.log.level();
    // Reads several megabytes of BTF, which are freed again.
    let mut loader = EbpfLoader::new();
    loader.override_global(EVENT_LEVEL, &level, true);
    if let Some(container) = &container {
        loader.override_global(CONTAINER_V4, container, true);
    }
    if let Some(pins) = pins {
        for map in &maps::PINNED {
            // Reused if it is pinned, else created and pinned.
            loader.map_pin_path(map.name, pins.map(map)?);
        }
    }
    let loaded = loader.load(bytes);
    loaded.map_err(|error| KernelError::Load(Box::new(error)))
}

/// Writes the configuration unless it is unchanged: programs of an earlier agent may be reading.
fn configure(object: &mut Ebpf, config: &Config) -> Result<(), KernelError> {
    let map = object
        .map_mut(maps::CONFIG)
        .ok_or(KernelError::Missing { name: maps::CONFIG })?;
    let mut array: Array<_, Config> = typed(maps::CONFIG, map.try_into())?;
    if typed(maps::CONFIG, array.get(&0, 0))? == *config {
        return Ok(());
    }
    typed(maps::CONFIG, array.set(0, config, 0))
}

fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    object.take_map(name).ok_or(KernelError::Missing { name })
}

#[cfg(test)]
mod tests {
    use kiam_common::metadata_address;
    use kiam_ebpf::{METADATA_V4, METADATA_V6};

    #[test]
    fn the_programs_and_the_agent_use_the_same_addresses() {
        assert_eq!(
            METADATA_V4.to_ne_bytes(),
            metadata_address::METADATA_V4.octets()
        );
        let v6 = METADATA_V6.map(u32::to_ne_bytes).concat();
        assert_eq!(v6, metadata_address::METADATA_V6.octets());
    }
}
