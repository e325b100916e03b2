//! etcd and the components of Kubernetes: found, or built as one program with all their names.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::{Cache, Plan, Step, fingerprint, go, workspace};

const GO_MOD: &str = include_str!("../../cluster/go.mod");
const GO_SUM: &str = include_str!("../../cluster/go.sum");
const MAIN: &str = include_str!("../../cluster/main.go");
/// A folder with etcd and kube-apiserver, as kubebuilder's `setup-envtest` makes it.
const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The one program that is built.
const PROGRAM: &str = "kubernetes";
const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
/// Names that the program goes by, as `main.go` has them.
const NAMES: [&str; 6] = [
    ETCD,
    API_SERVER,
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
];

/// Paths of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub api_server: PathBuf,
}

impl Binaries {
    /// Finds the programs.
    ///
    /// # Errors
    /// When they are not there.
    pub fn find() -> Result<Self> {
        let folder = assets().map_or_else(components, Ok)?;
        Self::in_folder(&folder)
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(path.is_file(), "there is no {name} in {}", folder.display());
            Ok(path)
        };
        Ok(Self {
            etcd: program(ETCD)?,
            api_server: program(API_SERVER)?,
        })
    }
}

/// Folder of all components, which are links to one program in it.
///
/// # Errors
/// When they are not built.
pub fn components() -> Result<PathBuf> {
    let cache = cache();
    ensure!(
        cache.is_complete(),
        "the components of Kubernetes are not built yet"
    );
    Ok(cache.path().to_owned())
}

/// Adds what is missing to build etcd and kube-apiserver.
///
/// # Errors
/// When `KUBEBUILDER_ASSETS` is set and lacks a program.
pub fn plan(plan: &mut Plan) -> Result<()> {
    if let Some(folder) = assets() {
        return Binaries::in_folder(&folder).map(drop).context(ASSETS);
    }
    plan_components(plan)
}

/// Adds what is missing to build all components.
pub fn plan_components(plan: &mut Plan) -> Result<()> {
    let cache = cache();
    if cache.is_complete() {
        return Ok(());
    }
    go::plan(plan);
    plan.step(Step {
        what: format!(
            "etcd and Kubernetes {}, built by Go into {}",
            kubernetes_version()?,
            cache.path().display()
        ),
        why: "the real Kubernetes that kiam is tested with",
        about: Some(Duration::from_secs(900)),
        run: Box::new(move || build(&cache)),
    });
    Ok(())
}

fn assets() -> Option<PathBuf> {
    std::env::var_os(ASSETS)
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
}

fn cache() -> Cache {
    let made = fingerprint(&[GO_MOD, GO_SUM, MAIN]);
    Cache::new(&format!("cluster-{made}"))
}

/// The version in `go.mod`.
fn kubernetes_version() -> Result<&'static str> {
    let mut lines = GO_MOD
        .lines()
        .filter_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    let version = lines.next().and_then(|rest| rest.split(' ').next());
    version.context("go.mod names no version of k8s.io/kubernetes")
}

fn build(cache: &Cache) -> Result<()> {
    let go = go::find().context("there is no Go that is new enough")?;
    // The linker's name of the version that the API server tells.
    let version = format!(
        "-s -w -X k8s.io/component-base/version.gitVersion=v{}",
        kubernetes_version()?
    );
    cache.fill(|folder, log| {
        let mut command = go.command();
        command
            .current_dir(workspace().join("xtask/testbed/cluster"))
            .env("CGO_ENABLED", "0")
            .args(["build", "-mod=readonly", "-trimpath"])
            .args(["-ldflags", &version, "-o"])
            .arg(folder.join(PROGRAM))
            .arg(".");
        log.exec(&mut command)?;
        for name in NAMES {
            symlink(PROGRAM, folder.join(name))
                .with_context(|| format!("cannot link {name} in {}", folder.display()))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_go_mod() {
        let version = kubernetes_version().unwrap();
        assert!(version.starts_with("1."), "{version}");
        assert!(version.split('.').count() == 3, "{version}");
    }

    #[test]
    fn every_name_is_one_that_the_program_knows() {
        for name in NAMES {
            assert!(MAIN.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn a_folder_without_a_program_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("etcd"), "").unwrap();
        let error = Binaries::in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no kube-apiserver in"), "{error}");
        std::fs::write(folder.path().join("kube-apiserver"), "").unwrap();
        Binaries::in_folder(folder.path()).unwrap();
    }
}
