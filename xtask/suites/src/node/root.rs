//! Root file system of machines: Debian's development suite with the packages of a Kubernetes node.
//! It is made once and never written to: each run writes to an overlay.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::{Architecture, Cache, Log, Plan, Step, fingerprint};

use super::disk;
use toolchain::debian::{LATE_MIRROR, Lists, SID, check_keyring};

/// Packages installed in addition to Debian's essential ones.
const PACKAGES: &[&str] = &[
    "bpftool",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "dbus",
    "ebtables",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "mount",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "runc",
    "socat",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "udev",
    "util-linux",
];
/// Space for images, logs and containers on a node.
const SPARE_MIB: u64 = 8192;
/// Space that building it takes, packages included.
const TAKES_MIB: u64 = 2500;

/// Packages of these on a machine of another architecture, where packages can only be unpacked:
/// enough to run one of kiam's programs there, without systemd.
const UNPACKED: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "grep",
    "hostname",
    "iproute2",
    "kmod",
    "mount",
    "openssh-server",
    "procps",
    "util-linux",
];

/// Files of ours: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    (
        "usr/local/sbin/kiam-init",
        0o755,
        include_str!("root/init.sh"),
    ),
    (
        "usr/local/sbin/kiam-network",
        0o755,
        include_str!("root/network.sh"),
    ),
    (
        "etc/systemd/system/kiam-network.service",
        0o644,
        include_str!("root/network.service"),
    ),
    (
        "etc/systemd/system/kiam-ready.service",
        0o644,
        include_str!("root/ready.service"),
    ),
    (
        "etc/systemd/system.conf.d/kiam.conf",
        0o644,
        include_str!("root/system.conf"),
    ),
    (
        "etc/ssh/sshd_config.d/kiam.conf",
        0o644,
        include_str!("root/sshd.conf"),
    ),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", 0o644, "node\n"),
    ("etc/fstab", 0o644, "/dev/vda / ext4 defaults 0 0\n"),
];
const ENABLED: &[&str] = &["kiam-network", "kiam-ready"];
/// Units that would only wait on a node without the Internet.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
];

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    folder: PathBuf,
}

fn cache(architecture: Architecture) -> Cache {
    let suite = SID;
    let mut parts = vec![suite.name()];
    parts.extend(if architecture.is_native() {
        PACKAGES
    } else {
        UNPACKED
    });
    parts.extend(FILES.iter().flat_map(|(path, _, text)| [*path, *text]));
    parts.extend(ENABLED.iter().chain(MASKED));
    Cache::new(&format!("node-root-{architecture}-{}", fingerprint(&parts)))
}

/// Adds it, if it is missing.
pub(super) fn plan(architecture: Architecture, plan: &mut Plan) {
    let cache = cache(architecture);
    if cache.is_complete() {
        return;
    }
    plan.step(Step {
        what: format!(
            "root file system of Debian {} ({architecture}), made into {}",
            SID.name(),
            cache.path().display()
        ),
        why: "boots nodes in virtual machines",
        about: Some(Duration::from_secs(180)),
        run: Box::new(move || cache.fill(|folder, log| make(architecture, folder, log))),
    });
}

fn make(architecture: Architecture, folder: &Path, log: &Log) -> Result<()> {
    check_keyring()?;
    disk::check_room(folder, TAKES_MIB)?;
    let root = folder.join("root");
    if architecture.is_native() {
        install(architecture, &root, log)?;
    } else {
        unpack(architecture, folder, &root, log)?;
    }
    log.exec(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "kiam", "-f"])
            .arg(folder.join("key")),
    )?;
    furnish(&root, &folder.join("key.pub"))?;
    disk::make(&root, &folder.join("root.img"), SPARE_MIB, true)?;
    std::fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))
}

/// Installs Debian, as on any machine.
fn install(architecture: Architecture, root: &Path, log: &Log) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--mode=root", "--quiet"])
        .arg(format!("--architectures={architecture}"))
        .args(["Acquire::Languages=none", "Acquire::Retries=3", LATE_MIRROR].map(aptopt))
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SID.name())
        .arg(root)
        .arg(SID.source());
    log.exec(&mut command)
}

/// Unpacks Debian for a processor that this machine has not, and does what its packages' scripts
/// would have done.
fn unpack(architecture: Architecture, folder: &Path, root: &Path, log: &Log) -> Result<()> {
    let apt = folder.join("apt");
    let lists = Lists::fetch(&apt, architecture, &[SID], log)?;
    lists.install(UNPACKED, root, log)?;
    std::fs::remove_dir_all(&apt)?;
    let (etc, master) = (root.join("etc"), root.join("usr/share/base-passwd"));
    for (name, more) in [
        ("passwd", "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"),
        ("group", ""),
    ] {
        let text = std::fs::read_to_string(master.join(format!("{name}.master")))?;
        // No user has a password: root logs in with a key.
        let text = text.replacen(":*:", "::", 1) + more;
        std::fs::write(etc.join(name), text)?;
    }
    let sshd = "Include /etc/ssh/sshd_config.d/*.conf\n";
    std::fs::write(etc.join("ssh/sshd_config"), sshd)?;
    std::fs::create_dir_all(root.join("run/sshd"))?;
    log.exec(Command::new("ssh-keygen").arg("-A").arg("-f").arg(root))
}

/// Option of apt's as mmdebstrap takes it: a line of apt.conf.
fn aptopt(option: &str) -> String {
    let (name, value) = option.split_once('=').unwrap_or((option, "true"));
    format!("--aptopt={name} \"{value}\"")
}

fn furnish(root: &Path, key: &Path) -> Result<()> {
    for (path, mode, content) in FILES {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content)
            .with_context(|| format!("cannot write {}", path.display()))?;
        std::fs::set_permissions(&path, Permissions::from_mode(*mode))?;
    }
    let units = root.join("etc/systemd/system");
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    for unit in ENABLED {
        let name = format!("{unit}.service");
        symlink(Path::new("..").join(&name), wants.join(&name))?;
    }
    for unit in MASKED {
        let path = units.join(unit);
        let _ = std::fs::remove_file(&path);
        symlink("/dev/null", path)?;
    }
    let ssh = root.join("root/.ssh");
    std::fs::create_dir_all(&ssh)?;
    std::fs::set_permissions(&ssh, Permissions::from_mode(0o700))?;
    std::fs::copy(key, ssh.join("authorized_keys"))?;
    for folder in ["mnt/kiam", "usr/lib/modules"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    // Machines differ, but none needs a first-boot setup to get an identity.
    std::fs::write(
        root.join("etc/machine-id"),
        "6b69616d6b69616d6b69616d6b69616d\n",
    )?;
    Ok(())
}

impl Root {
    /// Returns the root file system, which was built before.
    ///
    /// # Errors
    /// Fails when it was not built.
    pub fn get(architecture: Architecture) -> Result<Self> {
        let cache = cache(architecture);
        ensure!(
            cache.is_complete(),
            "the nodes' root file system is not made yet"
        );
        Ok(Self {
            folder: cache.path().to_owned(),
        })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// Key that root is logged in with.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }
}
