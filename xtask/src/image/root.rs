//! The image's root file system: both programs, their libraries, the programs of iptables,
//! and nothing else. There is no shell in it.
//!
//! Libraries and iptables are a Debian's, of the release that the image is made on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toolchain::Architecture;

use super::system::{AUTHORITIES, System};
use testbed::kiam::ImagePrograms;

/// User of the server; the name is for people.
pub(super) const USER: u32 = 65532;
const PASSWD: &str = "root:x:0:0:root:/:/nonexistent\nkiam:x:65532:65532:kiam:/:/nonexistent\n";
const GROUP: &str = "root:x:0:\nkiam:x:65532:\n";
const NSSWITCH: &str = "hosts: files dns\n";

/// The two programs that are all of iptables, and the names by which the agent calls them.
const IPTABLES: [(&str, &str); 2] = [
    ("xtables-nft-multi", "nft"),
    ("xtables-legacy-multi", "legacy"),
];
/// Mounted over, or made use of by the container's runtime.
const FOLDERS: [&str; 7] = [
    "dev",
    "etc/kiam/tls",
    "proc",
    "run/kiam",
    "sys",
    "tmp",
    "var",
];

/// A root file system, and the system's packages that its files come from.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// Names and versions.
    pub(super) packages: BTreeMap<String, String>,
}

/// Creates the root file system in a folder, in place of an earlier one.
pub(super) fn make(path: &Path, programs: &ImagePrograms, system: &System) -> Result<Root> {
    if path.exists() {
        std::fs::remove_dir_all(path)
            .with_context(|| format!("cannot empty {}", path.display()))?;
    }
    for folder in FOLDERS {
        std::fs::create_dir_all(path.join(folder))?;
    }
    // As Debian has it: everything is below /usr.
    for name in ["bin", "lib", "lib64", "sbin"] {
        std::fs::create_dir_all(path.join("usr").join(name))?;
        symlink(format!("usr/{name}"), path.join(name))?;
    }
    symlink("../run", path.join("var/run"))?;
    let mut root = Filling {
        path,
        system,
        sources: BTreeSet::new(),
    };
    root.copy(&programs.agent, "kiam-agent")?;
    root.copy(&programs.server, "kiam-server")?;
    let mut linked = vec![programs.agent.clone(), programs.server.clone()];
    linked.extend(root.iptables()?);
    for library in system.libraries(&linked)? {
        root.copy_of_system(&library)?;
    }
    // Made when its package is installed, and the same everywhere.
    root.copy(Path::new(AUTHORITIES), AUTHORITIES.trim_start_matches('/'))?;
    for (name, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nsswitch.conf", NSSWITCH),
    ] {
        std::fs::write(path.join(name), text)?;
    }
    let sources = std::mem::take(&mut root.sources);
    let mut packages = system.packages(&sources)?;
    // Their licences go where they go.
    for name in packages.keys() {
        root.copy_of_system(&system.file(&licence(name)))?;
    }
    let authorities = "ca-certificates";
    let licence = licence(authorities);
    root.copy(Path::new(&licence), licence.trim_start_matches('/'))?;
    let version = System::get(Architecture::native()?)?.version(authorities)?;
    packages.insert(authorities.to_owned(), version);
    Ok(Root {
        path: path.to_owned(),
        packages,
    })
}

fn licence(package: &str) -> String {
    format!("/usr/share/doc/{package}/copyright")
}

struct Filling<'a> {
    path: &'a Path,
    system: &'a System,
    /// Files of the system that were copied.
    sources: BTreeSet<PathBuf>,
}

impl Filling<'_> {
    /// Copies a file of the system to the same place.
    fn copy_of_system(&mut self, file: &Path) -> Result<()> {
        self.copy(file, self.system.place(file)?)?;
        self.sources.insert(file.canonicalize()?);
        Ok(())
    }

    fn copy(&self, file: &Path, place: impl AsRef<Path>) -> Result<()> {
        let place = self.path.join(place);
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::copy(file, &place).with_context(|| format!("cannot copy {}", file.display()))?;
        let executable = std::fs::metadata(file)?.permissions().mode() & 0o111 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        std::fs::set_permissions(&place, Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Adds iptables, under the names by which the agent calls it. Returns the files that need
    /// libraries.
    fn iptables(&mut self) -> Result<Vec<PathBuf>> {
        let mut linked = Vec::new();
        for (name, variant) in IPTABLES {
            let program = self.system.program(name)?;
            self.copy_of_system(&program)?;
            for family in ["iptables", "ip6tables"] {
                for verb in ["", "-save", "-restore"] {
                    let link = format!("usr/sbin/{family}-{variant}{verb}");
                    symlink(name, self.path.join(link))?;
                }
            }
            linked.push(program);
        }
        // Extensions of rules; those of ebtables and arptables are not needed.
        let all = self.system.libraries(&linked)?;
        let xtables = all.iter().find_map(|library| {
            let folder = library.parent()?.join("xtables");
            folder.is_dir().then_some(folder)
        });
        let xtables = xtables.context("iptables has no extensions here")?;
        for entry in std::fs::read_dir(&xtables)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let wanted = ["libxt_", "libipt_", "libip6t_"];
            if wanted.iter().any(|prefix| name.starts_with(prefix)) {
                let extension = xtables.join(name);
                self.copy_of_system(&extension)?;
                linked.push(extension);
            }
        }
        Ok(linked)
    }
}
