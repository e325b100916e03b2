//! Pins: links and maps in a BPF file system, which outlive the agent.
//!
//! ```text
//! BPFFS/kiam/links/PROGRAM        a link: its program stays attached while the pin exists
//! BPFFS/kiam/maps/MAP-VERSION     a map, in the version of its layout
//! ```
//!
//! While no agent runs, pods' connections are still redirected, and refused since nothing listens.
//! The next agent takes over the pins.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use kiam_ebpf::maps::{PINNED, Pinned};
use nix::sys::statfs::fstatfs;

use super::sys::{self, Description};

/// Default mount point, of systemd and the kernel's documentation.
pub const BPFFS: &str = "/sys/fs/bpf";

const FOLDER: &str = "kiam";
const LINKS: &str = "links";
const MAPS: &str = "maps";
/// Suffix of a staged link, which will take over a name. The file system permits no dots in names.
const STAGED: &str = "-new";

/// Error of the pins.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// A file or directory cannot be used.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Folder {
        /// The operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The directory is not in a BPF file system.
    #[error(
        "{} is not in a BPF file system, which the kernel programs need to outlive the agent; mount the node's into the agent (hostPath /sys/fs/bpf), run `mount -t bpf bpf /sys/fs/bpf` on the node, or set --bpffs",
        path.display()
    )]
    NotBpf {
        /// `--bpffs`
        path: PathBuf,
    },
    /// A pin exists that is not kiam's.
    #[error(
        "{} is {found}, not {expected} of kiam: nothing was changed; remove it if nothing else uses it, or set --bpffs",
        path.display()
    )]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// The object that is pinned there.
        found: String,
        /// The object that was expected.
        expected: &'static str,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the agent needs the capability BPF, and must own the directory"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount it into the agent as writable",
        _ => "",
    }
}

/// Number of pins that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Programs that were attached.
    pub links: usize,
    /// Maps that were pinned.
    pub maps: usize,
}

/// The directory of pins, locked: another agent waits until this is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
    _lock: File,
}

impl Pins {
    /// Opens the directory in the BPF file system at `bpffs`, and creates it if it is missing.
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

    /// Returns the path of a map's pin, which may not exist yet.
    pub(super) fn map(&self, map: &Pinned) -> Result<PathBuf, PinsError> {
        let path = maps(&self.folder).join(pin(map));
        let Some((_, described)) = self.opened(path.clone(), "bpf-map", "a map")? else {
            return Ok(path);
        };
        let shape = ["key_size", "value_size", "max_entries"].map(|field| described.number(field));
        let expected = [map.key, map.value, map.entries].map(|size| u64::try_from(size).ok());
        if shape == expected {
            return Ok(path);
        }
        // The kernel would write more or fewer bytes than the reader expects.
        let [key, value, entries] = shape.map(Option::unwrap_or_default);
        Err(PinsError::Foreign {
            path,
            found: format!("a map of {entries} entries (key: {key} bytes, value: {value} bytes)"),
            expected: "this map",
        })
    }

    fn link(&self, program: &str) -> PathBuf {
        self.folder.join(LINKS).join(program)
    }

    /// Opens the link of a program that an earlier agent has left.
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
        let described = Description::of(object.as_fd()).map_err(failed("inspect", &path))?;
        if described.kind == kind {
            return Ok(Some((object, described)));
        }
        Err(PinsError::Foreign {
            path,
            found: format!("a {}", described.kind),
            expected,
        })
    }

    /// Returns the error for a pin at the path of a program's link that is something else.
    pub(super) fn foreign_link(&self, program: &str, found: String) -> PinsError {
        PinsError::Foreign {
            path: self.link(program),
            found,
            expected: "a link of this program",
        }
    }

    /// Returns the path to stage a new link of a program at, and removes an earlier staged link.
    pub(super) fn staged_link(&self, program: &str) -> Result<PathBuf, PinsError> {
        let path = self.link(&format!("{program}{STAGED}"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(path),
        }
    }

    /// Renames the link at [`Self::staged_link`] to the program's name. This detaches the link that
    /// had the name, and no earlier step does.
    pub(super) fn commit_link(&self, program: &str) -> Result<(), PinsError> {
        let staged = self.link(&format!("{program}{STAGED}"));
        fs::rename(&staged, self.link(program)).map_err(failed("rename", &staged))
    }

    /// Removes the link of a program, which detaches the program.
    pub(super) fn remove_link(&self, program: &str) -> Result<(), PinsError> {
        let path = self.link(program);
        fs::remove_file(&path).map_err(failed("remove", &path))
    }

    /// Removes maps of other versions, which no attached program uses any more.
    pub(super) fn remove_other_versions(&self) -> Result<(), PinsError> {
        let own = PINNED.map(|map| pin(&map));
        for entry in entries(&maps(&self.folder))? {
            if !own.iter().any(|own| entry.file_name() == own.as_str()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Removes all pins, which detaches the programs. Removing none is not an error.
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

/// Returns the number of programs that are attached by pins.
pub fn pinned(bpffs: &Path) -> Result<usize, PinsError> {
    check(bpffs)?;
    let links = bpffs.join(FOLDER).join(LINKS);
    if !links.exists() {
        return Ok(0);
    }
    entries(&links).map(|links| links.len())
}

/// Returns the ids of the programs of all pinned links, including staged links.
pub(super) fn programs(bpffs: &Path) -> HashSet<u32> {
    let links = entries(&bpffs.join(FOLDER).join(LINKS)).unwrap_or_default();
    let id = |entry: &fs::DirEntry| {
        let described = described(bpffs, &entry.file_name().to_string_lossy())?;
        described.number("prog_id")?.try_into().ok()
    };
    links.iter().filter_map(id).collect()
}

/// Returns the id of the cgroup that a pinned link attaches its program to.
pub(super) fn cgroup_of(bpffs: &Path, program: &str) -> Option<u64> {
    described(bpffs, program)?.number("cgroup_id")
}

fn described(bpffs: &Path, program: &str) -> Option<Description> {
    let link = bpffs.join(FOLDER).join(LINKS).join(program);
    let link = sys::open_pinned(&link).ok()?;
    Description::of(link.as_fd()).ok()
}

/// Returns the path of a map's pin, by the name of the map.
pub(super) fn map(bpffs: &Path, name: &str) -> Option<PathBuf> {
    let map = PINNED.iter().find(|map| map.name == name)?;
    Some(maps(&bpffs.join(FOLDER)).join(pin(map)))
}

fn maps(folder: &Path) -> PathBuf {
    folder.join(MAPS)
}

/// Returns the file name of a map's pin.
fn pin(map: &Pinned) -> String {
    format!("{}-{}", map.name, map.version)
}

pub(super) fn check(bpffs: &Path) -> Result<(), PinsError> {
    let opened = File::open(bpffs).map_err(failed("open", bpffs))?;
    let kind = fstatfs(&opened).map_err(|error| failed("inspect", bpffs)(error.into()))?;
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
            Err(failed("create", &folder)(error))
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
