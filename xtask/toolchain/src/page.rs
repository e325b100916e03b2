//! Parts of the pages in `docs` that commands make: between two comments, `command` naming itself.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Puts `text` between the comments that are `command`'s.
///
/// # Errors
/// Fails when the page cannot be read or written, or has no such comments.
pub fn replace(page: &Path, command: &str, text: &str) -> Result<()> {
    let name = page.display();
    let before = format!("<!-- made by {command} -->");
    let after = format!("<!-- end of what {command} makes -->");
    let whole = std::fs::read_to_string(page).with_context(|| format!("cannot read {name}"))?;
    let missing = || format!("{name} has not both of {before} and {after}");
    let (head, rest) = whole.split_once(&before).with_context(missing)?;
    let (_, tail) = rest.split_once(&after).with_context(missing)?;
    let text = format!("{head}{before}\n\n{text}\n{after}{tail}");
    std::fs::write(page, text).with_context(|| format!("cannot write {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_between_the_comments_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.md");
        let text = "a\n<!-- made by x -->\nold\n<!-- end of what x makes -->\nb\n";
        std::fs::write(&page, text).unwrap();
        replace(&page, "x", "new\n").unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        let expected = "a\n<!-- made by x -->\n\nnew\n\n<!-- end of what x makes -->\nb\n";
        assert_eq!(text, expected);
        assert!(replace(&page, "y", "new").is_err());
    }
}
