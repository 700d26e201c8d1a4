//! Ctrl-C, SIGTERM and a terminal that hangs up cancel a migration; none of them kills the process half-way.

use std::io;

use migration::Cancel;
use tokio::signal::unix::{SignalKind, signal};

/// Takes over SIGINT, SIGTERM and SIGHUP: each cancels.
///
/// # Errors
/// A signal cannot be taken over.
pub fn cancel(order: Cancel) -> io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signal = signal(kind)?;
        let order = order.clone();
        tokio::spawn(async move {
            signal.recv().await;
            order.cancel();
        });
    }
    Ok(())
}
