//! The image's root file system: both programs, what they are linked with, the programs of
//! iptables, and nothing else. There is no shell in it.
//!
//! Libraries and iptables are this system's own, a Debian's: an image is made on the distribution
//! that it is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::kiam::Programs;
use crate::sandbox::exec;
use crate::setup::find_program;

/// Whom the server runs as; the name is for people.
pub(super) const USER: u32 = 65532;
const PASSWD: &str = "root:x:0:0:root:/:/nonexistent\nkiam:x:65532:65532:kiam:/:/nonexistent\n";
const GROUP: &str = "root:x:0:\nkiam:x:65532:\n";
const NSSWITCH: &str = "hosts: files dns\n";
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

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

/// Makes it anew in a folder.
pub(super) fn make(path: &Path, programs: &Programs) -> Result<Root> {
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
        sources: BTreeSet::new(),
    };
    root.copy(programs.agent(), "kiam-agent")?;
    root.copy(programs.server(), "kiam-server")?;
    let mut linked = vec![programs.agent().to_owned(), programs.server().to_owned()];
    linked.extend(root.iptables()?);
    for library in libraries(&linked)? {
        root.system(&library)?;
    }
    root.system(Path::new(AUTHORITIES))?;
    for (name, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nsswitch.conf", NSSWITCH),
    ] {
        std::fs::write(path.join(name), text)?;
    }
    let sources = std::mem::take(&mut root.sources);
    let packages = packages(&sources)?;
    for name in packages.keys() {
        // Their licences go where they go.
        let licence = Path::new("/usr/share/doc").join(name).join("copyright");
        root.system(&licence)?;
    }
    Ok(Root {
        path: path.to_owned(),
        packages,
    })
}

struct Filling<'a> {
    path: &'a Path,
    /// Files of this system that were copied.
    sources: BTreeSet<PathBuf>,
}

impl Filling<'_> {
    /// Copies a file of this system to the same place.
    fn system(&mut self, file: &Path) -> Result<()> {
        let folder = file.parent().context("a file is in a folder")?;
        // /lib is a link to /usr/lib there as it is here.
        let folder = folder
            .canonicalize()
            .with_context(|| format!("there is no {}", file.display()))?;
        let place = folder.join(file.file_name().context("a file has a name")?);
        let relative = place.strip_prefix("/")?.to_owned();
        self.copy(file, &relative)?;
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

    /// iptables, under the names by which the agent calls it. Returns what has to be linked.
    fn iptables(&mut self) -> Result<Vec<PathBuf>> {
        let mut linked = Vec::new();
        for (name, variant) in IPTABLES {
            let found = find_program(name);
            let program = found.with_context(|| format!("there is no {name} in PATH"))?;
            let program = program.canonicalize()?;
            self.system(&program)?;
            for family in ["iptables", "ip6tables"] {
                for verb in ["", "-save", "-restore"] {
                    let link = format!("usr/sbin/{family}-{variant}{verb}");
                    symlink(name, self.path.join(link))?;
                }
            }
            linked.push(program);
        }
        // What rules are made of; those of ebtables and arptables are none of ours.
        let all = libraries(&linked)?;
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
                self.system(&extension)?;
                linked.push(extension);
            }
        }
        Ok(linked)
    }
}

/// What programs and libraries are linked with, the loader included.
fn libraries(linked: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let said = exec(Command::new("ldd").args(linked))?;
    let found: BTreeSet<_> = said.lines().filter_map(library).collect();
    ensure!(!found.is_empty(), "ldd names no library:\n{said}");
    ensure!(!said.contains("not found"), "a library is missing:\n{said}");
    Ok(found)
}

/// The file in a line of ldd's: `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's own.
fn library(line: &str) -> Option<PathBuf> {
    let line = line.strip_prefix('\t')?;
    let file = line.split_once(" => ").map_or(line, |(_, file)| file);
    let file = file.split(" (").next()?;
    file.starts_with('/').then(|| PathBuf::from(file))
}

/// The packages that files belong to, with their versions.
fn packages(files: &BTreeSet<PathBuf>) -> Result<BTreeMap<String, String>> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|file| *file != Path::new(AUTHORITIES)) {
        names.insert(owner(file)?);
    }
    // This file is made when that package is installed, and so belongs to none.
    names.insert("ca-certificates".to_owned());
    let mut packages = BTreeMap::new();
    for name in names {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${Version}\\n", &name]);
        let version = exec(&mut query)?;
        let version = version.lines().next().context("a package has a version")?;
        packages.insert(name, version.to_owned());
    }
    Ok(packages)
}

/// dpkg knows a file by the path that its package names, below / or below /usr.
fn owner(file: &Path) -> Result<String> {
    let outside = Path::new("/").join(file.strip_prefix("/usr").unwrap_or(file));
    let search = |file: &Path| exec(Command::new("dpkg-query").arg("--search").arg(file));
    let said = search(file).or_else(|_| search(&outside))?;
    let name = said.split([':', ',']).next().unwrap_or_default();
    ensure!(!name.is_empty(), "{} is of no package", file.display());
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let file = |line| library(line).map(|file| file.display().to_string());
        assert_eq!(
            file("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            file("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(file("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(file("/usr/sbin/x:"), None);
    }
}
