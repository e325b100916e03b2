//! `cargo xtask e2e --docs`: the commands of `docs/getting-started.md`, from nothing to a served
//! pod, as a new user would type them.
//!
//! helm, kubectl, etcd, kube-apiserver and the image of kiam are real. moto stands in for AWS, and
//! [`Workloads`] for the controllers and the kubelet.

mod page;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolchain::{kubectl, workspace};

use super::fixture::{MOTO_URL, moto_ready, start_moto};
use page::Step;
use testbed::cluster::containers::Runtime;
use testbed::cluster::{ControlPlane, Kubelet, Objects, Workloads};
use testbed::container::Containers;
use testbed::doubles::imds::Imds;
use testbed::image::{self, Image};
use testbed::sandbox::{NodeOptions, Place, PodOptions, Program, Sandbox, run};
use toolchain::helm;

const PAGE: &str = "docs/getting-started.md";
/// Name of the image on the page.
const IMAGE: &str = "registry.example.com/kiam";
const LIMIT: Duration = Duration::from_secs(150);
/// Has a connection with the node's metadata service, and prints how it ends.
const HOLDER: &str = r#"
import socket
old = socket.create_connection(("169.254.169.254", 80), 5)
print("connected", flush=True)
try:
    old.recv(1)
    print("it lives")
except OSError as error:
    print(f"ended: {error.errno}", flush=True)
"#;

/// Runs all commands of the page.
pub(super) fn run_page() -> Result<()> {
    let path = workspace().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let steps = page::steps(&page).context(PAGE)?;
    let image = image::made()?;
    let sandbox = Sandbox::new()?;
    let control = sandbox.control().netns().clone();
    control.block_on(async || in_cluster(&sandbox, &image, &steps).await)?
}

#[expect(clippy::print_stdout, reason = "for the terminal")]
async fn in_cluster(sandbox: &Sandbox, image: &Image, steps: &[Step]) -> Result<()> {
    let mut plane = ControlPlane::start(sandbox)?;
    let moto = start_moto(sandbox)?;
    let objects = Objects::new(plane.ready().await?);
    let node = sandbox.node("node-1", NodeOptions::default())?;
    let imds = Imds::start(node.listen_at_metadata_service()?)?;
    moto_ready(&moto).await?;
    let kubelet = Kubelet::register(objects.clone(), node.clone()).await?;
    // A pod was there before kiam is.
    let pod = node.pod(PodOptions::default())?;
    let mut holder = pod.place().command("/usr/bin/python3");
    holder.args(["-I", "-S", "-u", "-c", HOLDER]);
    let holder = Program::start("a connection from before", holder)?;
    let connected = |line: &str| (line == "connected").then_some(());
    holder.wait_for("that it is there", LIMIT, connected)?;
    let folder = sandbox.folder("user")?;
    let kubeconfig = folder.join("kubeconfig");
    plane.admin_kubeconfig(&kubeconfig)?;
    let runtime = Runtime {
        image: (IMAGE.to_owned(), Containers::start(sandbox, image)?),
        server: aws(&[
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
            (
                "AWS_SECRET_ACCESS_KEY",
                "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            ),
        ]),
        client: aws(&[]),
        api: plane.address(),
        authority: plane.authority().to_owned(),
        sandbox: sandbox.clone(),
    };
    let mut workloads = Workloads::new(sandbox, kubelet, objects, runtime).await?;
    workloads.settle().await?;
    for step in steps {
        let command = shell(sandbox.control(), &step.command, &kubeconfig)?;
        let ended = tokio::task::spawn_blocking(move || run("a shell", command, LIMIT)).await??;
        let printed = ended.stdout + &ended.stderr;
        println!("$ {}\n{printed}", step.command);
        ensure!(ended.status.success(), "it failed: {}", step.command);
        if let Some(missing) = step.missing(&printed) {
            anyhow::bail!("{} prints no {missing:?}", step.command);
        }
        if let Err(error) = workloads.settle().await {
            return Err(error.context(workloads.tails()));
        }
    }
    // ECONNABORTED: not its own time limit.
    let ended = |line: &str| (line == "ended: 103").then_some(());
    holder.wait_for("that the agent's init container closes it", LIMIT, ended)?;
    let reached = imds.traffic().connections();
    ensure!(
        reached == 1,
        "{reached} connections reached the node's metadata service, with the one from before"
    );
    println!(
        "{PAGE}: {} commands printed what the page shows",
        steps.len()
    );
    Ok(())
}

/// Environment that stands for AWS: a region, and moto.
fn aws(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let here = [
        ("AWS_REGION", "eu-west-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_ENDPOINT_URL_STS", MOTO_URL),
    ];
    let all = here.iter().chain(more);
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// A command line as a user types it, at the repository's root.
fn shell(place: &Place, line: &str, kubeconfig: &Path) -> Result<Command> {
    let mut path = vec![kubectl::folder()?, helm::folder()?];
    path.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(Into::into));
    let mut command = place.command("/bin/bash");
    command
        .env_clear()
        .env("PATH", std::env::join_paths(path)?)
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", kubeconfig.parent().unwrap_or(kubeconfig))
        .args(["-euo", "pipefail", "-c", line])
        .current_dir(workspace());
    Ok(command)
}
