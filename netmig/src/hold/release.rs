//! Letting held packets go, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::queue::{ACCEPT, Queue};
use crate::nfnetlink::SocketError;

/// Longest time that a paced release takes; what is left then goes at once.
const LONGEST: Duration = Duration::from_secs(2);

/// How fast held packets are let go: as fast as the receiver can take them. A UDP socket's
/// buffer holds some hundred small packets; what comes faster than the program reads is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Packets at a time; at least one.
    pub packets: u32,
    /// Time between two such groups.
    pub interval: Duration,
}

impl Default for Pace {
    /// 64 packets each 200 µs.
    fn default() -> Self {
        Self { packets: 64, interval: Duration::from_micros(200) }
    }
}

/// Accepts all packets of the queue and then lets new ones pass; returns the id up to which
/// packets were accepted before the closing datagram.
///
/// In a thread of its own, which stays on one processor: packets that are handed on enter the
/// receive backlog of the processor on which that happens, and two backlogs keep no order.
pub(super) fn run(queue: &Arc<Queue>, pace: Pace) -> Result<u32, SocketError> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            stay_on_this_processor();
            accept_paced(queue, pace).and_then(|released| queue.open_up().map(|()| released))
        });
        match worker.join() {
            Ok(released) => released,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn accept_paced(queue: &Queue, pace: Pace) -> Result<u32, SocketError> {
    let deadline = Instant::now() + LONGEST;
    let mut next = Instant::now();
    let mut released = 0_u32;
    loop {
        let newest = queue.newest();
        if released >= newest || Instant::now() >= deadline {
            return Ok(released);
        }
        released = newest.min(released.saturating_add(pace.packets.max(1)));
        queue.verdict(ACCEPT, released)?;
        next += pace.interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn stay_on_this_processor() {
    let mut here = CpuSet::new();
    let pinned = nix::sched::sched_getcpu()
        .and_then(|cpu| here.set(cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &here));
    if let Err(errno) = pinned {
        // Only a migration between two processors at a bad moment could reorder packets.
        tracing::debug!(%errno, "the releasing thread is not bound to one processor");
    }
}
