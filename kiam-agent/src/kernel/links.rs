//! Attachment of the programs to one cgroup, each by a pinned link. All programs are loaded first.
//! An existing link gets the new program in one step, so that there is always one attached.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, ProgramFd,
};
use kiam_ebpf::programs;

use super::error::{KernelError, not_attached, rejected};
use super::pins::{self, Pins};
use super::sys;

/// A program and its attachment point: `enum bpf_attach_type` of include/uapi/linux/bpf.h.
struct Attachment {
    program: &'static str,
    attach_type: u64,
}

/// The guard comes first, so that nothing is redirected without it.
const ATTACHMENTS: [Attachment; 5] = [
    Attachment::new(programs::GUARD, 1),
    Attachment::new(programs::CONNECT4, 10),
    Attachment::new(programs::CONNECT6, 11),
    Attachment::new(programs::GETPEERNAME4, 29),
    Attachment::new(programs::GETPEERNAME6, 30),
];

/// Number of programs that were attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attached {
    /// Programs attached where none was.
    pub new: usize,
    /// Programs that replaced those of an earlier agent.
    pub taken_over: usize,
}

impl Attachment {
    const fn new(program: &'static str, attach_type: u64) -> Self {
        Self {
            program,
            attach_type,
        }
    }

    fn is_guard(&self) -> bool {
        self.program == programs::GUARD
    }
}

/// Programs of other software at a hook that kiam uses too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignPrograms {
    /// The program of kiam at the same hook.
    pub(crate) hook: &'static str,
    /// The ids of the programs.
    pub(crate) programs: Vec<u32>,
}

impl ForeignPrograms {
    /// Returns the hook and the ids, unless there are none.
    pub(crate) fn summary(&self) -> Option<String> {
        let Self { hook, programs } = self;
        let ids: Vec<_> = programs.iter().map(ToString::to_string).collect();
        (!ids.is_empty()).then(|| format!("{hook}: {}", ids.join(", ")))
    }
}

/// Returns the programs of other software at each hook. Needs the capability `NET_ADMIN`.
pub(crate) fn foreign_programs(path: &Path, bpffs: &Path) -> std::io::Result<Vec<ForeignPrograms>> {
    let cgroup = File::open(path)?;
    let own = pins::programs(bpffs);
    let at = |attachment: &Attachment| {
        let attach_type = u32::try_from(attachment.attach_type).unwrap_or(u32::MAX);
        let mut programs = sys::effective_programs(cgroup.as_fd(), attach_type)?;
        programs.retain(|id| !own.contains(id));
        Ok(ForeignPrograms {
            hook: attachment.program,
            programs,
        })
    };
    ATTACHMENTS.iter().map(at).collect()
}

/// Returns whether the guard, which is attached first, is attached to the cgroup at `path`.
pub fn guarded(path: &Path, bpffs: &Path) -> Result<bool, KernelError> {
    pins::check(bpffs)?;
    let cgroup = std::fs::metadata(path).map_err(|source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    })?;
    Ok(pins::cgroup_of(bpffs, programs::GUARD) == Some(cgroup.ino()))
}

/// Loads all programs, so that the kernel verifies them.
pub(super) fn load_all(object: &mut Ebpf) -> Result<(), KernelError> {
    ATTACHMENTS
        .iter()
        .try_for_each(|attachment| load(object, attachment))
}

/// Attaches all programs to the cgroup at `path`. On failure, a cgroup that was guarded stays
/// guarded, and new links are removed.
pub(super) fn attach(object: &mut Ebpf, path: &Path, pins: &Pins) -> Result<Attached, KernelError> {
    let failed = |source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let cgroup = File::open(path).map_err(failed)?;
    let id = cgroup.metadata().map_err(failed)?.ino();
    // Before anything is attached, so that a rejected program changes nothing.
    load_all(object)?;
    let mut attached = Attached::default();
    let mut made = Vec::new();
    for attachment in &ATTACHMENTS {
        match put(object, attachment, (&cgroup, id, path), pins) {
            Ok(true) => attached.taken_over += 1,
            Ok(false) => {
                attached.new += 1;
                made.push(attachment);
            }
            Err(error) => {
                for attachment in made {
                    pins.remove_link(attachment.program)?;
                }
                return Err(error);
            }
        }
    }
    Ok(attached)
}

/// Attaches a program, and returns whether it replaced one of an earlier agent.
fn put(
    object: &mut Ebpf,
    attachment: &Attachment,
    (cgroup, id, path): (&File, u64, &Path),
    pins: &Pins,
) -> Result<bool, KernelError> {
    let name = attachment.program;
    let earlier = pins.opened_link(name)?;
    if let Some((link, described)) = &earlier {
        let attach_type = described.number("attach_type");
        if attach_type != Some(attachment.attach_type) {
            let found = attach_type.map_or("a link of another kind".to_owned(), |attach_type| {
                format!("a link with the attach type {attach_type}")
            });
            return Err(pins.foreign_link(name, found).into());
        }
        if described.number("cgroup_id") == Some(id) {
            let replaced = sys::replace_program(link.as_fd(), descriptor(object, name)?.as_fd());
            match replaced {
                Ok(()) => return Ok(true),
                // The cgroup was removed and created again.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(source) => {
                    return Err(KernelError::Replace {
                        program: name,
                        source,
                    });
                }
            }
        }
    }
    let staged = pins.staged_link(name)?;
    let link = attach_new(object, attachment, cgroup, path)?;
    link.pin(staged).map_err(|source| KernelError::Pin {
        name,
        source: Box::new(source),
    })?;
    pins.commit_link(name)?;
    Ok(earlier.is_some())
}

fn load(object: &mut Ebpf, attachment: &Attachment) -> Result<(), KernelError> {
    let name = attachment.program;
    let loaded = if attachment.is_guard() {
        program::<CgroupSkb>(object, name)?.load()
    } else {
        program::<CgroupSockAddr>(object, name)?.load()
    };
    loaded.map_err(rejected(name))
}

fn descriptor<'a>(object: &'a Ebpf, name: &'static str) -> Result<&'a ProgramFd, KernelError> {
    let program = object.program(name).ok_or(KernelError::Missing { name })?;
    program.fd().map_err(rejected(name))
}

/// Attaches by a new link. Links accept no mode but `Single`, and still stack.
fn attach_new(
    object: &mut Ebpf,
    attachment: &Attachment,
    cgroup: &File,
    path: &Path,
) -> Result<FdLink, KernelError> {
    let (name, mode) = (attachment.program, CgroupAttachMode::Single);
    let failed = not_attached(name, path);
    let link = if attachment.is_guard() {
        let program: &mut CgroupSkb = program(object, name)?;
        let id = program.attach(cgroup, CgroupSkbAttachType::Egress, mode);
        let link = id.and_then(|id| program.take_link(id)).map_err(failed)?;
        link.try_into()
    } else {
        let program: &mut CgroupSockAddr = program(object, name)?;
        let id = program.attach(cgroup, mode);
        let link = id.and_then(|id| program.take_link(id)).map_err(failed)?;
        link.try_into()
    };
    link.map_err(|_no_link: LinkError| KernelError::NoLinks)
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
