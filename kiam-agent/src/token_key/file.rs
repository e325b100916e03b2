//! The key in a file: in a folder of the node's that is in memory, so that no disk and no backup
//! has it, and that only the agent's user can enter.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, fstatfs};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::{KEY_BYTES, TokenKey};

const NAME: &str = "token.key";
/// Whatever others may do with a file.
const OTHERS: u32 = 0o077;

/// Why no key can be kept in a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It is not there, or cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What is written there may come to a disk.
    #[error("{} is not in memory (tmpfs); mount a folder of the node's /run there", path.display())]
    OnDisk {
        /// `--token-key-dir`
        path: PathBuf,
    },
    /// Others can read it, or write.
    #[error("{} must belong to the agent's user, and be closed to all others", path.display())]
    Open {
        /// The folder or the file.
        path: PathBuf,
    },
    /// Somebody else has written there.
    #[error("{} is no key of kiam's, which has {KEY_BYTES} bytes; remove it", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

impl TokenKey {
    /// The key that is kept in a folder; the first who asks makes it.
    ///
    /// # Errors
    /// When the folder is no safe place for it, or what is there is no key.
    pub fn kept_in(folder: &Path) -> Result<Self, KeyFileError> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", folder)(error));
            }
            _ => {}
        }
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(folder);
        let opened = opened.map_err(failed("open", folder))?;
        let kind = fstatfs(&opened).map_err(|error| failed("read about", folder)(error.into()))?;
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
        // Written whole before it has its name, which only one of two can give it.
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
    let about = file.metadata().map_err(failed("read about", path))?;
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

    /// A folder in memory, as Linux always has one for shared memory.
    fn folder() -> TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn all_who_ask_at_once_get_the_same_key_and_so_do_later_ones() {
        let folder = folder();
        let path = folder.path().join("kiam");
        let keys: HashSet<_> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| *TokenKey::kept_in(&path).unwrap().bytes()))
                .collect();
            asking
                .into_iter()
                .map(|asks| asks.join().unwrap())
                .collect()
        });
        assert_eq!(keys.len(), 1);
        assert!(keys.contains(TokenKey::kept_in(&path).unwrap().bytes()));
        assert_eq!((mode(&path), mode(&path.join(NAME))), (0o700, 0o600));
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn no_key_is_kept_where_it_may_come_to_a_disk() {
        // Root's and no memory's, on whatever file system this is built.
        let error = TokenKey::kept_in(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, KeyFileError::OnDisk { .. }), "{error}");
    }

    #[test]
    fn what_others_can_read_or_have_made_is_refused() {
        let folder = folder();
        let path = folder.path();
        let key = path.join(NAME);
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        open(path, 0o755);
        let error = TokenKey::kept_in(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Open { .. }), "{error}");
        open(path, 0o700);
        TokenKey::kept_in(path).unwrap();
        open(&key, 0o640);
        let error = TokenKey::kept_in(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Open { .. }), "{error}");
        fs::remove_file(&key).unwrap();
        fs::write(&key, "short").unwrap();
        open(&key, 0o600);
        let error = TokenKey::kept_in(path).unwrap_err();
        assert!(matches!(error, KeyFileError::Foreign { .. }), "{error}");
        fs::remove_file(&key).unwrap();
        symlink("/dev/zero", &key).unwrap();
        let error = TokenKey::kept_in(path).unwrap_err();
        assert!(matches!(error, KeyFileError::File { .. }), "{error}");
    }
}
