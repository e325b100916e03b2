//! Import cycles: between the workspace's packages, and between the files of each crate.
//!
//! A file depends on another when it names something that is defined there, in a `use` or in an
//! expression; a name that a module imports or re-exports leads on to where it comes from. A module
//! and the modules inside it are one unit: what they name of each other is not counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::Metadata;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

use super::Finding;
use super::sources::{Crate, Source};

/// Finds all cycles.
pub(super) fn check(
    root: &Path,
    manifests: &Metadata,
    sources: &[Source],
    findings: &mut Vec<Finding>,
) {
    packages(manifests, findings);
    for source in sources {
        files(root, &source.parsed, findings);
    }
}

/// Dependencies for tests and build scripts count, which cargo lets close a cycle.
fn packages(manifests: &Metadata, findings: &mut Vec<Finding>) {
    let mut graph = DiGraphMap::<&str, ()>::new();
    for package in &manifests.packages {
        for dependency in package.dependencies.iter().filter(|it| it.path.is_some()) {
            graph.add_edge(&package.name, &dependency.name, ());
        }
    }
    for cycle in tarjan_scc(&graph) {
        let is_own = |name: &&str| graph.contains_edge(name, name);
        if cycle.len() < 2 && !cycle.iter().any(is_own) {
            continue;
        }
        let of = |name: &str| manifests.packages.iter().find(|it| it.name == name);
        let first = cycle.iter().find_map(|name| of(name));
        findings.push(Finding {
            file: first.map_or_else(PathBuf::new, |it| it.manifest_path.clone().into()),
            line: 1,
            problem: format!("packages depend on each other: {}", cycle.join(", ")),
            rule: "packages have no dependency cycle, dev-dependencies included",
        });
    }
}

/// One finding for each dependency between two files of a cycle.
fn files(root: &Path, source: &Crate, findings: &mut Vec<Finding>) {
    let mut mentions = Mentions::default();
    for (module, _, tokens) in &source.files {
        mentions.read(module, tokens.clone());
    }
    let imports = mentions.all.iter().filter_map(|mention| {
        let name = mention.imported_as.clone()?;
        Some(((mention.module.clone(), name), mention))
    });
    let names = Names {
        modules: &source.modules,
        imports: imports.collect(),
    };
    let mut lines = BTreeMap::new();
    for mention in &mentions.all {
        let Some(on) = names.module_of(&mention.module, &mention.path, MAX_IMPORTS) else {
            continue;
        };
        if on.starts_with(&mention.module) || mention.module.starts_with(&on) {
            continue;
        }
        if let (Some(file), Some(on)) =
            (source.modules.get(&mention.module), source.modules.get(&on))
        {
            lines.entry((&**file, &**on)).or_insert(mention.line);
        }
    }
    let graph: DiGraphMap<&Path, ()> = lines.keys().copied().collect();
    for cycle in tarjan_scc(&graph).iter().filter(|files| files.len() > 1) {
        for ((file, on), line) in &lines {
            if cycle.contains(file) && cycle.contains(on) {
                findings.push(Finding {
                    file: file.to_path_buf(),
                    line: *line,
                    problem: format!(
                        "imports {}, in a cycle of {} files",
                        on.strip_prefix(root).unwrap_or(on).display(),
                        cycle.len()
                    ),
                    rule: "files have no import cycle",
                });
            }
        }
    }
}

/// Longest chain of re-exports that is followed, which ends one that leads to itself.
const MAX_IMPORTS: u8 = 8;

/// A path of two names or more.
#[derive(Debug)]
struct Mention {
    /// The module in which it stands.
    module: Vec<String>,
    path: Vec<String>,
    line: usize,
    /// The name that it gets there, in a `use`.
    imported_as: Option<String>,
}

#[derive(Debug, Default)]
struct Mentions {
    all: Vec<Mention>,
}

impl Mentions {
    /// Collects all paths of a module's tokens.
    fn read(&mut self, module: &[String], tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut rest = &*tokens;
        let mut is_import = false;
        loop {
            rest = match rest {
                [] => break,
                // `pub(crate)`, `pub(in crate::name)`
                [TokenTree::Ident(word), TokenTree::Group(group), rest @ ..]
                    if word == "pub" && group.delimiter() == Delimiter::Parenthesis =>
                {
                    rest
                }
                [
                    TokenTree::Ident(keyword),
                    TokenTree::Ident(name),
                    TokenTree::Group(body),
                    rest @ ..,
                ] if keyword == "mod" && body.delimiter() == Delimiter::Brace => {
                    let mut inner = module.to_vec();
                    inner.push(name.to_string());
                    self.read(&inner, body.stream());
                    rest
                }
                [TokenTree::Ident(keyword), rest @ ..] if keyword == "use" => {
                    is_import = true;
                    rest
                }
                [TokenTree::Punct(mark), rest @ ..] if mark.as_char() == ';' => {
                    is_import = false;
                    rest
                }
                [TokenTree::Ident(first), rest @ ..] => {
                    self.path(module, Vec::new(), first, rest, is_import)
                }
                [TokenTree::Group(group), rest @ ..] => {
                    self.read(module, group.stream());
                    rest
                }
                [_, rest @ ..] => rest,
            };
        }
    }

