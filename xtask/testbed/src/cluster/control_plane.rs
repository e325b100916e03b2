//! etcd and kube-apiserver in the sandbox's control namespace, with controllers where they are wanted.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use super::{Binaries, components};
use crate::pki::{Authority, Leaf, PemFiles, token_keys};
use crate::sandbox::{CONTROL_IP, Place, Program, Sandbox};

const PORT: u16 = 6443;
const ETCD_URL: &str = "http://127.0.0.1:2379";
/// Issuer of service-account tokens, as in a cluster made by kubeadm.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const READY_LIMIT: Duration = Duration::from_secs(90);
const READY_PAUSE: Duration = Duration::from_millis(100);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running control plane; it is killed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    place: Place,
    binaries: Binaries,
    folder: PathBuf,
    authority: Authority,
    tls: PemFiles,
    admin: PemFiles,
    kubelet_client: PemFiles,
    controllers: Vec<Program>,
    api_server: Option<Program>,
    etcd: Option<Program>,
}

impl ControlPlane {
    /// Starts both programs; [`Self::ready`] waits for them.
    ///
    /// # Errors
    /// When a program is not built or cannot be started.
    pub fn start(sandbox: &Sandbox) -> Result<Self> {
        let folder = sandbox.folder("control-plane")?;
        let authority = Authority::new("kubernetes")?;
        let address = CONTROL_IP.to_string();
        let leaf = Leaf {
            name: "kube-apiserver",
            alternative_names: &[&address, "kubernetes.default.svc", "10.96.0.1"],
            ..Leaf::default()
        };
        let tls = authority.write(&folder.join("tls"), &leaf)?;
        let leaf = Leaf {
            name: "admin",
            organization: Some("system:masters"),
            ..Leaf::default()
        };
        let admin = authority.write(&folder.join("admin"), &leaf)?;
        let leaf = Leaf {
            name: "kube-apiserver-kubelet-client",
            organization: Some("system:masters"),
            ..Leaf::default()
        };
        let kubelet_client = authority.write(&folder.join("kubelet-client"), &leaf)?;
        let (private, public) = token_keys()?;
        std::fs::write(folder.join("sa.key"), private).context("cannot write sa.key")?;
        std::fs::write(folder.join("sa.pub"), public).context("cannot write sa.pub")?;
        let mut plane = Self {
            place: sandbox.control().clone(),
            binaries: Binaries::find()?,
            folder,
            authority,
            tls,
            admin,
            kubelet_client,
            controllers: Vec::new(),
            api_server: None,
            etcd: None,
        };
        plane.start_etcd()?;
        plane.start_api_server()?;
        Ok(plane)
    }

