//! Releasing held packets in order.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::egress::{Egress, Watch};
use super::queue::{ACCEPT, Queue};
use super::statistics::Statistics;
use crate::netlink::SocketError;

/// Longest duration of a paced release; packets left after it are released at once.
const LONGEST: Duration = Duration::from_secs(2);

/// How fast held packets are released: as fast as the receivers can take them.
///
/// A UDP socket of default size holds 277 small packets, and packets that come while it is full are
/// lost. A receiver that the scheduler leaves waiting for 3 ms, an ordinary time slice, gets 240
/// packets meanwhile at the default pace. With streams of 10,000 and 20,000 packets a second on a
/// machine of two processors, receivers with a buffer of default size lost none after a hold of 150
/// ms, and 300 to 800 at four times the pace; with five tasks competing for those processors, one
/// run in three lost some even so.
///
/// Where packets come in faster than that, they are also released faster: in each interval at least
/// twice as many as came in the one before. The device by which they leave, an [`Egress`], slows
/// that down again: tunnels in particular drop what comes faster than they encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Packets in a group; at least one.
    pub packets: u32,
    /// Time between two groups.
    pub interval: Duration,
}

impl Default for Pace {
    /// Returns 16 packets every 200 µs: 80,000 a second.
    fn default() -> Self {
        Self { packets: 16, interval: Duration::from_micros(200) }
    }
}

impl Pace {
    /// Returns how many packets to release when `arrived` have come since the last time.
    fn group(self, arrived: u32) -> u32 {
        self.packets.max(1).max(arrived.saturating_mul(2))
    }
}

/// Accepts all packets of the queue and then lets new ones pass. Returns how many packets there had
/// been when the closing datagram was sent.
///
/// Runs in a thread of its own, pinned to one processor: accepted packets enter the receive backlog
/// of the processor on which that happens, and two backlogs keep no order.
pub(super) fn run(
    queue: &Queue,
    statistics: &Statistics,
    pace: Pace,
    outlet: Option<Egress>,
) -> Result<Option<u64>, SocketError> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            stay_on_this_processor();
            sleep_precisely();
            accept_paced(queue, pace, outlet.map(Egress::watch))?;
            // What the reading thread has not seen yet, so that the closing finds next to none.
            queue.verdict_all(ACCEPT)?;
            let before = statistics.read().ok().map(|line| line.sequence);
            queue.open_up()?;
            Ok(before)
        });
        match worker.join() {
            Ok(released) => released,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn accept_paced(queue: &Queue, pace: Pace, mut outlet: Option<Watch>) -> Result<(), SocketError> {
    let deadline = Instant::now() + LONGEST;
    let mut released = 0_u32;
    let mut newest = queue.newest();
    while released < newest && Instant::now() < deadline {
        let before = std::mem::replace(&mut newest, queue.newest());
        let room = outlet.as_mut().map_or(u32::MAX, Watch::room);
        let group = pace.group(newest.saturating_sub(before)).min(room);
        let next = newest.min(released.saturating_add(group));
        if next > released {
            queue.verdict(ACCEPT, next)?;
            if let Some(outlet) = &mut outlet {
                outlet.note(next - released);
            }
            released = next;
        }
        // Late groups are not made up for: two at a time are what fills a socket's buffer.
        std::thread::sleep(pace.interval);
    }
    Ok(())
}

/// Makes sleeps of 200 µs last no longer than that; by default the kernel may add 50 µs.
fn sleep_precisely() {
    if let Err(errno) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%errno, "the releasing thread keeps its timer slack");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_shrinks_whatever_arrives() {
        let pace = Pace { packets: 16, interval: Duration::ZERO };
        assert_eq!(pace.group(0), 16);
        assert_eq!(pace.group(4), 16);
        assert_eq!(pace.group(100), 200);
        assert_eq!(Pace { packets: 0, ..pace }.group(0), 1, "a release always goes on");
    }
}