    /// Reads a path from one of its names on, and returns what follows it.
    fn path<'a>(
        &mut self,
        module: &[String],
        mut names: Vec<String>,
        first: &Ident,
        mut rest: &'a [TokenTree],
        is_import: bool,
    ) -> &'a [TokenTree] {
        names.push(first.to_string());
        let line = first.span().start().line;
        while let [
            TokenTree::Punct(one),
            TokenTree::Punct(other),
            next,
            after @ ..,
        ] = rest
        {
            if one.as_char() != ':' || other.as_char() != ':' {
                break;
            }
            match next {
                TokenTree::Ident(name) => names.push(name.to_string()),
                // `use path::{one, other}`
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    self.braces(module, &names, group.stream(), is_import);
                    return after;
                }
                // `path::*`, `path::<T>`
                _ => {
                    self.add(module, names, line, None);
                    return after;
                }
            }
            rest = after;
        }
        let imported_as = match rest {
            _ if !is_import => None,
            [TokenTree::Ident(keyword), TokenTree::Ident(alias), ..] if keyword == "as" => {
                Some(alias.to_string())
            }
            _ => names.last().cloned(),
        };
        if names.len() > 1 {
            self.add(module, names, line, imported_as);
        }
        rest
    }

    fn braces(
        &mut self,
        module: &[String],
        prefix: &[String],
        tokens: TokenStream,
        is_import: bool,
    ) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let is_comma =
            |token: &TokenTree| matches!(token, TokenTree::Punct(it) if it.as_char() == ',');
        for entry in tokens.split(is_comma) {
            match entry {
                [TokenTree::Ident(first), ..] if first == "self" => {
                    let name = prefix.last().cloned().filter(|_| is_import);
                    self.add(module, prefix.to_vec(), first.span().start().line, name);
                }
                [TokenTree::Ident(first), rest @ ..] => {
                    self.path(module, prefix.to_vec(), first, rest, is_import);
                }
                [star, ..] => {
                    self.add(module, prefix.to_vec(), star.span().start().line, None);
                }
                [] => {}
            }
        }
    }

    fn add(
        &mut self,
        module: &[String],
        path: Vec<String>,
        line: usize,
        imported_as: Option<String>,
    ) {
        self.all.push(Mention {
            module: module.to_vec(),
            path,
            line,
            imported_as,
        });
    }
}

/// Names of one crate.
struct Names<'a> {
    modules: &'a BTreeMap<Vec<String>, PathBuf>,
    /// Names that a module imports.
    imports: BTreeMap<(Vec<String>, String), &'a Mention>,
}

impl Names<'_> {
    /// The module of this crate that defines what a path names.
    fn module_of(&self, site: &[String], path: &[String], left: u8) -> Option<Vec<String>> {
        let mut names = path;
        let mut module = match names.first()?.as_str() {
            "crate" => {
                names = &names[1..];
                Vec::new()
            }
            "self" => {
                names = &names[1..];
                site.to_vec()
            }
            "super" => {
                let mut module = site.to_vec();
                while let [first, rest @ ..] = names
                    && first == "super"
                {
                    module.pop();
                    names = rest;
                }
                module
            }
            name => {
                let mut child = site.to_vec();
                child.push(name.to_owned());
                names = &names[1..];
                self.modules.contains_key(&child).then_some(child)?
            }
        };
        while let [name, rest @ ..] = names {
            module.push(name.clone());
            if self.modules.contains_key(&module) {
                names = rest;
                continue;
            }
            module.pop();
            let import = self.imports.get(&(module.clone(), name.clone()));
            if let Some(import) = import.filter(|_| left > 0) {
                let mut path = import.path.clone();
                path.extend_from_slice(rest);
                // A name of another crate is not one of this module either.
                return self.module_of(&import.module, &path, left - 1);
            }
            break;
        }
        Some(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let source = Crate::read(&folder.path().join("lib.rs")).unwrap();
        let mut findings = Vec::new();
        super::files(folder.path(), &source, &mut findings);
        let name = |file: &Path| {
            let name = file.strip_prefix(folder.path()).unwrap();
            name.display().to_string()
        };
        let problems = findings
            .iter()
            .map(|it| format!("{}:{}", name(&it.file), it.line));
        problems.collect()
    }

    #[test]
    fn a_cycle_of_siblings_is_found_where_they_import() {
        let files = [
            ("lib.rs", "mod one;\nmod other;"),
            ("one.rs", "\nuse crate::other::{self, Other};"),
            ("other.rs", "fn f() {\n    let x = super::one::f();\n}"),
        ];
        assert_eq!(found(&files), ["one.rs:2", "other.rs:2"]);
    }

    #[test]
    fn a_cycle_through_re_exports_is_found_where_it_is() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::A; use b::B as Other;"),
            ("a.rs", "use crate::Other;"),
            ("b.rs", "\nuse super::A;"),
        ];
        assert_eq!(found(&files), ["a.rs:1", "b.rs:2"]);
    }

    #[test]
    fn a_longer_cycle_is_found() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::{b::{B, X as Y}};"),
            ("b.rs", "macro!(crate::c::C);"),
            ("c.rs", "use crate::a::*;"),
        ];
        assert_eq!(found(&files), ["a.rs:1", "b.rs:1", "c.rs:1"]);
    }

    #[test]
    fn imports_without_a_cycle_are_accepted() {
        let files = [
            // To declare a module, to name its visibility, and modules in the same file.
            (
                "lib.rs",
                "mod low; mod high; mod tests { use super::high; }",
            ),
            (
                "low.rs",
                "pub(in crate::high) struct Low; mod tests { use super::Low; }",
            ),
            (
                "high.rs",
                "mod child; use child::Child; use crate::low::Low; use std::high::X;",
            ),
            // A module and those inside it are one unit.
            (
                "high/child.rs",
                "use super::super::low; use super::High; use tests::Of;",
            ),
        ];
        assert!(found(&files).is_empty(), "{:?}", found(&files));
    }
}
