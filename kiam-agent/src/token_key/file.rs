//! The key in a file: in a directory of the node on tmpfs, so that it reaches no disk or backup,
//! which only the agent's user can enter.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, fstatfs};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::{KEY_BYTES, TokenKey};

const NAME: &str = "token.key";
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Error of the key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyFileError {
    /// A file or directory cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The directory is on a disk.
    #[error("{} is not in memory (tmpfs); mount a directory of the node's /run there", path.display())]
    OnDisk {
        /// `--token-key-dir`
        path: PathBuf,
    },
    /// Other users have access.
    #[error("{} must belong to the agent's user, and grant no access to others", path.display())]
    Open {
        /// The directory or file.
        path: PathBuf,
    },
    /// The file is not a key.
    #[error("{} is not a key of kiam, which has {KEY_BYTES} bytes; remove it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

impl TokenKey {
    /// Reads the key in a directory; the first caller creates it.
    pub(crate) fn load_or_create(folder: &Path) -> Result<Self, KeyFileError> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create", folder)(error));
            }
            _ => {}
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(folder);
        let opened = opened.map_err(failed("open", folder))?;
        let kind = fstatfs(&opened).map_err(|error| failed("inspect", folder)(error.into()))?;
        if ![statfs::TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind.filesystem_type()) {
            return Err(KeyFileError::OnDisk {
                path: folder.to_owned(),
            });
        }
        check_owner(&opened, folder)?;
        let path = folder.join(NAME);
        if let Some(key) = read(&path)? {
            return Ok(key);
        }
        // Written completely before it gets the name, which only one of several writers can create.
        let own = folder.join(format!("{NAME}.{:016x}", rand::random::<u64>()));
        let linked = write(&own, &Self::random()).and_then(|()| fs::hard_link(&own, &path));
        let removed = fs::remove_file(&own);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("write", &path)(error));
            }
            _ => removed.map_err(failed("remove", &own))?,
        }
        read(&path)?.ok_or(KeyFileError::Foreign { path })
    }
}

const RAMFS_MAGIC: statfs::FsType = statfs::FsType(0x8584_58f6);

fn read(path: &Path) -> Result<Option<TokenKey>, KeyFileError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let about = check_owner(&file, path)?;
    if !about.is_file() || about.len() != KEY_BYTES as u64 {
        return Err(KeyFileError::Foreign {
            path: path.to_owned(),
        });
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    file.read_exact(&mut *key).map_err(failed("read", path))?;
    Ok(Some(TokenKey::new(key)))
}

fn write(path: &Path, key: &TokenKey) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(key.bytes())
}

fn check_owner(file: &File, path: &Path) -> Result<fs::Metadata, KeyFileError> {
    let about = file.metadata().map_err(failed("inspect", path))?;
    if about.uid() == geteuid().as_raw() && about.mode() & OTHERS == 0 {
        return Ok(about);
    }
    Err(KeyFileError::Open {
        path: path.to_owned(),
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |source| KeyFileError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;

    /// A directory in memory: Linux always has one for shared memory.
    fn folder() -> TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn concurrent_and_later_callers_get_the_same_key() {
        let folder = folder();
        let path = folder.path().join("kiam");
        let keys: HashSet<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| *TokenKey::load_or_create(&path).unwrap().bytes()))
                .collect();
            asking
                .into_iter()
                .map(|asks| asks.join().unwrap())
                .collect()
        });
        assert_eq!(keys.len(), 1);
        assert!(keys.contains(TokenKey::load_or_create(&path).unwrap().bytes()));
        assert_eq!((mode(&path), mode(&path.join(NAME))), (0o700, 0o600));
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn directories_on_disk_are_rejected() {
        // Owned by root, and not in memory, on any machine.
        let error = TokenKey::load_or_create(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, KeyFileError::OnDisk { .. }), "{error}");
    }

    #[test]
    fn keys_that_others_can_read_or_made_are_rejected() {
        let folder = folder();
        let path = folder.path();
        let key = path.join(NAME);
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(path, 0o755);
        let error = TokenKey::load_or_create(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Open { .. }), "{error}");
        open(path, 0o700);
        TokenKey::load_or_create(path).unwrap();
        open(&key, 0o640);
        let error = TokenKey::load_or_create(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Open { .. }), "{error}");
        fs::remove_file(&key).unwrap();
        fs::write(&key, "short").unwrap();
        open(&key, 0o600);
        let error = TokenKey::load_or_create(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Foreign { .. }), "{error}");
        fs::remove_file(&key).unwrap();
        symlink("/dev/zero", &key).unwrap();
        let error = TokenKey::load_or_create(path).unwrap_err();
        assert!(matches!(error, KeyFileError::File { .. }), "{error}");
    }
}
