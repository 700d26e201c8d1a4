//! The hold: packets for a container wait in an NFQUEUE during the interruption.
//!
//! A [`PreparedHold`] has its queue, thread, buffers and rules ready. [`PreparedHold::engage`] is
//! one nftables transaction of two rules, after which new TCP connections wait, while handshakes in
//! progress can complete. [`Hold::engage_all`] is another transaction. From then on every packet
//! towards the container waits in the kernel, in order, without being copied to this process.
//! [`Hold::release`] reinjects the packets where they stopped: they get the mark that their flow
//! has *then*, so that the steering chain, which comes next, sends them to the container's host.
//!
//! # Order of packets
//!
//! The release proceeds in this order so that no packet overtakes another:
//!
//! 1. Packets are accepted from the front of the queue, a few at a time ([`Pace`]), while new ones
//!    still join at the back. One thread, pinned to one processor, does this, and the kernel has
//!    passed each packet on when the call that accepts it returns.
//! 2. When the queue is nearly empty, one datagram makes the kernel do, back to back: accept all,
//!    set the queue's length limit to zero with the fail-open flag on, accept all. From the middle
//!    step on, packets that reach the queue are passed on in the context in which they arrive,
//!    since a full queue that fails open accepts (`__nfqnl_enqueue_packet`). The limit is checked
//!    under the queue's lock, so there is no moment at which a packet is neither queued nor passed.
//!    A packet can be overtaken only if it comes within the microseconds between the first two
//!    steps *and* the next one of its flow comes before the third.
//! 3. Only then are the rules removed: whether a packet passes through the open queue or matches no
//!    rule any more makes no difference to its order.
//!
//! Removing the rules first, or with packets still queued, reorders: packets that match no rule
//! overtake those that wait.
//!
//! # Failures
//!
//! - The process dies, or a [`Hold`] is dropped unreleased: the kernel destroys the queue and
//!   **drops the packets that were held** (`instance_destroy_rcu`). The rules stay; later packets
//!   are accepted or dropped as [`OnHolderLoss`] says, until
//!   [`Table::sweep_holds`](crate::table::Table::sweep_holds) removes the rules.
//! - A netfilter base chain is registered or unregistered in this network namespace, or the
//!   interface by which packets came goes down: the kernel drops all packets held, or those of the
//!   interface. New ones are held as before.
//! - More than [`MAX_HELD`] packets are waiting: further ones are dropped, and counted.

mod egress;
mod queue;
mod release;
mod statistics;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;

pub use crate::table::{HoldRules, OnHolderLoss, Queueing, RuleTag};
pub use egress::Egress;
pub use queue::packet_id;
pub use release::Pace;

use crate::netlink::SocketError;
use crate::table::{HoldTransactions, Table, TableError, Transaction};
use queue::{ACCEPT, DROP, Queue};
use statistics::Statistics;

/// Queue numbers that holds use: 27904–28159, far from those that people choose by hand.
pub const QUEUE_NUMBERS: std::ops::RangeInclusive<u16> = 0x6d00..=0x6dff;
/// Most packets held at a time; the kernel's own limit by default.
pub const MAX_HELD: u32 = 65_535;

/// How long a processor that has begun to evaluate the rules may still be doing so. The evaluation
/// takes microseconds and cannot be preempted.
const GRACE: Duration = Duration::from_millis(2);

/// Why packets could not be held or released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The kernel refused to create or change the queue.
    #[error("cannot {act} packet queue {number} of hold {tag}")]
    Queue {
        /// The failed action.
        act: &'static str,
        /// The queue's number.
        number: u16,
        /// The hold.
        tag: RuleTag,
        /// The kernel's answer.
        #[source]
        source: SocketError,
    },
    /// All queue numbers of the range are in use.
    #[error(
        "all packet queues from {} to {} are in use (/proc/net/netfilter/nfnetlink_queue); \
         end what holds them",
        QUEUE_NUMBERS.start(), QUEUE_NUMBERS.end()
    )]
    NoFreeQueue,
    /// The rules could not be added or removed.
    #[error("cannot change the rules of hold {tag}")]
    Rules {
        /// The hold.
        tag: RuleTag,
        /// The reason.
        #[source]
        source: TableError,
    },
    /// A thread could not be started, or the queue's statistics could not be read.
    #[error("cannot {act} for hold {tag}")]
    Host {
        /// The failed action.
        act: &'static str,
        /// The hold.
        tag: RuleTag,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The counters of a hold so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that have been put into the queue.
    pub held: u64,
    /// Packets that wait in it.
    pub waiting: u64,
    /// Most packets that waited at a time, as the reading thread saw them.
    pub peak: u64,
    /// Packets that the kernel dropped because the queue was full or was not read in time.
    pub dropped_by_kernel: u64,
}

