//! Disks of machines: file systems made from folders, and overlays with the writes of a run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sys::statvfs::statvfs;
use toolchain::exec;

/// Mount point, in machines, of the disk with the programs and tests.
pub(super) const MOUNT: &str = "/mnt/kiam";

const MIB: u64 = 1024 * 1024;

/// Makes a file system of a folder, with a given amount of free space. The file is sparse.
pub fn make(folder: &Path, image: &Path, spare_mib: u64, journal: bool) -> Result<()> {
    let used = used_mib(folder)?;
    check_room(image.parent().unwrap_or(folder), used + used / 8)?;
    let _ = std::fs::remove_file(image);
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-m", "0", "-d"]);
    command.arg(folder);
    if !journal {
        command.args(["-O", "^has_journal"]);
    }
    // Inodes and bitmaps have to fit as well.
    let size = used + used / 8 + 16 + spare_mib;
    command.arg(image).arg(format!("{size}M"));
    exec(&mut command).map(drop)
}

/// Makes an overlay of an image for writes.
pub(super) fn overlay(image: &Path, overlay: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([image, overlay]);
    exec(&mut command).map(drop)
}

/// Fails when the file system of a folder has too little free space.
///
/// # Errors
/// Fails when there is less space, or it cannot be determined.
pub fn check_room(folder: &Path, mib: u64) -> Result<()> {
    let system = statvfs(folder)
        .with_context(|| format!("cannot determine the free space in {}", folder.display()))?;
    let free = system.blocks_available() * system.fragment_size() / MIB;
    if free < mib {
        bail!(
            "not enough space for a node's disk: {} has {free} MB left, and it takes {mib} MB; remove \
             something there, or choose another folder by XDG_CACHE_HOME (what is kept) or TMPDIR \
             (what a run writes)",
            folder.display()
        );
    }
    Ok(())
}

fn used_mib(folder: &Path) -> Result<u64> {
    let output = exec(Command::new("du").args(["-sm", "--"]).arg(folder))?;
    let used = output.split_whitespace().next();
    used.and_then(|used| used.parse().ok()).with_context(|| {
        format!(
            "du does not print the size of {}: {output}",
            folder.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_named_with_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        check_room(folder.path(), 0).unwrap();
        let error = check_room(folder.path(), u64::MAX).unwrap_err().to_string();
        let path = folder.path().display().to_string();
        assert!(
            error.starts_with("not enough space") && error.contains(&path),
            "{error}"
        );
    }

    #[test]
    fn a_folder_becomes_a_file_system_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, image) = (folder.path().join("in"), folder.path().join("image"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(inside.join("file"), "content").unwrap();
        make(&inside, &image, 0, false).unwrap();
        let mut command = Command::new("debugfs");
        let output = exec(command.args(["-R", "cat file"]).arg(&image)).unwrap();
        assert_eq!(output, "content");
    }
}
