//! The programs' places in the kernel: all are loaded, and then attached to one cgroup, each by a
//! pinned link. A link that is there already is given the new program instead, in one step: there
//! is no moment without one.

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

/// A program and its place: `enum bpf_attach_type` of include/uapi/linux/bpf.h.
struct Place {
    program: &'static str,
    attach_type: u64,
}

/// The guard comes first: nothing is redirected that is not guarded.
const PLACES: [Place; 5] = [
    Place::new(programs::GUARD, 1),
    Place::new(programs::CONNECT4, 10),
    Place::new(programs::CONNECT6, 11),
    Place::new(programs::GETPEERNAME4, 29),
    Place::new(programs::GETPEERNAME6, 30),
];

/// How many programs were attached, and how many took another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attached {
    /// Attached where there was none.
    pub new: usize,
    /// Took the place of an earlier agent's.
    pub taken_over: usize,
}

impl Place {
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

/// The programs of others that run for the pods at one of the hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Others {
    /// Which of kiam's programs has the same hook.
    pub hook: &'static str,
    /// Their ids.
    pub programs: Vec<u32>,
}

impl Others {
    /// The hook and the programs' ids, if there are any.
    #[must_use]
    pub fn named(&self) -> Option<String> {
        let Self { hook, programs } = self;
        let ids: Vec<_> = programs.iter().map(ToString::to_string).collect();
        (!ids.is_empty()).then(|| format!("{hook}: {}", ids.join(", ")))
    }
}

/// Who else runs for the pods below `path`, at each hook.
///
/// # Errors
/// When the kernel does not tell: that takes the capability `NET_ADMIN`.
pub fn others(path: &Path, bpffs: &Path) -> std::io::Result<Vec<Others>> {
    let cgroup = File::open(path)?;
    let own = pins::programs(bpffs);
    let at = |place: &Place| {
        let attach_type = u32::try_from(place.attach_type).unwrap_or(u32::MAX);
        let mut programs = sys::effective_programs(cgroup.as_fd(), attach_type)?;
        programs.retain(|id| !own.contains(id));
        Ok(Others {
            hook: place.program,
            programs,
        })
    };
    PLACES.iter().map(at).collect()
}

/// Whether the guard, which is attached first, is at work on the cgroup at `path`.
///
/// # Errors
/// When there is no such cgroup or no BPF file system.
pub fn guarded(path: &Path, bpffs: &Path) -> Result<bool, KernelError> {
    pins::check(bpffs)?;
    let cgroup = std::fs::metadata(path).map_err(|source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    })?;
    Ok(pins::cgroup_of(bpffs, programs::GUARD) == Some(cgroup.ino()))
}

/// Asks the kernel whether it accepts all programs.
pub(super) fn load_all(object: &mut Ebpf) -> Result<(), KernelError> {
    PLACES.iter().try_for_each(|place| load(object, place))
}

/// Attaches all programs to the cgroup at `path`. Where that fails, what was guarded before is
/// guarded still, and what was not is not.
pub(super) fn attach(object: &mut Ebpf, path: &Path, pins: &Pins) -> Result<Attached, KernelError> {
    let failed = |source| KernelError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let cgroup = File::open(path).map_err(failed)?;
    let id = cgroup.metadata().map_err(failed)?.ino();
    // What the kernel does not accept is known before anything is attached.
    load_all(object)?;
    let mut attached = Attached::default();
    let mut made = Vec::new();
    for place in &PLACES {
        match put(object, place, (&cgroup, id, path), pins) {
            Ok(true) => attached.taken_over += 1,
            Ok(false) => {
                attached.new += 1;
                made.push(place);
            }
            Err(error) => {
                for place in made {
                    pins.remove_link(place.program)?;
                }
                return Err(error);
            }
        }
    }
    Ok(attached)
}

/// Whether it took the place of an earlier one.
fn put(
    object: &mut Ebpf,
    place: &Place,
    (cgroup, id, path): (&File, u64, &Path),
    pins: &Pins,
) -> Result<bool, KernelError> {
    let name = place.program;
    let earlier = pins.opened_link(name)?;
    if let Some((link, described)) = &earlier {
        let attach_type = described.number("attach_type");
        if attach_type != Some(place.attach_type) {
            let found = attach_type.map_or("a link of another kind".to_owned(), |attach_type| {
                format!("a link with the attach type {attach_type}")
            });
            return Err(pins.foreign_link(name, found).into());
        }
        if described.number("cgroup_id") == Some(id) {
            let replaced = sys::replace_program(link.as_fd(), descriptor(object, name)?.as_fd());
            match replaced {
                Ok(()) => return Ok(true),
                // Its cgroup has been removed, and another made in its place.
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
    let coming = pins.coming_link(name)?;
    let link = attach_new(object, place, cgroup, path)?;
    link.pin(coming).map_err(|source| KernelError::Pin {
        name,
        source: Box::new(source),
    })?;
    pins.come(name)?;
    Ok(earlier.is_some())
}

fn load(object: &mut Ebpf, place: &Place) -> Result<(), KernelError> {
    let name = place.program;
    let loaded = if place.is_guard() {
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

/// A link takes no other mode than `Single`; links stack all the same.
fn attach_new(
    object: &mut Ebpf,
    place: &Place,
    cgroup: &File,
    path: &Path,
) -> Result<FdLink, KernelError> {
    let (name, mode) = (place.program, CgroupAttachMode::Single);
    let failed = not_attached(name, path);
    let link = if place.is_guard() {
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