/// The counters and durations of a hold that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldReport {
    /// Final counters; no packet waits any more.
    pub counters: Counters,
    /// Packets accepted by the closing datagram: an upper limit of those that can have been
    /// overtaken.
    pub closing: u64,
    /// Time from the addition of the rules to their removal.
    pub span: Duration,
    /// Time from the start of the release to the moment at which packets passed without waiting.
    pub release: Duration,
    /// The form of queueing that was used.
    pub queueing: Queueing,
}

/// A hold that is ready but holds no packets yet.
pub struct PreparedHold {
    hold: Hold,
    rules: HoldTransactions,
}

impl PreparedHold {
    /// Prepares everything that a hold needs. The table must be installed.
    ///
    /// Opens sockets in the network namespace of the calling thread; they stay there.
    ///
    /// # Errors
    /// [`HoldError::NoFreeQueue`]; [`HoldError::Queue`] without CAP_NET_ADMIN or without NFQUEUE in
    /// the kernel; [`HoldError::Rules`] when the table is not installed, or the hold needs more
    /// rules than it may have; [`HoldError::Host`].
    pub fn new(tag: RuleTag, rules: &HoldRules) -> Result<Self, HoldError> {
        let of_rules = |source| HoldError::Rules { tag: tag.clone(), source };
        let mut table = Table::open().map_err(of_rules)?;
        let queueing = table.queueing().map_err(of_rules)?;
        let queue = Arc::new(bind_free(&tag)?);
        let rules = table.prepare_hold(rules, &tag, queue.number(), queueing).map_err(of_rules)?;
        let of_host = |act| {
            let tag = tag.clone();
            move |source| HoldError::Host { act, tag, source }
        };
        let statistics =
            Statistics::open(queue.number()).map_err(of_host("read the packet queues"))?;
        let reader = std::thread::Builder::new()
            .name("netmig-hold".into())
            .spawn({
                let queue = Arc::clone(&queue);
                move || queue.read_until_unbound()
            })
            .map_err(of_host("start a thread"))?;
        let hold = Hold {
            tag,
            table,
            queue,
            statistics,
            reader: Some(reader),
            engaged: None,
            rest: None,
            queueing,
        };
        Ok(Self { hold, rules })
    }

    /// Returns the form of queueing that the kernel supports.
    #[must_use]
    pub fn queueing(&self) -> Queueing {
        self.hold.queueing
    }

    /// Holds new TCP connections: the first packet of the next one waits.
    ///
    /// # Errors
    /// [`HoldError::Rules`] when nftables refuses; no packet is held then.
    pub fn engage(mut self) -> Result<Hold, HoldError> {
        self.hold.put_in_force(&self.rules.new_connections)?;
        self.hold.engaged = Some(Instant::now());
        self.hold.rest = Some(self.rules.everything);
        Ok(self.hold)
    }
}

/// A hold in force.
///
/// End it with [`Hold::release`] or [`Hold::drop_all`]; both block for milliseconds. If it is
/// dropped instead, the held packets are lost and the rules stay (see the module).
#[must_use = "packets are lost when a hold is dropped instead of released"]
pub struct Hold {
    tag: RuleTag,
    table: Table,
    queue: Arc<Queue>,
    statistics: Statistics,
    reader: Option<JoinHandle<()>>,
    engaged: Option<Instant>,
    /// The transaction that extends the hold to every packet.
    rest: Option<Transaction>,
    queueing: Queueing,
}

impl Hold {
    /// Extends the hold to everything: the next packet towards the container waits.
    ///
    /// # Errors
    /// [`HoldError::Rules`] when nftables refuses; only new connections are held then.
    pub fn engage_all(&mut self) -> Result<(), HoldError> {
        match self.rest.take() {
            Some(rest) => self.put_in_force(&rest),
            None => Ok(()),
        }
    }

    fn put_in_force(&mut self, rules: &Transaction) -> Result<(), HoldError> {
        let act = format!("add the rules of hold {}", self.tag);
        let applied = self.table.apply(rules, &act);
        applied.map_err(|source| HoldError::Rules { tag: self.tag.clone(), source })
    }

    /// Returns the counters so far.
    ///
    /// # Errors
    /// [`HoldError::Host`] when the kernel's statistics cannot be read.
    pub fn counters(&self) -> Result<Counters, HoldError> {
        let kernel = self.statistics.read().map_err(|source| HoldError::Host {
            act: "read the packet queues",
            tag: self.tag.clone(),
            source,
        })?;
        Ok(Counters {
            held: kernel.sequence,
            waiting: kernel.waiting,
            peak: self.queue.peak().max(kernel.waiting),
            dropped_by_kernel: kernel.dropped,
        })
    }

