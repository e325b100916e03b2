//! Flags and commands without a help text.

use anyhow::{Context as _, Result};
use syn::visit::{Visit, visit_item_enum, visit_item_struct};
use syn::{Attribute, Field, ItemEnum, ItemStruct, Meta};

use super::Finding;
use super::sources::Source;

/// Finds fields and variants that clap shows and that have no doc comment.
pub(super) fn check(sources: &[Source], findings: &mut Vec<Finding>) -> Result<()> {
    let programs = sources.iter().filter(|source| source.is_program);
    for (_, file, tokens) in programs.flat_map(|source| &source.parsed.files) {
        let parsed = syn::parse2(tokens.clone())
            .with_context(|| format!("cannot parse {}", file.display()))?;
        for (line, name) in undocumented(&parsed) {
            findings.push(Finding {
                file: file.clone(),
                line,
                problem: format!("`{name}` has no help"),
                rule: "each flag, command and value has a doc comment, which is its help",
            });
        }
    }
    Ok(())
}

fn undocumented(file: &syn::File) -> Vec<(usize, String)> {
    let mut visitor = Undocumented::default();
    visitor.visit_file(file);
    visitor.found
}

#[derive(Debug, Default)]
struct Undocumented {
    found: Vec<(usize, String)>,
}

impl Undocumented {
    fn look(&mut self, name: &impl ToString, attributes: &[Attribute], line: usize) {
        let has_help = |it: &Attribute| it.path().is_ident("doc");
        if !attributes.iter().any(has_help) && !attributes.iter().any(is_without_help) {
            self.found.push((line, name.to_string()));
        }
    }

    fn fields<'a>(&mut self, fields: impl IntoIterator<Item = &'a Field>) {
        for field in fields {
            if let Some(name) = &field.ident {
                self.look(name, &field.attrs, name.span().start().line);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Undocumented {
    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        if derives(&item.attrs, &["Args", "Parser"]) {
            self.fields(&item.fields);
        }
        visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast ItemEnum) {
        if derives(&item.attrs, &["Subcommand", "ValueEnum"]) {
            for variant in &item.variants {
                let line = variant.ident.span().start().line;
                self.look(&variant.ident, &variant.attrs, line);
                self.fields(&variant.fields);
            }
        }
        visit_item_enum(self, item);
    }
}

fn derives(attributes: &[Attribute], names: &[&str]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        let derived = list.tokens.clone().into_iter();
        list.path.is_ident("derive")
            && derived
                .map(|token| token.to_string())
                .any(|it| names.contains(&&*it))
    })
}

/// `#[command(flatten)]`, `#[command(subcommand)]`, `#[arg(hide = true)]`, `#[arg(help = …)]`.
fn is_without_help(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else {
        return false;
    };
    let is_of_clap = ["arg", "command", "value"]
        .iter()
        .any(|it| list.path.is_ident(it));
    let mut tokens = list.tokens.clone().into_iter();
    let words = ["flatten", "subcommand", "hide", "help", "about", "skip"];
    is_of_clap && tokens.any(|token| words.contains(&&*token.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_commands_and_values_without_help_are_found() {
        let file = syn::parse_str(
            "#[derive(Debug, clap::Args)]
             struct Args {
                 /// Has help.
                 one: u8,
                 #[arg(long)]
                 other: u8,
                 #[command(flatten)]
                 more: More,
                 #[arg(long, hide = true)]
                 hidden: u8,
             }
             #[derive(Subcommand)]
             enum Command {
                 /// Has help.
                 Run { flag: u8 },
                 Stop,
             }
             #[derive(Debug)]
             struct Plain { field: u8 }",
        );
        let found = undocumented(&file.unwrap());
        let found: Vec<_> = found
            .iter()
            .map(|(line, name)| format!("{name}:{line}"))
            .collect();
        assert_eq!(found, ["other:6", "flag:15", "Stop:16"]);
    }
}
