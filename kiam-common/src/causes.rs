//! An error in one sentence, with what caused it.

use std::error::Error;

/// The error and its causes, each once: some errors tell their cause in their own text as well.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(error.source(), |error| (*error).source()).fold(
        error.to_string(),
        |text, cause| {
            let cause = cause.to_string();
            if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
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
        Told(#[source] io::Error),
        #[error("cannot write")]
        Untold(#[source] io::Error),
        #[error(transparent)]
        Within(#[from] Box<Self>),
    }

    #[test]
    fn each_cause_is_told_once() {
        let cause = || io::Error::other("the disk is gone");
        for (error, expected) in [
            (Failed::Told(cause()), "cannot read: the disk is gone"),
            (Failed::Untold(cause()), "cannot write: the disk is gone"),
            (
                Failed::Within(Box::new(Failed::Told(cause()))),
                "cannot read: the disk is gone",
            ),
        ] {
            assert_eq!(causes(&error), expected);
        }
    }
}
