//! Agents built from a patched copy of the source: with a defect that a suite must detect, or as
//! the next version. Shipped crates contain neither.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use testbed::kiam::Programs;
use toolchain::{exec, fingerprint, kernel, workspace};

/// Settings of the workspace.
const WORKSPACE: &[&str] = &[".cargo", "Cargo.lock", "Cargo.toml"];
/// Folders of packages, and of their sources.
const PACKAGES: &[&str] = &[
    "kiam-agent",
    "kiam-common",
    "kiam-ebpf",
    "kiam-server",
    "proto",
    COMMANDS,
];

/// Members that cargo wants to see, and that are not built.
const COMMANDS: &str = "xtask";

/// A change of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// A pod keeps its credentials when its role changes.
    RoleKept,
    /// Expired credentials are served.
    ExpiredServed,
    /// A pod is identified by an address that another pod had before.
    AddressTrusted,
    /// The kernel maps have the layout of the next version.
    NextLayout,
}

impl Patch {
    /// The name of its file, and of the folder that it is built in.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoleKept => "role-kept",
            Self::ExpiredServed => "expired-served",
            Self::AddressTrusted => "address-trusted",
            Self::NextLayout => "next-layout",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::RoleKept => include_str!("../patches/role-kept.patch"),
            Self::ExpiredServed => include_str!("../patches/expired-served.patch"),
            Self::AddressTrusted => include_str!("../patches/address-trusted.patch"),
            Self::NextLayout => include_str!("../patches/next-layout.patch"),
        }
    }

    /// Builds the programs, and beside them an agent with this patch: [`Programs::patched`].
    ///
    /// # Errors
    /// Fails when the patch does not apply, or something does not compile.
    pub fn build_beside(self) -> Result<Programs> {
        let source = self.source()?;
        let object = kernel::build(&source, self.name())?.path;
        Programs::build_patched(self.name(), &source, &object)?;
        // The unpatched agent takes its place in the target folder again.
        Programs::build()
    }

    /// Writes the patched copy of the source, unless it is there.
    fn source(self) -> Result<PathBuf> {
        let root = workspace();
        let copy = root.join("target/patched").join(self.name());
        // Cargo distinguishes packages of one target folder by their path from the workspace.
        let packages = copy.join(self.name());
        let files = files(&root)?;
        let state = state(&root, &files, self.text())?;
        let stamp = copy.join("target/state");
        if std::fs::read_to_string(&stamp).is_ok_and(|last| last == state) {
            return Ok(copy);
        }
        remove(&copy)?;
        for name in &files {
            let of_workspace = !PACKAGES.iter().any(|folder| name.starts_with(folder));
            let to = if of_workspace { &copy } else { &packages }.join(name);
            let folder = to.parent().context("a file is in a folder")?;
            std::fs::create_dir_all(folder)?;
            let from = root.join(name);
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let manifest = copy.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)?;
        std::fs::write(&manifest, members_below(self.name(), &text))?;
        let patch = copy.join("applied.patch");
        std::fs::write(&patch, self.text())?;
        let mut apply = Command::new("git");
        // Paths are those of the repository, which the copy is inside of.
        apply.arg("-C").arg(&root).arg("apply");
        apply.arg(format!("--directory=target/patched/{0}/{0}", self.name()));
        exec(apply.arg(&patch)).with_context(|| {
            let name = self.name();
            format!("xtask/suites/patches/{name}.patch does not apply; make it again")
        })?;
        std::fs::create_dir_all(copy.join("target"))?;
        std::fs::write(&stamp, state)?;
        Ok(copy)
    }
}

/// The workspace's manifest, for packages that are in a folder below it.
fn members_below(folder: &str, manifest: &str) -> String {
    let mut text = String::new();
    for line in manifest.lines() {
        if line.starts_with("members = ") {
            let mut parts = line.split('"');
            text.push_str(parts.next().unwrap_or_default());
            while let (Some(member), Some(between)) = (parts.next(), parts.next()) {
                text.push_str(&format!("\"{folder}/{member}\"{between}"));
            }
        } else {
            text.push_str(&line.replace("path = \"", &format!("path = \"{folder}/")));
        }
        text.push('\n');
    }
    text
}

/// The sources' files, as they are now, by their path from the root.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut list = Command::new("git");
    list.arg("-C").arg(root);
    list.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
    ]);
    let names = exec(list.args(WORKSPACE).args(PACKAGES))?;
    let names = names.lines().map(str::to_owned);
    // Removed, and not committed yet.
    Ok(names.filter(|name| root.join(name).is_file()).collect())
}

/// Changes when a file or the patch does.
fn state(root: &Path, files: &[String], patch: &str) -> Result<String> {
    let mut parts = vec![patch.to_owned()];
    for name in files.iter().filter(|name| !name.starts_with(COMMANDS)) {
        let bytes =
            std::fs::read(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        parts.push(name.clone());
        parts.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    Ok(fingerprint(&parts))
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_in_their_folder() {
        let manifest = "[workspace]\nmembers = [\"a\", \"b/c\"]\n[workspace.dependencies]\na = { path = \"a\" }\nx = \"1\"\n";
        assert_eq!(
            members_below("copy", manifest),
            "[workspace]\nmembers = [\"copy/a\", \"copy/b/c\"]\n[workspace.dependencies]\na = { path = \"copy/a\" }\nx = \"1\"\n"
        );
    }

    #[test]
    fn every_patch_applies_to_the_source() {
        for patch in [
            Patch::RoleKept,
            Patch::ExpiredServed,
            Patch::AddressTrusted,
            Patch::NextLayout,
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("patch");
            std::fs::write(&file, patch.text()).unwrap();
            let mut check = Command::new("git");
            check.arg("-C").arg(workspace()).args(["apply", "--check"]);
            exec(check.arg(&file)).unwrap();
        }
    }
}
