//! Search for every secret issued during the run: in logs, audit logs, metrics, status pages,
//! Events, error replies to pods, arguments, core files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::fixture::Fixture;

/// Length of the end of a token that identifies it in reports.
const TAIL: usize = 24;
const PAGES: [&str; 5] = ["/metrics", "/healthz", "/readyz", "/status", "/status.html"];
const CONTROL: &str = "(control)";

/// Result of the search.
#[derive(Debug, Default, Serialize)]
pub(super) struct Scan {
    /// Number of issued secrets of each kind.
    pub(super) secrets: BTreeMap<&'static str, usize>,
    /// Number of texts that were read.
    pub(super) texts: usize,
    /// Their length, in bytes.
    pub(super) bytes: usize,
    /// Kind of each secret that was found, and where, without the secret.
    pub(super) hits: Vec<String>,
}

impl Scan {
    pub(super) fn line(&self) -> String {
        let kinds = self
            .secrets
            .iter()
            .map(|(kind, count)| format!("{count} × {kind}"));
        format!(
            "secrets: {} in {} texts of {} kB: {} found",
            kinds.collect::<Vec<_>>().join(", "),
            self.texts,
            self.bytes / 1024,
            self.hits.len()
        )
    }
}

/// Ends of the secrets, as they are and escaped as in a URL's query.
#[derive(Default)]
struct Needles(HashMap<[u8; TAIL], &'static str>);

impl Needles {
    fn new(secrets: &[(&'static str, String)]) -> Result<Self> {
        let mut needles = Self::default();
        for (kind, secret) in secrets {
            let escaped = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
            for text in [secret, &escaped] {
                let tail = text.as_bytes().last_chunk().with_context(|| {
                    format!("a {kind} has {} bytes, too few to look for", text.len())
                })?;
                needles.0.insert(*tail, kind);
            }
        }
        Ok(needles)
    }

    /// The kinds of the secrets in a text.
    fn find(&self, text: &[u8]) -> BTreeSet<&'static str> {
        let windows = text.windows(TAIL);
        windows
            .filter_map(|window| self.0.get(window).copied())
            .collect()
    }
}

/// Looks for everything everywhere, after all faults or some of them.
///
/// # Errors
/// Fails when a place cannot be read, no secret of a kind was given out, or one that is there is
/// not found.
pub(super) async fn scan(fixture: &Fixture, all_faults: bool) -> Result<Scan> {
    let secrets = secrets(fixture)?;
    let needles = Needles::new(&secrets)?;
    let mut scan = Scan::default();
    for (kind, _) in &secrets {
        *scan.secrets.entry(kind).or_default() += 1;
    }
    for kind in [
        "secret key or session token",
        "IMDS token",
        "service account token",
    ] {
        ensure!(scan.secrets.contains_key(kind), "no {kind} was issued");
    }
    let mut texts = files(&fixture.sandbox.folder("logs")?)?;
    texts.extend(pages(fixture)?);
    texts.push(("Events".to_owned(), events(fixture).await?.into_bytes()));
    texts.push((
        "error replies to pods".to_owned(),
        fixture.error_replies.join("\n").into_bytes(),
    ));
    let has_events = |(name, text): &(String, Vec<u8>)| name == "Events" && text.len() > 100;
    // Not each fault by itself has a role refused.
    ensure!(!all_faults || texts.iter().any(has_events), "no Event");
    for (name, text) in &texts {
        scan.texts += 1;
        scan.bytes += text.len();
        let found = needles.find(text);
        scan.hits
            .extend(found.iter().map(|kind| format!("a {kind} is in {name}")));
    }
    // What is there is found, each kind in the middle of a line of a log.
    for (kind, secret) in &secrets {
        let line = format!("INFO kiam: answered pod=team/a token={secret} in 3 ms\n");
        let found = needles.find(line.as_bytes());
        ensure!(
            found.contains(kind),
            "{CONTROL}: a {kind} in a log is not found"
        );
    }
    Ok(scan)
}

fn secrets(fixture: &Fixture) -> Result<Vec<(&'static str, String)>> {
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map(|token| token.trim().to_owned())
            .with_context(|| format!("cannot read {}", path.display()))
    };
    let of_sts = fixture.sts.secrets().into_iter();
    let mut secrets: Vec<_> = of_sts
        .map(|it| ("secret key or session token", it))
        .collect();
    secrets.extend(
        fixture
            .tokens
            .iter()
            .map(|token| ("IMDS token", token.clone())),
    );
    for node in &fixture.nodes {
        secrets.push(("service account token", read(node.token())?));
    }
    let of_server = fixture.servers.kubeconfig.with_file_name("token");
    secrets.push(("service account token", read(&of_server)?));
    for tls in [&fixture.servers.tls, &fixture.nodes[0].tls] {
        let key = read(&tls.key)?;
        let longest = key
            .lines()
            .max_by_key(|line| line.len())
            .unwrap_or_default();
        secrets.push(("private key", longest.to_owned()));
    }
    Ok(secrets)
}

fn files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        texts.push((name, std::fs::read(entry.path())?));
    }
    Ok(texts)
}

/// Pages of the admin ports, and the command lines that every user of a node can read.
fn pages(fixture: &Fixture) -> Result<Vec<(String, Vec<u8>)>> {
    let mut texts = Vec::new();
    let servers = fixture
        .servers
        .running()
        .map(|it| (it.program(), it.admin("/metrics")));
    let agents = fixture.nodes.iter().filter_map(|node| node.agent().ok());
    let agents = agents.map(|it| (it.program(), it.admin("/metrics")));
    for (program, metrics) in servers.chain(agents) {
        texts.push((
            format!("/metrics of {}", program.name()),
            metrics?.body.into_bytes(),
        ));
        let process = Path::new("/proc").join(program.pid().to_string());
        texts.push((
            format!("arguments of {}", program.name()),
            std::fs::read(process.join("cmdline"))?,
        ));
        let core = std::fs::read(process.join("cwd/core"));
        texts.extend(
            core.ok()
                .map(|core| (format!("a core file of {}", program.name()), core)),
        );
    }
    for server in fixture.servers.running() {
        for page in PAGES {
            let answer = server.admin(page)?;
            texts.push((
                format!("{page} of {}", server.program().name()),
                answer.body.into_bytes(),
            ));
        }
    }
    let disk = fixture.servers.disk_of(1)?.join("audit.log");
    texts.push(("an audit log".to_owned(), std::fs::read(disk)?));
    Ok(texts)
}

async fn events(fixture: &Fixture) -> Result<String> {
    let kind = ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Event".to_owned(),
        plural: "events".to_owned(),
    };
    let events = kube::Api::<DynamicObject>::all_with(fixture.objects.client().clone(), &kind);
    let events = events.list(&ListParams::default()).await?;
    serde_json::to_string(&events.items).context("cannot write the Events")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_by_its_end_however_it_is_written() {
        let secret = "abc/def+0123456789/ABCDEFGHIJ+xyz=".to_owned();
        let needles = Needles::new(&[("token", secret.clone())]).unwrap();
        let escaped = utf8_percent_encode(&secret, NON_ALPHANUMERIC);
        for text in [
            format!("x{secret}y"),
            format!("?t={escaped}&u"),
            secret[5..].to_owned(),
        ] {
            assert!(needles.find(text.as_bytes()).contains("token"), "{text}");
        }
        assert!(
            needles
                .find(&secret.as_bytes()[..secret.len() - 1])
                .is_empty()
        );
        assert!(Needles::new(&[("token", "short".to_owned())]).is_err());
    }
}
