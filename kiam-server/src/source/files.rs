//! Files of Kubernetes objects, reloaded when they change, for machines without a cluster.
//!
//! The objects are those of the API, in YAML or JSON, in one file or in the files of one folder. A
//! file that cannot be parsed keeps its previous objects, and does not affect other files.

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
use crate::permitted::PermissionOptions;

/// The wait after a change, for editors that write a file in steps.
const SETTLE: Duration = Duration::from_millis(50);
/// The largest file, in bytes.
const MAX_BYTES: u64 = 64 << 20;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// The error of unusable files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file or the folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{} is too large: {bytes} bytes; the limit is {MAX_BYTES}", path.display())]
    Size { path: PathBuf, bytes: u64 },
    /// A file is not valid YAML.
    #[error("{} is not valid YAML: {problem}", path.display())]
    Yaml { path: PathBuf, problem: String },
    /// An object in a file is invalid.
    #[error("object {number} of {} ({name}) is invalid: {problem}", path.display())]
    Object {
        path: PathBuf,
        /// The position of the object in the file, from 1.
        number: usize,
        /// Kind, namespace and name, as far as the object has them.
        name: String,
        problem: String,
    },
    /// Changes of the files cannot be watched.
    #[error("cannot watch {}: {source}", path.display())]
    Watch {
        path: PathBuf,
        source: notify::Error,
    },
}

impl FileError {
    /// Returns whether another path or another file would avoid the error.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            // Other than a directory that does not exist.
            Self::Watch { source, .. } => is_not_found(source),
            _ => true,
        }
    }
}

fn is_not_found(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The files that define the state of a [`Cluster`].
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    cluster: Arc<Cluster>,
    /// The objects of each file when it was last valid.
    objects: BTreeMap<PathBuf, Vec<Object>>,
    changes: Changes,
    options: PermissionOptions,
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// When the path cannot be read. An invalid file is logged, and is not an error.
    pub(crate) fn new(
        path: PathBuf,
        cluster: Arc<Cluster>,
        options: impl Into<PermissionOptions>,
    ) -> Result<Self, FileError> {
        let folder = if path.is_dir() {
            path.clone()
        } else {
            parent(&path)
        };
        // The watch starts before the files are read, so that no change is missed.
        let changes =
            watch::folders(std::slice::from_ref(&folder)).map_err(|source| FileError::Watch {
                path: folder,
                source,
            })?;
        let mut files = Self {
            path,
            cluster,
            objects: BTreeMap::new(),
            changes,
            options: options.into(),
        };
        files.read()?;
        Ok(files)
    }

    /// Reloads the files when they change, until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.changes.next() => tokio::time::sleep(SETTLE).await,
            }
            self.changes.forget();
            if let Err(error) = self.read() {
                tracing::error!(%error, "cannot reload the files; keeping the previous objects");
            }
        }
    }

    fn read(&mut self) -> Result<(), FileError> {
        let paths = self.paths()?;
        self.objects.retain(|path, _| paths.contains(path));
        for path in paths {
            match parse(&path, &self.options) {
                Ok((objects, errors)) => {
                    for error in errors {
                        tracing::error!(%error, "ignoring an invalid object");
                    }
                    self.objects.insert(path, objects);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot use a file; keeping its previous objects");
                }
            }
        }
        let objects = || self.objects.values().flatten();
        for object in objects() {
            self.cluster.apply(object.clone());
        }
        let keys: HashSet<ObjectKey> = objects().map(Object::key).collect();
        for kind in Kind::ALL {
            self.cluster.listed(kind, &keys);
        }
        tracing::info!(path = %self.path.display(), objects = keys.len(), "read the files");
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

/// Parses the objects of a file. Also returns the errors of invalid objects.
pub(super) fn parse(
    path: &Path,
    options: &PermissionOptions,
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
        // The first line has the message and the position; the others quote the source.
        let problem = text.lines().next().unwrap_or_default().to_owned();
        FileError::Yaml {
            path: path.to_owned(),
            problem,
        }
    })?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for (at, document) in documents.into_iter().enumerate() {
        let name = name_of(&document);
        match object(document, options) {
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

fn object(document: Value, options: &PermissionOptions) -> Result<Option<Object>, String> {
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
            manifest::namespace(&metadata, options)
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
            "its kind is {version}/{kind}; expected v1/Pod, v1/Namespace or v1/ServiceAccount"
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
