//! Files of the workspace's packages, as trees of modules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::Metadata;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Modules of one crate: a library, a program, a test, a benchmark.
#[derive(Debug, Default)]
pub(super) struct Crate {
    /// Each module's file, by the module's path; an inline module's is that of the module around
    /// it.
    pub(super) modules: BTreeMap<Vec<String>, PathBuf>,
    /// Tokens of each file, and the path of the module that it holds.
    pub(super) files: Vec<(Vec<String>, PathBuf, TokenStream)>,
}

impl Crate {
    /// Reads a crate from the file of its root on.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut found = Self::default();
        let folder = root.parent().context("a file is in a folder")?;
        found.read_file(Vec::new(), root, folder)?;
        Ok(found)
    }

    fn read_file(&mut self, module: Vec<String>, file: &Path, children: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let tokens: TokenStream = text
            .parse()
            .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        self.find_modules(&module, file, children, tokens.clone())?;
        self.files.push((module, file.to_owned(), tokens));
        Ok(())
    }

    /// Finds `mod name;` and `mod name { … }`.
    fn find_modules(
        &mut self,
        module: &[String],
        file: &Path,
        children: &Path,
        tokens: TokenStream,
    ) -> Result<()> {
        self.modules.insert(module.to_vec(), file.to_owned());
        let tokens: Vec<_> = tokens.into_iter().collect();
        for window in tokens.windows(3) {
            let [TokenTree::Ident(keyword), TokenTree::Ident(name), next] = window else {
                continue;
            };
            if keyword != "mod" {
                continue;
            }
            let name = name.to_string();
            let mut path = module.to_vec();
            path.push(name.clone());
            match next {
                TokenTree::Punct(mark) if mark.as_char() == ';' => {
                    let inner = children.join(&name);
                    let files = [inner.with_extension("rs"), inner.join("mod.rs")];
                    let Some(found) = files.iter().find(|file| file.exists()) else {
                        bail!("{}: there is no file of module {name}", file.display());
                    };
                    self.read_file(path, found, &inner)?;
                }
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    self.find_modules(&path, file, &children.join(&name), body.stream())?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A crate of the workspace.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) package: String,
    /// A library or a program: no test, benchmark, example or build script.
    pub(super) is_program: bool,
    pub(super) parsed: Crate,
}

/// Reads all crates of the workspace.
pub(super) fn read(manifests: &Metadata) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for package in &manifests.packages {
        for target in &package.targets {
            sources.push(Source {
                package: package.name.to_string(),
                is_program: target.is_lib() || target.is_bin(),
                parsed: Crate::read(target.src_path.as_std_path())?,
            });
        }
    }
    Ok(sources)
}
