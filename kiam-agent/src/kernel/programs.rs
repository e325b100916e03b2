//! The programs: loaded, told where the agent is, attached to the pods' cgroup.

use std::fmt;
use std::fs::File;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError,
};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use kiam_ebpf::{Config, Hook, LAYOUT, Verdict, count_index, maps, programs};

use super::attestor::{Attestor, Notes};
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

/// Why the kernel does not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The agent was built without the programs.
    #[error(
        "this agent was built without its kernel programs; run `cargo xtask build-ebpf`, then build it again"
    )]
    NoObject,
    /// The kernel does not describe itself.
    #[error(
        "the kernel has no BTF at /sys/kernel/btf/vmlinux ({0}); it needs CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf(#[source] Box<BtfError>),
    /// The object was not accepted.
    #[error("the kernel programs cannot be loaded: {}", chain(.0))]
    Load(#[source] Box<EbpfError>),
    /// A program was not accepted.
    #[error(
        "the kernel does not accept the program {program}: {}",
        rejection(source)
    )]
    Rejected {
        /// The program.
        program: &'static str,
        /// Why, with the verifier's words if it was the verifier.
        source: Box<ProgramError>,
    },
    /// A program or map is missing in the object.
    #[error("the kernel object has no {name}; was it built from another version?")]
    Missing {
        /// What is missing.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error("the kernel map {name} cannot be used: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: Box<MapError>,
    },
    /// The pods' cgroup cannot be opened.
    #[error("cannot open the pods' cgroup {}: {source}", path.display())]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program cannot be attached.
    #[error("cannot attach the program {program} to {}: {}", path.display(), chain(source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        source: Box<ProgramError>,
    },
}

/// The programs, in the kernel and attached. Dropping this detaches them.
pub struct Programs {
    verdicts: PerCpuArray<MapData, u64>,
    attestor: Arc<Attestor>,
    // What is attached stays so as long as these live; the rest of the object with its programs.
    _links: Links,
    _object: Ebpf,
}

#[derive(Default)]
struct Links {
    _connect: Vec<CgroupSockAddrLink>,
    _guard: Option<CgroupSkbLink>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

const SOCK_ADDR: [&str; 4] = [
    programs::CONNECT4,
    programs::CONNECT6,
    programs::GETPEERNAME4,
    programs::GETPEERNAME6,
];

impl Programs {
    /// Loads the programs, tells them where the agent is, and attaches them.
    ///
    /// The guard is attached first, and the configuration written before any: there is no moment
    /// at which a program sends a pod anywhere but to the agent.
    ///
    /// # Errors
    /// When the kernel does not do its part; nothing is attached then.
    pub fn attach(redirect: &Redirect) -> Result<Self, KernelError> {
        let mut object = load()?;
        let config = Config {
            layout: LAYOUT,
            host_v4: u32::from_ne_bytes(redirect.agent.ip().octets()),
            port: redirect.agent.port().to_be(),
            reserved: [0; 3],
            host_netns_cookie: redirect.host_netns_cookie,
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
        let cgroup = File::open(pods).map_err(|source| KernelError::Cgroup {
            path: pods.to_owned(),
            source,
        })?;
        let mut links = Links {
            _guard: Some(attach_guard(&mut object, &cgroup, pods)?),
            ..Links::default()
        };
        for name in SOCK_ADDR {
            links
                ._connect
                .push(attach_sock_addr(&mut object, name, &cgroup, pods)?);
        }
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
            verdicts,
            attestor,
            _links: links,
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

fn attach_guard(
    object: &mut Ebpf,
    cgroup: &File,
    path: &Path,
) -> Result<CgroupSkbLink, KernelError> {
    let name = programs::GUARD;
    let program: &mut CgroupSkb = program(object, name)?;
    program.load().map_err(rejected(name))?;
    let link = program
        .attach(
            cgroup,
            CgroupSkbAttachType::Egress,
            CgroupAttachMode::Single,
        )
        .and_then(|id| program.take_link(id));
    link.map_err(not_attached(name, path))
}

fn attach_sock_addr(
    object: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    path: &Path,
) -> Result<CgroupSockAddrLink, KernelError> {
    let program: &mut CgroupSockAddr = program(object, name)?;
    program.load().map_err(rejected(name))?;
    let link = program
        .attach(cgroup, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id));
    link.map_err(not_attached(name, path))
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object
        .program_mut(name)
        .ok_or(KernelError::Missing { name })?;
    program.try_into().map_err(rejected(name))
}

fn take(object: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    object.take_map(name).ok_or(KernelError::Missing { name })
}

fn typed<T>(name: &'static str, result: Result<T, MapError>) -> Result<T, KernelError> {
    result.map_err(|source| KernelError::Map {
        name,
        source: Box::new(source),
    })
}

fn rejected(program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Rejected {
        program,
        source: Box::new(source),
    }
}

fn not_attached(program: &'static str, path: &Path) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Attach {
        program,
        path: path.to_owned(),
        source: Box::new(source),
    }
}

/// An error with its causes, on one line, and what helps against the commonest.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    let mut denied = false;
    while let Some(source) = next {
        text = format!("{text}: {source}");
        denied |= source
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
        next = source.source();
    }
    if denied {
        text.push_str("; the agent needs the capabilities BPF, NET_ADMIN and PERFMON");
    }
    text
}

/// The end of what the verifier said tells what it did not like.
fn rejection(error: &ProgramError) -> String {
    const LINES: usize = 12;
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
            if tail.is_empty() {
                return chain(io_error);
            }
            format!("{io_error}; the verifier's last words:\n  {tail}")
        }
        other => chain(other),
    }
}