    /// Returns the form of queueing that is used.
    #[must_use]
    pub fn queueing(&self) -> Queueing {
        self.queueing
    }

    /// Accepts all held packets in order and ends the hold. If they leave by a tunnel, no faster
    /// than its device takes them.
    ///
    /// # Errors
    /// [`HoldError::Queue`], [`HoldError::Rules`] or [`HoldError::Host`], the first that occurs;
    /// the remaining steps are done nevertheless.
    pub fn release(mut self, pace: Pace, outlet: Option<Egress>) -> Result<HoldReport, HoldError> {
        let start = Instant::now();
        let closed = release::run(&self.queue, &self.statistics, pace, outlet);
        let release = start.elapsed();
        let before = closed.as_ref().ok().copied().flatten();
        let mut report = self.finish(ACCEPT, closed.map(drop))?;
        report.release = release;
        report.closing = before.map_or(0, |before| report.counters.held.saturating_sub(before));
        Ok(report)
    }

    /// Drops all held packets and ends the hold.
    ///
    /// # Errors
    /// As [`Hold::release`].
    pub fn drop_all(mut self) -> Result<HoldReport, HoldError> {
        let dropped = self.queue.verdict_all(DROP);
        self.finish(DROP, dropped)
    }

    /// Removes the rules, decides on packets that came meanwhile, and unbinds the queue.
    fn finish(
        &mut self,
        verdict: u32,
        earlier: Result<(), SocketError>,
    ) -> Result<HoldReport, HoldError> {
        let removed = self.table.remove_hold(&self.tag);
        // After the grace time no processor can be on its way into the queue any more, where it
        // would find it gone.
        std::thread::sleep(GRACE);
        let last = self.queue.verdict_all(verdict);
        let counters = self.counters();
        let engaged = self.engaged.take();
        let unbound = self.queue.unbind();
        if let Some(reader) = self.reader.take() {
            // The reader only ends by itself; it cannot panic on what it reads.
            let _ = reader.join();
        }
        for (act, result) in [("release", earlier), ("empty", last), ("give back", unbound)] {
            self.of_queue(act, result)?;
        }
        removed.map_err(|source| HoldError::Rules { tag: self.tag.clone(), source })?;
        Ok(HoldReport {
            counters: counters?,
            closing: 0,
            span: engaged.map_or(Duration::ZERO, |engaged| engaged.elapsed()),
            release: Duration::ZERO,
            queueing: self.queueing,
        })
    }

    fn of_queue<T>(
        &self,
        act: &'static str,
        result: Result<T, SocketError>,
    ) -> Result<T, HoldError> {
        result.map_err(|source| HoldError::Queue {
            act,
            number: self.queue.number(),
            tag: self.tag.clone(),
            source,
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.reader.is_none() {
            return;
        }
        if self.engaged.is_some() {
            tracing::warn!(hold = %self.tag, "a hold was dropped without a release; its packets are lost");
        } else if let Err(error) = self.table.remove_hold(&self.tag) {
            tracing::warn!(hold = %self.tag, %error, "cannot remove the rules of a hold");
        }
        // Ends the reader, too, which is left to itself here.
        let _ = self.queue.unbind();
    }
}

/// Returns whether any process of this network namespace has a hold prepared or in force.
///
/// # Errors
/// When the kernel's list of queues cannot be read.
pub fn any() -> io::Result<bool> {
    match std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue") {
        Ok(list) => Ok(list
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok())
            .any(|number| QUEUE_NUMBERS.contains(&number))),
        // There is no list before anything uses a queue.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Binds the first free queue of the range, starting at an offset derived from the process ID.
fn bind_free(tag: &RuleTag) -> Result<Queue, HoldError> {
    let count = u32::from(*QUEUE_NUMBERS.end() - *QUEUE_NUMBERS.start()) + 1;
    let offset = (std::process::id() % count) as usize;
    for number in QUEUE_NUMBERS.skip(offset).chain(QUEUE_NUMBERS.take(offset)) {
        match Queue::bind(number) {
            Ok(queue) => return Ok(queue),
            // EPERM: bound by another socket; EBUSY: bound by this one.
            Err(error) if matches!(error.refusal(), Some(Errno::EPERM | Errno::EBUSY)) => {}
            Err(source) => {
                return Err(HoldError::Queue { act: "bind", number, tag: tag.clone(), source });
            }
        }
    }
    Err(HoldError::NoFreeQueue)
}
