//! Ctrl-C, SIGTERM and a terminal that hangs up cancel a migration; none of them kills the process half-way.

use std::io::{self, Write};

use migration::Cancel;
use tokio::signal::unix::{SignalKind, signal};

/// What is said once the move is decided.
const TOO_LATE: &str = "agent-client: the move is decided, and others may have heard the container at the destination, so it is not \
                        taken back; this program ends when the original is not needed any more";

/// Takes over SIGINT, SIGTERM and SIGHUP: each cancels.
///
/// # Errors
/// A signal cannot be taken over.
pub fn cancel(order: Cancel) -> io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signal = signal(kind)?;
        let order = order.clone();
        tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if order.is_too_late() {
                    // Nobody may be there to read it.
                    let _ = writeln!(io::stderr(), "{TOO_LATE}");
                } else {
                    order.cancel();
                }
            }
        });
    }
    Ok(())
}
