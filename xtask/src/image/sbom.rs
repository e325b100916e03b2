//! Content of the image, as a CycloneDX document: the crates that both programs are built from, by
//! cargo-cyclonedx, and the system's packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolchain::{CargoTool, Plan, cargo, exec, workspace};

use super::root::Root;

const CYCLONEDX: CargoTool = CargoTool {
    name: "cargo-cyclonedx",
    version: "0.5.7",
    why: "lists the crates of an image",
    seconds: 90,
    flags: &[],
};
const PROGRAMS: [&str; 2] = ["kiam-agent", "kiam-server"];
/// Name of the file that cargo-cyclonedx writes beside a crate's `Cargo.toml`.
const WRITTEN: &str = "kiam-image-sbom";

/// Adds missing parts to the plan.
pub(crate) fn plan(plan: &mut Plan) {
    CYCLONEDX.plan(plan);
}

/// Makes the document.
pub(super) fn make(root: &Root, version: &str) -> Result<Value> {
    let mut document = None;
    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for program in PROGRAMS {
        let of_program = crates(program)?;
        for component in list(&of_program, "components") {
            components.insert(text(component, "bom-ref"), component.clone());
        }
        let main = &of_program["metadata"]["component"];
        components.insert(text(main, "bom-ref"), main.clone());
        for dependency in list(&of_program, "dependencies") {
            dependencies.insert(text(dependency, "ref"), dependency.clone());
        }
        document = Some(of_program);
    }
    let mut document = document.context("there are programs")?;
    for (name, version) in &root.packages {
        let purl = format!("pkg:deb/debian/{name}@{}", version.replace('+', "%2B"));
        let package = json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
        });
        components.insert(purl, package);
    }
    document["metadata"]["component"] =
        json!({ "type": "container", "bom-ref": "kiam", "name": "kiam", "version": version });
    document["components"] = components.into_values().collect();
    document["dependencies"] = dependencies.into_values().collect();
    check(&document, root)?;
    Ok(document)
}

fn list<'a>(document: &'a Value, name: &str) -> &'a [Value] {
    document[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// The crates of one program, without those that only tests and builds need.
fn crates(program: &str) -> Result<Value> {
    let mut command = cargo();
    let tool = CYCLONEDX.path()?;
    let mut path = vec![tool.parent().map(Path::to_owned).unwrap_or_default()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    command
        .args([
            "cyclonedx",
            "--quiet",
            "--format=json",
            "--spec-version=1.5",
        ])
        .args(["--no-build-deps", "--target"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .args(["--override-filename", WRITTEN, "--manifest-path"])
        .arg(workspace().join(program).join("Cargo.toml"))
        .env("PATH", std::env::join_paths(path)?);
    exec(&mut command)?;
    // It writes one for each crate of the workspace that the program is made of.
    let mut found = Err(anyhow::anyhow!("cargo-cyclonedx wrote nothing"));
    for package in crate::manifests::read(&workspace())?.packages {
        let file = package
            .manifest_path
            .with_file_name(format!("{WRITTEN}.json"));
        let file = file.into_std_path_buf();
        if file.is_file() {
            if file.starts_with(workspace().join(program)) {
                found = read(&file);
            }
            std::fs::remove_file(&file)?;
        }
    }
    found
}

fn read(file: &PathBuf) -> Result<Value> {
    let text = std::fs::read_to_string(file)?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))
}

/// Checks that it names both programs, their main dependencies, and the system's packages.
fn check(document: &Value, root: &Root) -> Result<()> {
    let names: Vec<_> = list(document, "components")
        .iter()
        .map(|component| text(component, "name"))
        .collect();
    let packages = root.packages.keys().map(String::as_str);
    let expected = ["aya", "rustls", "kube", "libc6"];
    for name in PROGRAMS.into_iter().chain(expected).chain(packages) {
        ensure!(names.iter().any(|known| known == name), "{name} is missing");
    }
    Ok(())
}
