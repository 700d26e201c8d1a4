//! How a migration can fail, in the words that its user sees.

use state::blocker::Blocker;
use state::cause::{Cause, chain};

use super::{engine_orders, path_trial};

/// A migration that did not reach its end.
#[derive(Debug)]
pub enum Failure {
    /// This host's own state could not be read.
    Setup(Cause),
    /// Refused before anything changed, by a single error.
    Refused(Cause),
    /// Refused before the container was touched, with every reason.
    Blocked {
        /// The reasons.
        blockers: Vec<Blocker>,
        /// What stays for another attempt, each a whole sentence.
        kept: Vec<String>,
    },
    /// A step failed; the original runs on as before.
    RolledBack {
        /// What failed.
        cause: Cause,
        /// The original has ended meanwhile, by itself or because the engine was told to end it.
        ended: bool,
        /// What could not be undone, each a whole sentence.
        leftovers: Vec<String>,
        /// What stays for another attempt, each a whole sentence.
        kept: Vec<String>,
    },
    /// The move was given up, and the original could not be set going again.
    Stuck {
        /// The container's name.
        container: String,
        /// What failed at first.
        cause: Cause,
        /// What could not be undone, each a whole sentence.
        leftovers: Vec<String>,
    },
    /// The destination runs the container, or has lost it, without all of its memory.
    PagesOutstanding {
        /// The container's name.
        container: String,
        /// Where it runs.
        destination: String,
        /// The destination has ended it for want of memory.
        is_lost: bool,
        /// The original has stood still all the time.
        has_original: bool,
        /// The last error.
        cause: Cause,
    },
    /// The decision is made and the destination has not acknowledged it.
    InDoubt {
        /// The container's name.
        container: String,
        /// The last error of the destination.
        cause: Cause,
    },
}

impl Failure {
    /// Makes the failure of a move that was undone completely, for this reason: a refusal, if the container was not
    /// interrupted for it. `kept` stays for another attempt.
    #[must_use]
    pub fn undone(cause: Cause, kept: Vec<String>) -> Self {
        let cause = match cause.downcast::<path_trial::Blocked>() {
            Ok(blocked) => return Self::Blocked { blockers: blocked.0, kept },
            Err(cause) => cause,
        };
        match path_trial::blocked_tunnel(&cause) {
            Some(blocker) => Self::Blocked { blockers: vec![blocker], kept },
            None => Self::RolledBack { cause, ended: false, leftovers: Vec::new(), kept },
        }
    }

    /// Makes a refusal of the preflight: nothing was changed.
    #[must_use]
    pub fn blocked(blockers: Vec<Blocker>) -> Self {
        Self::Blocked { blockers, kept: Vec::new() }
    }

    /// Returns every reason of a refusal.
    #[must_use]
    pub fn blockers(&self) -> &[Blocker] {
        if let Self::Blocked { blockers, .. } = self { blockers } else { &[] }
    }

    /// Returns the message for people.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::Setup(cause) => chain(cause.as_ref()),
            Self::Refused(cause) => {
                format!("refused, nothing was changed: {}", chain(cause.as_ref()))
            }
            Self::Blocked { blockers, kept } => {
                let mut text = match kept[..] {
                    [] => String::from("refused, nothing was changed:"),
                    _ => String::from("refused, the container was not interrupted:"),
                };
                for blocker in blockers {
                    text.push_str(&format!("\n  - {} ({})", blocker.message, blocker.code));
                }
                text + &kept_for_later(kept)
            }
            Self::RolledBack { cause, ended, leftovers, kept } => {
                let mut text = if cause.is::<engine_orders::Ended>()
                    || cause.is::<engine_orders::Ordered>()
                {
                    format!("not moved: {cause}")
                } else if *ended {
                    format!(
                        "not moved: the container was stopped or restarted on this host, or ended by itself, while it was \
                         being moved ({})",
                        chain(cause.as_ref())
                    )
                } else {
                    format!(
                        "not moved, the container runs here as before: {}",
                        chain(cause.as_ref())
                    )
                };
                for leftover in leftovers {
                    text.push_str(&format!("\n  still to be cleaned up: {leftover}"));
                }
                text + &kept_for_later(kept)
            }
            Self::Stuck { container, cause, leftovers } => format!(
                "not moved, and {container} could not be set going again; nothing of it is lost. A guardian \
                 goes on trying, and so does agent-client recover: {}\n  what failed at first: {}",
                leftovers.join("; "),
                chain(cause.as_ref())
            ),
            Self::PagesOutstanding { container, destination, is_lost: false, cause, .. } => {
                format!(
                    "pages outstanding: {container} runs at {destination}, and a part of its memory is on this host alone, in the \
                 original, which is kept frozen: do not unpause, stop or remove it. A guardian goes on sending, and so does \
                 agent-client recover: {}",
                    chain(cause.as_ref())
                )
            }
            Self::PagesOutstanding {
                container, destination, has_original: false, cause, ..
            } => format!(
                "in doubt: {destination} has ended {container} before all of its memory had arrived: the rest was in the original on \
                 this host, and somebody has set that going or ended it. Look at both hosts whether {container} runs there, then \
                 decide (agent-client recover --rollback-anyway {container}): {}",
                chain(cause.as_ref())
            ),
            Self::PagesOutstanding { container, destination, cause, .. } => format!(
                "in doubt: {destination} has ended {container} before all of its memory had arrived; the original is kept frozen \
                 and unreachable, as it was before the move. Look at {destination} whether the engine has started the container \
                 anew, then decide (agent-client recover --rollback-anyway {container}): {}",
                chain(cause.as_ref())
            ),
            Self::InDoubt { container, cause } => format!(
                "in doubt: the decision to move {container} is recorded, but the destination has not \
                 confirmed that it runs there; the original is kept frozen and unreachable, and \
                 nothing of it is lost. The container engine shows it as paused; do not unpause it, nor start another one in its \
                 place: it may run at the destination. Look there, then run agent-client recover: {}",
                chain(cause.as_ref())
            ),
        }
    }
}

fn kept_for_later(kept: &[String]) -> String {
    kept.iter().map(|one| format!("\n  kept for another attempt: {one}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_was_sent_is_told_of_in_a_refusal_too() {
        let blocker = Blocker { code: "path-blocked".into(), message: "a wall".into() };
        let refused = Failure::blocked(vec![blocker.clone()]).explain();
        assert_eq!(refused, "refused, nothing was changed:\n  - a wall (path-blocked)");
        let kept = vec!["image app:1 is at b now".to_owned()];
        let refused = Failure::undone(path_trial::Blocked(vec![blocker]).into(), kept).explain();
        assert!(!refused.contains("nothing was changed"), "{refused}");
        assert!(
            refused.ends_with("kept for another attempt: image app:1 is at b now"),
            "{refused}"
        );
    }
}
