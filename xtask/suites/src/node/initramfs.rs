//! Initial file system of a machine: busybox and the modules that the root's disk needs. It mounts
//! the root with the kernel's modules in it and starts what is there.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use toolchain::exec;

const INIT: &[u8] = include_bytes!("init.sh");
/// Says that a kernel has come as far as its first program.
pub(super) const PROBED: &str = "kiam-machine-probed";
/// Modules in the order in which they need each other; those that a kernel has built in are left out.
const MODULES: [&str; 14] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "crc16",
    "mbcache",
    "jbd2",
    "crc32c_generic",
    "libcrc32c",
    "crc32c-cryptoapi",
    "crc32c-intel",
    "ext4",
];

/// Makes it as a file.
pub(super) fn make(busybox: &Path, modules: &Path, out: &Path) -> Result<()> {
    let mut archive = Vec::new();
    let mut entries = Cpio::new(&mut archive);
    for folder in ["bin", "dev", "proc", "sys", "mnt", "mod"] {
        entries.add(folder, 0o040_755, &[])?;
    }
    entries.add("bin/busybox", 0o100_755, &read(busybox)?)?;
    entries.add("init", 0o100_755, INIT)?;
    let files = exec(Command::new("find").arg(modules).args(["-name", "*.ko*"]))?;
    for (number, name) in MODULES.iter().enumerate() {
        let Some(file) = files.lines().find(|file| is_module(file, name)) else {
            continue;
        };
        // Loaded in the order of their names.
        entries.add(
            &format!("mod/{number:02}-{name}.ko"),
            0o100_644,
            &unpacked(Path::new(file))?,
        )?;
    }
    entries.end()?;
    std::fs::write(out, archive).with_context(|| format!("cannot write {}", out.display()))
}

fn is_module(file: &str, name: &str) -> bool {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split_once(".ko")
        .is_some_and(|(stem, _)| stem.replace('-', "_") == name.replace('-', "_"))
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(std::ffi::OsStr::to_str) {
        Some("ko") => return read(module),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        other => bail!("cannot unpack {}: {other:?}", module.display()),
    };
    let output = Command::new(program).arg("-dc").arg(module).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "cannot unpack {}",
        module.display()
    );
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writer of the format `newc`, see the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.
struct Cpio<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Cpio<W> {
    const fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).context("a file is too large")?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long")?;
        let mut header = String::from("070701");
        // Inode, mode, user, group, links, time, size, device and its node, name's size, checksum.
        for field in [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ] {
            header += &format!("{field:08X}");
        }
        self.padded(&[header.as_bytes(), name.as_bytes(), b"\0"])?;
        self.padded(&[content])
    }

    fn end(&mut self) -> Result<()> {
        self.add("TRAILER!!!", 0, &[])
    }

    /// Writes parts and fills up to a multiple of four.
    fn padded(&mut self, parts: &[&[u8]]) -> Result<()> {
        for part in parts {
            self.out.write_all(part)?;
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.out.write_all(&[0; 3][..(4 - length % 4) % 4])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_name_however_they_are_packed() {
        assert!(is_module("/lib/virtio_blk.ko.xz", "virtio_blk"));
        assert!(is_module("/lib/crc32c-intel.ko", "crc32c_intel"));
        assert!(!is_module("/lib/virtio_blk_x.ko", "virtio_blk"));
    }

    #[test]
    fn entries_are_aligned_and_closed() {
        let mut out = Vec::new();
        let mut cpio = Cpio::new(&mut out);
        cpio.add("init", 0o100_755, b"hello").unwrap();
        cpio.end().unwrap();
        assert_eq!(out.len() % 4, 0);
        assert_eq!(&out[..6], b"070701");
        // A header has 110 bytes: with the name and its zero 115, so that the content follows at 116.
        assert_eq!(&out[110..115], b"init\0");
        assert_eq!(&out[116..121], b"hello");
        assert_eq!(&out[124..130], b"070701");
    }
}
