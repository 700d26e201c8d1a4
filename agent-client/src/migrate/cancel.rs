//! Ctrl-C, SIGTERM and a terminal that hangs up: before the commit they turn the migration back, after it they wait.

use std::future::Future;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use agent_core::cause::Cause;

use super::failure::Failure;

/// The user wants the migration to stop.
#[derive(Debug, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Listens for signals from the start of a migration to its end, so that none of them kills the
/// process half-way.
#[derive(Debug)]
pub struct Cancel {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Cancel {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Runs `work` until it is done or a signal comes. `work` is dropped on a signal, so it must
    /// leave behind only what its owner can undo.
    pub async fn guard<T>(
        &mut self,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        tokio::select! {
            // A result that is there already counts more than a signal that came with it.
            biased;
            result = work => result,
            _ = self.interrupt.recv() => Err(Cancelled.into()),
            _ = self.terminate.recv() => Err(Cancelled.into()),
            _ = self.hangup.recv() => Err(Cancelled.into()),
        }
    }

    /// The same for work that knows how to refuse.
    pub async fn guard_failure<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            result = work => result,
            _ = self.interrupt.recv() => Err(Failure::Refused(Cancelled.into())),
            _ = self.terminate.recv() => Err(Failure::Refused(Cancelled.into())),
            _ = self.hangup.recv() => Err(Failure::Refused(Cancelled.into())),
        }
    }
}
