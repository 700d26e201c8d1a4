//! The causes of errors, as people read them.

use std::error::Error;

/// The error of a step, whichever crate it comes from.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Returns an error and all its causes in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // A transparent wrapper has the text of its cause.
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Door(#[source] std::io::Error);

    #[test]
    fn causes_follow_their_error() {
        let error = Door(std::io::Error::other("no key"));
        assert_eq!(chain(&error), "cannot open the door: no key");
    }
}
