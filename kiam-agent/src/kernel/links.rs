//! The programs' places in the kernel: all are loaded, and then attached to one cgroup.

use std::fs::File;
use std::path::Path;

use aya::Ebpf;
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError,
};
use kiam_ebpf::programs;

use super::error::{KernelError, not_attached, rejected};

const SOCK_ADDR: [&str; 4] = [
    programs::CONNECT4,
    programs::CONNECT6,
    programs::GETPEERNAME4,
    programs::GETPEERNAME6,
];

/// What is attached, as long as this lives. The guard comes first and goes last.
pub(super) struct Links {
    _sock_addr: Vec<CgroupSockAddrLink>,
    _guard: CgroupSkbLink,
}

impl Links {
    /// Attaches all programs to the cgroup at `path`, or none.
    pub(super) fn attach(object: &mut Ebpf, path: &Path) -> Result<Self, KernelError> {
        let cgroup = File::open(path).map_err(|source| KernelError::Cgroup {
            path: path.to_owned(),
            source,
        })?;
        // What the kernel does not accept is known before anything is attached.
        let guard: &mut CgroupSkb = program(object, programs::GUARD)?;
        guard.load().map_err(rejected(programs::GUARD))?;
        for name in SOCK_ADDR {
            let program: &mut CgroupSockAddr = program(object, name)?;
            program.load().map_err(rejected(name))?;
        }
        let guard = attach_guard(object, &cgroup, path)?;
        let sock_addr = SOCK_ADDR.map(|name| attach_sock_addr(object, name, &cgroup, path));
        Ok(Self {
            _sock_addr: sock_addr.into_iter().collect::<Result<_, _>>()?,
            _guard: guard,
        })
    }
}

fn attach_guard(
    object: &mut Ebpf,
    cgroup: &File,
    path: &Path,
) -> Result<CgroupSkbLink, KernelError> {
    let program: &mut CgroupSkb = program(object, programs::GUARD)?;
    // A link takes no other mode; links stack all the same.
    let (hook, mode) = (CgroupSkbAttachType::Egress, CgroupAttachMode::Single);
    let id = program.attach(cgroup, hook, mode);
    id.and_then(|id| program.take_link(id))
        .map_err(not_attached(programs::GUARD, path))
}

fn attach_sock_addr(
    object: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    path: &Path,
) -> Result<CgroupSockAddrLink, KernelError> {
    let program: &mut CgroupSockAddr = program(object, name)?;
    let id = program.attach(cgroup, CgroupAttachMode::Single);
    id.and_then(|id| program.take_link(id))
        .map_err(not_attached(name, path))
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