    /// URL of the API.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(CONTROL_IP, PORT)
    }

    /// Starts etcd, with what it held before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_etcd(&mut self) -> Result<()> {
        let peer = "http://127.0.0.1:2380";
        let mut command = self.place.command(&self.binaries.etcd);
        clean(&mut command)
            .arg(flag("data-dir", &self.folder.join("etcd").display()))
            .arg(flag("listen-client-urls", &ETCD_URL))
            .arg(flag("advertise-client-urls", &ETCD_URL))
            .arg(flag("listen-peer-urls", &peer))
            .arg(flag("initial-advertise-peer-urls", &peer))
            .arg(flag("initial-cluster", &format!("default={peer}")))
            // The data need not outlive the machine.
            .args(["--unsafe-no-fsync", "--log-level=warn"]);
        self.etcd = Some(Program::start("etcd", command)?);
        Ok(())
    }

    /// Starts the API server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_api_server(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = self.place.command(&self.binaries.api_server);
        clean(&mut command)
            .arg(flag("etcd-servers", &ETCD_URL))
            .arg(flag("bind-address", &CONTROL_IP))
            .arg(flag("advertise-address", &CONTROL_IP))
            .arg(flag("secure-port", &PORT))
            .arg(flag("tls-cert-file", &self.tls.cert.display()))
            .arg(flag("tls-private-key-file", &self.tls.key.display()))
            .arg(flag("client-ca-file", &self.tls.ca.display()))
            .arg(flag("cert-dir", &file("certs")))
            .arg(flag("service-account-issuer", &ISSUER))
            .arg(flag("service-account-key-file", &file("sa.pub")))
            .arg(flag("service-account-signing-key-file", &file("sa.key")))
            .args([
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                // Nobody tells the nodes' names.
                "--kubelet-preferred-address-types=InternalIP",
            ])
            .arg(flag(
                "kubelet-client-certificate",
                &self.kubelet_client.cert.display(),
            ))
            .arg(flag(
                "kubelet-client-key",
                &self.kubelet_client.key.display(),
            ));
        self.api_server = Some(Program::start("kube-apiserver", command)?);
        Ok(())
    }

    /// Starts the scheduler and the controllers; for a cluster whose kubelets are real.
    ///
    /// # Errors
    /// When one is not built or cannot be started.
    pub fn start_controllers(&mut self) -> Result<()> {
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let kubeconfig = self.folder.join(format!("{name}.conf"));
            let user = format!("system:{name}");
            let leaf = Leaf {
                name: &user,
                ..Leaf::default()
            };
            let pem = self.authority.write(&self.folder.join(name), &leaf)?;
            let user = json!({ "client-certificate": pem.cert, "client-key": pem.key });
            let text = self.config(&user, &self.tls.ca).to_string();
            std::fs::write(&kubeconfig, text)
                .with_context(|| format!("cannot write {}", kubeconfig.display()))?;
            let mut command = self.place.command(components()?.join(name));
            clean(&mut command).args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
            for option in [
                "kubeconfig",
                "authentication-kubeconfig",
                "authorization-kubeconfig",
            ] {
                command.arg(flag(option, &kubeconfig.display()));
            }
            if name == "kube-controller-manager" {
                let key = self.folder.join("sa.key");
                command
                    .arg(flag("service-account-private-key-file", &key.display()))
                    .arg(flag("root-ca-file", &self.tls.ca.display()))
                    .arg("--use-service-account-credentials=true");
            }
            self.controllers.push(Program::start(name, command)?);
        }
        Ok(())
    }

    /// Writes a certificate of this cluster's authority.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn issue(&self, folder: &Path, leaf: &Leaf<'_>) -> Result<PemFiles> {
        self.authority.write(folder, leaf)
    }

    /// A kubeconfig for a machine, where certificate, key and authority are in these files.
    pub fn kubeconfig_with(&self, pem: &PemFiles) -> String {
        let user = json!({ "client-certificate": pem.cert, "client-key": pem.key });
        self.config(&user, &pem.ca).to_string()
    }

    /// The end of what each program has printed.
    pub fn tails(&self) -> String {
        let programs = self.etcd.iter().chain(&self.api_server);
        let programs = programs.chain(&self.controllers);
        programs.fold(String::new(), |text, program| {
            format!("{text}{}:\n{}", program.name(), program.tail())
        })
    }

    /// etcd, if it was not stopped.
    pub const fn etcd(&mut self) -> &mut Option<Program> {
        &mut self.etcd
    }

    /// The API server, if it was not stopped.
    pub const fn api_server(&mut self) -> &mut Option<Program> {
        &mut self.api_server
    }

    /// Waits until the API serves; inside of the control namespace. Returns the administrator's
    /// client.
    ///
    /// # Errors
    /// When it does not in time, or a program has ended.
    pub async fn ready(&mut self) -> Result<kube::Client> {
        let client = self.client().await?;
        let deadline = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let why = match client.request_text(request).await {
                Ok(_) => return Ok(client),
                Err(error) => error,
            };
            for program in [&mut self.etcd, &mut self.api_server].into_iter().flatten() {
                if program.try_status()?.is_some() {
                    bail!("{} has ended:\n{}", program.name(), program.tail());
                }
            }
            if tokio::time::Instant::now() > deadline {
                let output = self
                    .api_server
                    .as_ref()
                    .map(Program::tail)
                    .unwrap_or_default();
                bail!("the API is not ready within {READY_LIMIT:?} ({why}):\n{output}");
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }

    /// A client with an administrator's rights; usable inside of the control namespace.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn client(&self) -> Result<kube::Client> {
        let PemFiles { cert, key, .. } = &self.admin;
        let user = json!({ "client-certificate": cert, "client-key": key });
        self.client_as(user).await
    }

    /// A client that shows a service account's token.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn client_with_token(&self, token: &str) -> Result<kube::Client> {
        self.client_as(json!({ "token": token })).await
    }

    /// A client that is a node's kubelet to the API.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn client_of_kubelet(&self, node: &str) -> Result<kube::Client> {
        let PemFiles { cert, key, .. } = &self.admin;
        let user = json!({
            "client-certificate": cert,
            "client-key": key,
            "as": format!("system:node:{node}"),
            "as-groups": ["system:nodes", "system:authenticated"],
        });
        self.client_as(user).await
    }

    /// Writes a kubeconfig that shows the token that `token_file` holds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, path: &Path, token_file: &Path) -> Result<()> {
        // Beside it, as a pod's service account has it.
        let authority = path.with_file_name("api-ca.crt");
        std::fs::copy(&self.tls.ca, &authority).context("cannot copy the API's authority")?;
        let text = self
            .config(&json!({ "tokenFile": token_file }), &authority)
            .to_string();
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a kubeconfig of the administrator's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn admin_kubeconfig(&self, path: &Path) -> Result<()> {
        let user = json!({ "client-certificate": self.admin.cert, "client-key": self.admin.key });
        let text = self.config(&user, &self.tls.ca).to_string();
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The authority of the API's certificate.
    pub fn authority(&self) -> &Path {
        &self.tls.ca
    }

    async fn client_as(&self, user: serde_json::Value) -> Result<kube::Client> {
        // The first one counts; another of this process may have done it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config: Kubeconfig = serde_json::from_value(self.config(&user, &self.tls.ca))?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
        kube::Client::try_from(config).context("cannot make a client of the API")
    }

    fn config(&self, user: &serde_json::Value, authority: &Path) -> serde_json::Value {
        let server = format!("https://{}", self.address());
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "sandbox",
                "cluster": { "server": server, "certificate-authority": authority },
            }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "it", "context": { "cluster": "sandbox", "user": "user" } }],
            "current-context": "it",
        })
    }

    /// Stops all in order.
    ///
    /// # Errors
    /// When one does not end in time: then it is killed.
    pub fn stop(mut self) -> Result<()> {
        for program in self.controllers.drain(..) {
            program.terminate(STOP_LIMIT)?;
        }
        for program in [self.api_server.take(), self.etcd.take()]
            .into_iter()
            .flatten()
        {
            program.terminate(STOP_LIMIT)?;
        }
        Ok(())
    }
}

fn flag(name: &str, value: &dyn std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// Nothing of the environment is meant for them.
fn clean(command: &mut Command) -> &mut Command {
    command.env_clear()
}
