//! Cancellation: before the commit it turns a migration back, after it the migration goes on to its end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use state::cause::Cause;
use tokio_util::sync::CancellationToken;

use crate::source::Failure;

/// The user wants the migration to stop.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Tells a migration to stop. Clones are of one and the same order.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    order: CancellationToken,
    decided: Arc<AtomicBool>,
}

impl Cancel {
    /// Orders the migration to stop, if it is not decided yet.
    pub fn cancel(&self) {
        self.order.cancel();
    }

    /// Returns whether the migration is decided, so that it goes on to its end whatever is ordered.
    #[must_use]
    pub fn is_too_late(&self) -> bool {
        self.decided.load(Ordering::Relaxed)
    }

    /// Notes that the migration is decided.
    pub(crate) fn decide(&self) {
        self.decided.store(true, Ordering::Relaxed);
    }

    /// Runs `work` until it is done or the migration is told to stop. `work` is dropped then, so it must
    /// leave behind only what its owner can undo.
    ///
    /// # Errors
    /// Those of `work`, and [`Cancelled`].
    pub(crate) async fn guard<T>(
        &self,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        tokio::select! {
            // A result that is there already counts more than an order that came with it.
            biased;
            result = work => result,
            () = self.order.cancelled() => Err(Cancelled.into()),
        }
    }

    /// Does the same for work that knows how to refuse.
    ///
    /// # Errors
    /// Those of `work`, and a refusal by [`Cancelled`].
    pub(crate) async fn guard_failure<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            result = work => result,
            () = self.order.cancelled() => Err(Failure::Refused(Cancelled.into())),
        }
    }
}
