//! The folder in which the programs' links and maps outlive the agent.
//!
//! ```text
//! BPFFS/kiam/links/PROGRAM        a link: while it is there, its program runs
//! BPFFS/kiam/maps/MAP-VERSION     a map, of the version that both sides knew
//! ```
//!
//! With the agent dead, pods' connections are still redirected, and refused as nobody listens. The
//! next agent takes over what is here.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kiam_ebpf::maps::{KEPT, Kept};
use nix::sys::statfs::fstatfs;

use super::sys::{self, Description};

/// Where the kernel's documentation mounts it, and systemd does.
pub const BPFFS: &str = "/sys/fs/bpf";

const FOLDER: &str = "kiam";
const LINKS: &str = "links";
const MAPS: &str = "maps";
/// A link that is to take another's name. The file system has no names with dots.
const COMING: &str = "-new";

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// It is not there, or cannot be used.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Folder {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is an ordinary file system.
    #[error(
        "{} is no BPF file system, in which the kernel programs would outlive the agent; mount the node's into the agent (hostPath /sys/fs/bpf), or `mount -t bpf bpf /sys/fs/bpf` on the node; --bpffs names another place",
        path.display()
    )]
    NotBpf {
        /// `--bpffs`
        path: PathBuf,
    },
    /// Something else is in a pin's place.
    #[error(
        "{} is {found}, and not {expected} of kiam's; nothing was changed. If nothing else uses it, remove it; --bpffs names another place",
        path.display()
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the agent needs the capability BPF, and must own the folder"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; it must be mounted into the agent to be written to",
        _ => "",
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Programs that ran until now.
    pub links: usize,
    /// Maps.
    pub maps: usize,
}

