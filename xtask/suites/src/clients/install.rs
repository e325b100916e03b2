//! The clients that are not part of the system, built or installed once into the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use toolchain::{
    AWS, Cache, Log, Package, Plan, Python, Step, exec, find_program, fingerprint, go, npm,
    workspace,
};

const WHY: &str = "runs unmodified clients in the sandbox's pods";

/// Clients from PyPI besides the AWS CLI and boto3.
pub(super) const PYTHON: Python = Python::new(
    "awscrt, pyarrow, opendal and chdb",
    WHY,
    "clients.txt",
    include_str!("../../../toolchain/python/clients.txt"),
    "awscrt.auth, pyarrow.fs, opendal, chdb",
);

const NEXT_TO: &str = "xtask/suites/clients";

/// Adds missing parts to the plan.
pub(crate) fn plan(plan: &mut Plan) -> Result<()> {
    AWS.plan(plan)?;
    PYTHON.plan(plan)?;
    for (program, name) in [
        ("node", "nodejs"),
        ("npm", "npm"),
        ("java", "openjdk-17-jdk-headless"),
        ("javac", "openjdk-17-jdk-headless"),
        ("mvn", "maven"),
        ("s3fs", "s3fs"),
        ("pgbackrest", "pgbackrest"),
        ("openssl", "openssl"),
        ("python3", "python3"),
    ] {
        if find_program(program).is_none() {
            plan.package(Package { name, why: WHY });
        }
    }
    if package_version("ruby-aws-sdk-core").is_err() {
        plan.package(Package {
            name: "ruby-aws-sdk-core",
            why: WHY,
        });
    }
    go::plan(plan);
    type Fill = fn(&Path, &Log) -> Result<()>;
    let steps: [(_, _, _, Fill); 3] = [
        ("Go clients, built", go_cache(), 60, build_go),
        ("JavaScript clients, by npm", js_cache(), 40, install_js),
        ("Java clients, by Maven", java_cache(), 60, build_java),
    ];
    for (what, cache, seconds, fill) in steps {
        if !cache.is_complete() {
            plan.step(Step {
                what: format!("{what} into {}", cache.path().display()),
                why: WHY,
                about: Some(Duration::from_secs(seconds)),
                run: Box::new(move || cache.fill(fill)),
            });
        }
    }
    Ok(())
}

pub(super) fn go_cache() -> Cache {
    let parts = [
        include_str!("../../clients/go/go.sum"),
        include_str!("../../clients/go/main.go"),
    ];
    Cache::new(&format!("clients/go-{}", fingerprint(&parts)))
}

pub(super) fn js_cache() -> Cache {
    let lock = include_str!("../../clients/js/package-lock.json");
    Cache::new(&format!("clients/js-{}", fingerprint(&[lock])))
}

pub(super) fn java_cache() -> Cache {
    let parts = [
        include_str!("../../clients/java/pom.xml"),
        include_str!("../../clients/java/src/main/java/Client.java"),
    ];
    Cache::new(&format!("clients/java-{}", fingerprint(&parts)))
}

/// The version of a Debian package that is installed.
pub(super) fn package_version(name: &str) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args([
        "--show",
        "--showformat=${db:Status-Status} ${Version}",
        name,
    ]);
    let output = exec(&mut query).with_context(|| format!("there is no package {name}"))?;
    let version = output.strip_prefix("installed ");
    let version = version.with_context(|| format!("{name} is not installed"))?;
    Ok(version.trim().to_owned())
}

fn build_go(folder: &Path, log: &Log) -> Result<()> {
    let go = go::find().context("there is no Go that is new enough")?;
    go.build(&sources("go"), &folder.join("clients"), log)
}

fn install_js(folder: &Path, log: &Log) -> Result<()> {
    npm::install(&sources("js"), folder, log)
}

fn sources(language: &str) -> PathBuf {
    workspace().join(NEXT_TO).join(language)
}

/// Maven builds beside its sources, and so in a copy of them.
fn build_java(folder: &Path, log: &Log) -> Result<()> {
    std::fs::create_dir_all(folder.join("src/main/java"))?;
    for name in ["pom.xml", "src/main/java/Client.java"] {
        let from = sources("java").join(name);
        std::fs::copy(from, folder.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    let repository = folder.join("repository");
    let mut command = Command::new("mvn");
    command
        .current_dir(folder)
        .arg("--batch-mode")
        .arg(format!("-Dmaven.repo.local={}", repository.display()))
        .args(["compile", "dependency:copy-dependencies"])
        .arg("-DincludeScope=runtime")
        .arg(format!(
            "-DoutputDirectory={}",
            folder.join("target/lib").display()
        ));
    log.exec(&mut command)?;
    std::fs::remove_dir_all(&repository)
        .with_context(|| format!("cannot remove {}", repository.display()))
}
