//! The programs: loaded, told where the agent is, attached to the pods' cgroup.

use std::fmt;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::{Btf, Ebpf, EbpfLoader};
use kiam_ebpf::{Config, Hook, LAYOUT, Verdict, count_index, maps};

use super::attestor::{Attestor, Notes};
use super::error::{KernelError, typed};
use super::links::Links;
use super::object;

/// What the programs are told.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// The cgroup that all pods are below.
    pub pods: PathBuf,
    /// Where the agent listens: an address of the node that pods reach.
    pub agent: SocketAddrV4,
    /// The network namespace of the node: see [`own_netns_cookie`](super::own_netns_cookie).
    pub host_netns_cookie: u64,
}

/// The programs, in the kernel and attached. Dropping this detaches them.
pub struct Programs {
    // What is attached stays so as long as these live.
    _links: Links,
    verdicts: PerCpuArray<MapData, u64>,
    attestor: Arc<Attestor>,
    _object: Ebpf,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads the programs, tells them where the agent is, and attaches them.
    ///
    /// The guard is attached first, and the configuration written before any: there is no moment
    /// at which a program sends a pod anywhere but to the agent.
    ///
    /// # Errors
    /// When the kernel does not do its part; nothing is attached then.
    pub fn attach(redirect: &Redirect) -> Result<Self, KernelError> {
        let pods = std::fs::metadata(&redirect.pods).map_err(|source| KernelError::Cgroup {
            path: redirect.pods.clone(),
            source,
        })?;
        let mut object = load()?;
        let config = Config {
            layout: LAYOUT,
            host_v4: u32::from_ne_bytes(redirect.agent.ip().octets()),
            port: redirect.agent.port().to_be(),
            reserved: [0; 3],
            host_netns_cookie: redirect.host_netns_cookie,
            pods_cgroup: pods.ino(),
        };
        configure(&mut object, &config)?;
        Self::attach_configured(object, &redirect.pods)
    }

    /// Attaches the programs as an agent leaves them that dies before it has told them anything.
    /// They refuse everything.
    ///
    /// # Errors
    /// As [`Programs::attach`].
    pub fn attach_unconfigured(pods: &Path) -> Result<Self, KernelError> {
        Self::attach_configured(load()?, pods)
    }

    fn attach_configured(mut object: Ebpf, pods: &Path) -> Result<Self, KernelError> {
        let verdicts = typed(
            maps::VERDICTS,
            take(&mut object, maps::VERDICTS)?.try_into(),
        )?;
        let taken = typed(maps::TAKEN, take(&mut object, maps::TAKEN)?.try_into())?;
        let Map::HashMap(notes) = take(&mut object, maps::ATTESTATIONS)? else {
            return Err(KernelError::Missing {
                name: maps::ATTESTATIONS,
            });
        };
        let notes = typed(maps::ATTESTATIONS, Notes::new(notes))?;
        let attestor = Arc::new(typed(maps::TAKEN, Attestor::new(notes, taken))?);
        Ok(Self {
            _links: Links::attach(&mut object, pods)?,
            verdicts,
            attestor,
            _object: object,
        })
    }

    /// Who tells which cgroup made a connection.
    #[must_use]
    pub fn attestor(&self) -> Arc<Attestor> {
        Arc::clone(&self.attestor)
    }

    /// What the programs have done since they were attached, over all CPUs and hooks.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, KernelError> {
        let counts = self.counts()?;
        let of = |verdict| {
            let counts = counts.iter().filter(|count| count.1 == verdict);
            (verdict, counts.map(|count| count.2).sum())
        };
        Ok(Verdict::ALL.into_iter().map(of).collect())
    }

    /// What each program has done since they were attached, over all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
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

fn load() -> Result<Ebpf, KernelError> {
    let bytes = object::embedded().ok_or(KernelError::NoObject)?;
    let btf = Btf::from_sys_fs().map_err(|error| KernelError::NoBtf(Box::new(error)))?;
    let loaded = EbpfLoader::new().btf(Some(&btf)).load(bytes);
    loaded.map_err(|error| KernelError::Load(Box::new(error)))
}

fn configure(object: &mut Ebpf, config: &Config) -> Result<(), KernelError> {
    let map = object
        .map_mut(maps::CONFIG)
        .ok_or(KernelError::Missing { name: maps::CONFIG })?;
    let mut array: Array<_, Config> = typed(maps::CONFIG, map.try_into())?;
    typed(maps::CONFIG, array.set(0, config, 0))
}

fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    object.take_map(name).ok_or(KernelError::Missing { name })
}