/// The folder, for one agent at a time: another waits until this is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens the folder in the BPF file system at `bpffs`, and makes it where it is missing.
    pub(super) fn open(bpffs: &Path) -> Result<Self, PinsError> {
        check(bpffs)?;
        let pins = Self::lock(make(bpffs.join(FOLDER))?)?;
        make(pins.folder.join(LINKS))?;
        make(maps(&pins.folder))?;
        Ok(pins)
    }

    fn lock(folder: PathBuf) -> Result<Self, PinsError> {
        let failed = failed("lock", &folder);
        let opened = File::open(&folder);
        let lock = opened.and_then(|file| file.lock().map(|()| file));
        let lock = lock.map_err(failed)?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Where a map is pinned, or will be.
    pub(super) fn map(&self, map: &Kept) -> Result<PathBuf, PinsError> {
        let path = maps(&self.folder).join(pin(map));
        let Some((_, described)) = self.opened(path.clone(), "bpf-map", "a map")? else {
            return Ok(path);
        };
        let shape = ["key_size", "value_size", "max_entries"].map(|field| described.number(field));
        let expected = [map.key, map.value, map.entries].map(|size| u64::try_from(size).ok());
        if shape == expected {
            return Ok(path);
        }
        // What the kernel writes would not fit where it is read.
        let [key, value, entries] = shape.map(Option::unwrap_or_default);
        Err(PinsError::Foreign {
            path,
            found: format!("a map of {entries} values of {value} bytes, by {key}"),
            expected: "this map",
        })
    }

    fn link(&self, program: &str) -> PathBuf {
        self.folder.join(LINKS).join(program)
    }

    /// The link of a program that an earlier agent has left.
    pub(super) fn opened_link(
        &self,
        program: &str,
    ) -> Result<Option<(OwnedFd, Description)>, PinsError> {
        self.opened(self.link(program), "bpf-link", "a link")
    }

    fn opened(
        &self,
        path: PathBuf,
        kind: &str,
        expected: &'static str,
    ) -> Result<Option<(OwnedFd, Description)>, PinsError> {
        let object = match sys::open_pinned(&path) {
            Ok(object) => object,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path)(error)),
        };
        let described = Description::of(object.as_fd()).map_err(failed("read about", &path))?;
        if described.kind == kind {
            return Ok(Some((object, described)));
        }
        Err(PinsError::Foreign {
            path,
            found: format!("a {}", described.kind),
            expected,
        })
    }

    /// Another's thing is where a program's link should be.
    pub(super) fn foreign_link(&self, program: &str, found: String) -> PinsError {
        PinsError::Foreign {
            path: self.link(program),
            found,
            expected: "a link of this program",
        }
    }

    /// Where a new link is pinned first, and nothing else is.
    pub(super) fn coming_link(&self, program: &str) -> Result<PathBuf, PinsError> {
        let path = self.link(&format!("{program}{COMING}"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(path),
        }
    }

    /// Gives what is pinned at [`Self::coming_link`] the program's name. What had it until now is
    /// detached by that, and not before.
    pub(super) fn come(&self, program: &str) -> Result<(), PinsError> {
        let coming = self.link(&format!("{program}{COMING}"));
        fs::rename(&coming, self.link(program)).map_err(failed("rename", &coming))
    }

    /// Detaches a program.
    pub(super) fn remove_link(&self, program: &str) -> Result<(), PinsError> {
        let path = self.link(program);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// Removes the maps of other versions, which no link's program uses any more.
    pub(super) fn remove_other_versions(&self) -> Result<(), PinsError> {
        let own = KEPT.map(|map| pin(&map));
        for entry in entries(&maps(&self.folder))? {
            if !own.iter().any(|own| entry.file_name() == own.as_str()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Removes all pins: the programs stop to run. That there are none is no error.
///
/// # Errors
/// When there is no BPF file system, or something cannot be removed.
pub fn cleanup(bpffs: &Path) -> Result<Removed, PinsError> {
    check(bpffs)?;
    let folder = bpffs.join(FOLDER);
    if !folder.exists() {
        return Ok(Removed::default());
    }
    let pins = Pins::lock(folder)?;
    let links = pins.folder.join(LINKS);
    let mut removed = Removed::default();
    if links.exists() {
        removed.links = remove_folder(&links)?;
    }
    for entry in entries(&pins.folder)? {
        removed.maps += remove_folder(&entry.path())?;
    }
    fs::remove_dir(&pins.folder).map_err(failed("remove", &pins.folder))?;
    Ok(removed)
}

/// How many programs are kept at work here.
///
/// # Errors
/// When there is no BPF file system.
pub fn pinned(bpffs: &Path) -> Result<usize, PinsError> {
    check(bpffs)?;
    let links = bpffs.join(FOLDER).join(LINKS);
    if !links.exists() {
        return Ok(0);
    }
    entries(&links).map(|links| links.len())
}

/// Returns the ids of the programs that the pinned links run, whatever the links are called: a link
/// that is about to take another's name runs one of kiam's too.
pub(super) fn programs(bpffs: &Path) -> HashSet<u32> {
    let links = entries(&bpffs.join(FOLDER).join(LINKS)).unwrap_or_default();
    let id = |entry: &fs::DirEntry| {
        let described = described(bpffs, &entry.file_name().to_string_lossy())?;
        described.number("prog_id")?.try_into().ok()
    };
    links.iter().filter_map(id).collect()
}

/// The id of the cgroup that a pinned link runs its program on.
pub(super) fn cgroup_of(bpffs: &Path, program: &str) -> Option<u64> {
    described(bpffs, program)?.number("cgroup_id")
}

fn described(bpffs: &Path, program: &str) -> Option<Description> {
    let link = bpffs.join(FOLDER).join(LINKS).join(program);
    let link = sys::open_pinned(&link).ok()?;
    Description::of(link.as_fd()).ok()
}

/// Where the map of that name is pinned once it is, if one is kept.
pub(super) fn map(bpffs: &Path, name: &str) -> Option<PathBuf> {
    let map = KEPT.iter().find(|map| map.name == name)?;
    Some(maps(&bpffs.join(FOLDER)).join(pin(map)))
}

fn maps(folder: &Path) -> PathBuf {
    folder.join(MAPS)
}

/// The name of a map's pin.
fn pin(map: &Kept) -> String {
    format!("{}-{}", map.name, map.version)
}

pub(super) fn check(bpffs: &Path) -> Result<(), PinsError> {
    let opened = File::open(bpffs).map_err(failed("open", bpffs))?;
    let kind = fstatfs(&opened).map_err(|error| failed("read about", bpffs)(error.into()))?;
    if kind.filesystem_type().0 == libc::BPF_FS_MAGIC {
        return Ok(());
    }
    Err(PinsError::NotBpf {
        path: bpffs.to_owned(),
    })
}

fn make(folder: PathBuf) -> Result<PathBuf, PinsError> {
    let made = DirBuilder::new().mode(0o700).create(&folder);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", &folder)(error))
        }
        _ => Ok(folder),
    }
}

fn remove_folder(folder: &Path) -> Result<usize, PinsError> {
    let mut removed = 0;
    for entry in entries(folder)? {
        let path = entry.path();
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        removed += 1;
    }
    fs::remove_dir(folder).map_err(failed("remove", folder))?;
    Ok(removed)
}

fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, PinsError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<_>>);
    entries.map_err(failed("read", folder))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| PinsError::Folder {
        action,
        path: path.to_owned(),
        source,
    }
}
