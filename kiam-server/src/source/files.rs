//! Files of Kubernetes objects, read again when they change.
//!
//! For a machine with no cluster. The objects are the same as the API's, as YAML or JSON,
//! several in a file, in one file or in the files of one folder. A file that cannot be parsed
//! keeps what it held before; the others are not affected.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiam_common::watch::{self, Changes};
use kube::api::TypeMeta;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::manifest::{self, NamespaceManifest, ServiceAccountManifest};
use crate::cluster::Cluster;
use crate::cluster::object::{Kind, Object, ObjectKey};
use crate::permitted::Reading;

/// An editor that writes in steps is given this long before the file is read.
const SETTLE: Duration = Duration::from_millis(50);
/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file or the folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{} is {bytes} bytes long; {MAX_BYTES} are allowed", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A file is not YAML.
    #[error("{} is no valid YAML: {problem}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
    /// An object in it is malformed.
    #[error("object {number} of {} ({name}) cannot be used: {problem}", path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Its place, from 1.
        number: usize,
        /// Kind, namespace and name, as far as it has them.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing tells when the files change.
    #[error("cannot watch {}: {source}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

/// The files that keep a [`Cluster`] like the one that they describe.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    cluster: Arc<Cluster>,
    /// What each file held when it could last be parsed.
    held: BTreeMap<PathBuf, Vec<Object>>,
    changes: Changes,
    reading: Reading,
}

impl Files {
    /// Reads the files a first time.
    ///
    /// # Errors
    /// When there is nothing to read. A file with an error in it is not one: it is logged.
    pub fn new(
        path: PathBuf,
        cluster: Arc<Cluster>,
        reading: impl Into<Reading>,
    ) -> Result<Self, FileError> {
        let folder = if path.is_dir() {
            path.clone()
        } else {
            parent(&path)
        };
        // Before the first reading, so that no change falls between.
        let changes =
            watch::folders(std::slice::from_ref(&folder)).map_err(|source| FileError::Watch {
                path: folder,
                source,
            })?;
        let mut files = Self {
            path,
            cluster,
            held: BTreeMap::new(),
            changes,
            reading: reading.into(),
        };
        files.read()?;
        Ok(files)
    }

    /// Follows the files until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changes.next() => tokio::time::sleep(SETTLE).await,
            }
            self.changes.forget();
            if let Err(error) = self.read() {
                tracing::error!(%error, "what the files held before stays");
            }
        }
    }

    fn read(&mut self) -> Result<(), FileError> {
        let paths = self.paths()?;
        self.held.retain(|path, _| paths.contains(path));
        for path in paths {
            match parse(&path, &self.reading) {
                Ok((objects, errors)) => {
                    for error in errors {
                        tracing::error!(%error, "the object counts as absent");
                    }
                    self.held.insert(path, objects);
                }
                Err(error) => tracing::error!(%error, "what the file held before stays"),
            }
        }
        let objects = || self.held.values().flatten();
        for object in objects() {
            self.cluster.apply(object.clone());
        }
        let keys: HashSet<ObjectKey> = objects().map(Object::key).collect();
        for kind in Kind::ALL {
            self.cluster.listed(kind, &keys);
        }
        tracing::info!(path = %self.path.display(), objects = keys.len(), "read");
        Ok(())
    }

    fn paths(&self) -> Result<Vec<PathBuf>, FileError> {
        let error = |source| FileError::Read {
            path: self.path.clone(),
            source,
        };
        if !std::fs::metadata(&self.path).map_err(error)?.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

fn parent(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The objects of a file, and what is wrong with those that cannot be used.
pub(super) fn parse(
    path: &Path,
    reading: &Reading,
) -> Result<(Vec<Object>, Vec<FileError>), FileError> {
    let read_error = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::metadata(path).map_err(read_error)?.len();
    if bytes > MAX_BYTES {
        return Err(FileError::Size {
            path: path.to_owned(),
            bytes,
        });
    }
    let text = std::fs::read_to_string(path).map_err(read_error)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
        let text = error.to_string();
        // The first line says what and where; those behind it draw the place.
        let problem = text.lines().next().unwrap_or_default().to_owned();
        FileError::Yaml {
            path: path.to_owned(),
            problem,
        }
    })?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (at, document) in documents.into_iter().enumerate() {
        let name = name_of(&document);
        match object(document, reading) {
            Ok(Some(object)) => objects.push(object),
            Ok(None) => {}
            Err(problem) => {
                let (path, number) = (path.to_owned(), at + 1);
                errors.push(FileError::Object {
                    path,
                    number,
                    name,
                    problem,
                });
            }
        }
    }
    Ok((objects, errors))
}

fn object(document: Value, reading: &Reading) -> Result<Option<Object>, String> {
    fn typed<T: for<'de> Deserialize<'de>>(document: Value) -> Result<T, String> {
        serde_json::from_value(document).map_err(|error| error.to_string())
    }
    let types: TypeMeta = typed(document.clone())?;
    let unusable = |error: manifest::ManifestError| error.to_string();
    match (types.api_version.as_str(), types.kind.as_str()) {
        ("v1", "Pod") => {
            let pod = manifest::pod(typed(document)?).map_err(unusable)?;
            Ok(pod.ok().map(Object::Pod))
        }
        ("v1", "Namespace") => {
            let NamespaceManifest { metadata, .. } = typed(document)?;
            manifest::namespace(&metadata, reading)
                .map(|namespace| Some(namespace.into()))
                .map_err(unusable)
        }
        ("v1", "ServiceAccount") => {
            let ServiceAccountManifest { metadata, .. } = typed(document)?;
            manifest::service_account(&metadata)
                .map(|a| Some(a.into()))
                .map_err(unusable)
        }
        (version, kind) => Err(format!(
            "its kind is {version}/{kind}; here are v1/Pod, v1/Namespace and v1/ServiceAccount"
        )),
    }
}

fn name_of(document: &Value) -> String {
    let field = |path: &str| {
        document
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or("?")
    };
    let (kind, name) = (field("/kind"), field("/metadata/name"));
    match document
        .pointer("/metadata/namespace")
        .and_then(Value::as_str)
    {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
