//! An error and its sources as one line of text.

use std::error::Error;

/// Joins an error and its sources with `: `. Some errors already include their source in their own
/// text: that source is not repeated.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(error.source(), |error| (*error).source()).fold(
        error.to_string(),
        |text, source| {
            let source = source.to_string();
            if text.contains(&source) {
                text
            } else {
                format!("{text}: {source}")
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("cannot read: {0}")]
        IncludesSource(#[source] io::Error),
        #[error("cannot write")]
        OmitsSource(#[source] io::Error),
        #[error(transparent)]
        Transparent(#[from] Box<Self>),
    }

    #[test]
    fn each_source_appears_once() {
        let source = || io::Error::other("the disk is gone");
        for (error, expected) in [
            (
                Failed::IncludesSource(source()),
                "cannot read: the disk is gone",
            ),
            (
                Failed::OmitsSource(source()),
                "cannot write: the disk is gone",
            ),
            (
                Failed::Transparent(Box::new(Failed::IncludesSource(source()))),
                "cannot read: the disk is gone",
            ),
        ] {
            assert_eq!(error_chain(&error), expected);
        }
    }
}
