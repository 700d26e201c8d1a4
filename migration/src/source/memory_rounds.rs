//! Memory that goes over in rounds while the container runs: all of it first, then what was written meanwhile, until the rest
//! is small. What is left then goes over while the container is frozen. CRIU's dump leaves all of that out.

mod shared;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::cgroup::Cgroup;
use checkpoint::criu::MemoryApart;
use checkpoint::images::{LazyMappings, PAGE};
use checkpoint::procfs;
use checkpoint::write_tracking::{self, Pages, Range, WriteTracking};
use protocol::message::LaterPages;
use state::cause::{Cause, chain};

use self::shared::SharedRounds;
use super::page_sorter::PageSorter;
use crate::event::milliseconds;
use crate::report::MemoryReport;
use crate::state_stream::{StatePart, StateSink};

/// Ranges of pages in one message.
const RANGES: usize = 8192;
/// Most rounds at one speed of the container.
const ROUNDS: usize = 30;
/// How long the rest may take at the rate of the round before: a third of the time that a small container is interrupted
/// for.
const SHORT: Duration = Duration::from_millis(20);
/// A look that takes longer is an exception: the next one may be shorter.
const LONG_STOP: Duration = Duration::from_millis(100);
/// A round of so many bytes tells how fast memory goes over.
const MEASURABLE: u64 = 4 << 20;
/// How long the tasks may take to be frozen for a look.
const FREEZE: Duration = Duration::from_secs(2);
/// Rounds go on as long as each is smaller than so much of the one before.
const SHRINKS: f64 = 0.8;

/// What the destination takes.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    /// The word that pages are empty in place of their content.
    pub empty_pages: bool,
    /// Memory that processes share apart from the images.
    pub shared_memory: bool,
}

/// Memory that goes over in rounds.
#[derive(Debug)]
pub struct MemoryRounds {
    cgroup: Arc<Cgroup>,
    tracking: WriteTracking,
    apart: MemoryApart,
    /// What processes share, unless CRIU dumps that.
    shared: Option<SharedRounds>,
    /// Whether the destination takes empty pages without their content.
    leaves_out_empty: bool,
    /// Bytes of each round, without those of empty pages if they are left out.
    sizes: Vec<u64>,
    /// What was written since the last round, if it was looked at already.
    seen: Option<Vec<Pages>>,
    /// Bytes that went over once the container was frozen.
    rest: u64,
    /// Bytes a second that the last round of some size took.
    rate: f64,
    /// Rounds since they are compared.
    since: usize,
    /// How long it stood still for each look.
    stops: Vec<Duration>,
    /// Processor time that the container had used, and when, at the last round but one and at the last one.
    used: [Option<(Instant, Duration)>; 2],
    /// Whether the rest goes over after the decision.
    is_post_copy: bool,
    /// What the container has written since the last round, to be sent after the decision.
    later: Vec<Pages>,
    /// Bytes that go over after the decision.
    outstanding: u64,
}

/// What follows a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round: they get smaller.
    Round,
    /// The interruption: what is left is small.
    Rest,
    /// Rounds do not get smaller any more.
    Stuck,
}

impl MemoryRounds {
    /// Prepares them in the migration's directory. Nothing of the container is touched yet.
    ///
    /// # Errors
    /// CRIU cannot be had leave memory out.
    pub async fn prepare(
        work: &Path,
        criu: &Path,
        cgroup: Arc<Cgroup>,
        takes: Takes,
    ) -> Result<Self, Cause> {
        let apart = MemoryApart::prepare(work, criu).await?;
        Ok(Self {
            cgroup,
            tracking: WriteTracking::default(),
            apart,
            shared: takes.shared_memory.then(SharedRounds::new).transpose()?,
            leaves_out_empty: takes.empty_pages,
            sizes: Vec::new(),
            seen: None,
            rest: 0,
            rate: 0.0,
            since: 0,
            stops: Vec::new(),
            used: [None, None],
            is_post_copy: false,
            later: Vec::new(),
            outstanding: 0,
        })
    }

    /// Returns how CRIU leaves memory out.
    #[must_use]
    pub fn apart(&self) -> &MemoryApart {
        &self.apart
    }

    /// Returns how the memory went over.
    #[must_use]
    pub fn report(&self) -> MemoryReport {
        MemoryReport {
            mode: if self.is_post_copy { "post-copy" } else { "pre-copy" },
            rounds: self.sizes.clone(),
            rest: self.rest,
            longest_stop_ms: milliseconds(self.longest_stop()),
            outstanding: self.outstanding,
            ..MemoryReport::default()
        }
    }

    /// Has the rest go over after the decision.
    pub fn leave_rest_for_later(&mut self) {
        self.is_post_copy = true;
    }

    /// Returns how long the next round, or what is left once the container is frozen, is expected to take: as long as the
    /// last one, if as much is written meanwhile.
    #[must_use]
    pub fn expected(&self) -> Duration {
        let look = self.shared.as_ref().map(SharedRounds::expected).unwrap_or_default();
        self.expected_to_send().saturating_add(look)
    }

    /// Returns the part of that which another round may make shorter.
    fn expected_to_send(&self) -> Duration {
        let bytes = self.sizes.last().copied().unwrap_or_default() as f64;
        Duration::try_from_secs_f64(bytes / self.rate.max(1.0)).unwrap_or(Duration::MAX)
    }

    /// Returns how many rounds there were so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Returns how many processors the container used during the last round, by the part.
    #[must_use]
    pub fn processors(&self) -> f64 {
        let [Some((from, before)), Some((to, after))] = self.used else { return 0.0 };
        after.saturating_sub(before).as_secs_f64() / (to - from).as_secs_f64().max(1e-3)
    }

    /// Begins to compare rounds anew: the next one has what the container wrote in other circumstances, and tells nothing yet.
    pub fn begin_again(&mut self) {
        self.since = 0;
    }

    /// Sends what was written since the last round, of a container that runs. Returns what ought to follow. Blocks.
    ///
    /// # Errors
    /// The memory cannot be followed or read, or the sink takes no more.
    pub fn round(&mut self, sink: &dyn StateSink) -> Result<Next, Cause> {
        self.tracking.follow(&self.cgroup.pids()?)?;
        let began = Instant::now();
        let usage = self.cgroup.cpu_usage().ok().map(|used| (began, used));
        self.used = [self.used[1], usage];
        // It takes a while, in which the processes write their own memory.
        let (shared, look) = self.shared_round(sink)?;
        let pages = self.look_at_running()?;
        // Of processes that are born later there is little to do in the interruption.
        self.apart.expect(pages.iter().map(|of| of.inner))?;
        let sent = shared + self.send_all(&pages, sink)?;
        let took = began.elapsed().saturating_sub(look);
        let before = self.sizes.last().copied();
        self.sizes.push(sent);
        self.since += 1;
        // Of a short round most is the look.
        if sent >= MEASURABLE || self.rate == 0.0 {
            self.rate = sent as f64 / took.as_secs_f64().max(1e-6);
        }
        // A round that saves no more than its look costs is none.
        let stop = self.stops.last().copied().unwrap_or_default().min(LONG_STOP);
        let is_short = self.expected_to_send() <= SHORT.max(stop);
        let shrinks = before.is_none_or(|before| (sent as f64) < before as f64 * SHRINKS);
        tracing::debug!(round = self.sizes.len(), sent, ?took, stop = ?self.stops.last(), "memory was sent");
        Ok(if is_short {
            Next::Rest
        } else if self.since < 2 || shrinks && self.since < ROUNDS {
            Next::Round
        } else {
            Next::Stuck
        })
    }

    /// Sends what has changed of the memory that processes share. Returns how many bytes there were, and how long it took to find
    /// them. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or the sink takes no more.
    pub fn shared_round(&mut self, sink: &dyn StateSink) -> Result<(u64, Duration), Cause> {
        let Some(shared) = &mut self.shared else { return Ok((0, Duration::ZERO)) };
        if let Err(e) = shared.find(&self.cgroup.pids()?) {
            // CRIU dumps that of which no page has gone over.
            if shared.files().is_some() {
                return Err(e.into());
            }
            tracing::info!(
                "memory that processes share goes over while they are frozen: {}",
                chain(&e)
            );
            self.shared = None;
            return Ok((0, Duration::ZERO));
        }
        let round = shared.round(sink)?;
        Ok((round.sent, round.look))
    }

    /// Returns the device and the inode numbers of the segments that processes share and that the dump is to leave out.
    #[must_use]
    pub fn shared_files(&self) -> Option<(u64, Vec<u32>)> {
        self.shared.as_ref().and_then(SharedRounds::files)
    }

    /// Sends what was written since the last look, of a container that is frozen, unless it goes over later. Blocks.
    ///
    /// # Errors
    /// As [`MemoryRounds::round`].
    pub fn rest(&mut self, sink: &dyn StateSink) -> Result<u64, Cause> {
        let pages = match self.seen.take() {
            Some(pages) => pages,
            None => self.tracking.written(&self.cgroup.pids()?)?,
        };
        if self.is_post_copy {
            self.later = pages;
        } else {
            self.rest = self.send_all(&pages, sink)?;
        }
        if let Some(shared) = &mut self.shared {
            self.rest += shared.rest(&self.cgroup.pids()?, sink)?;
        }
        Ok(self.rest)
    }

    /// Names the pages that go over after the decision, and sends those of them that have to be there at once, by the images
    /// of the dump. Blocks.
    ///
    /// # Errors
    /// As [`MemoryRounds::round`], or an image cannot be read.
    pub fn name_later(&mut self, images: &Path, sink: &dyn StateSink) -> Result<(), Cause> {
        for pages in std::mem::take(&mut self.later) {
            let mappings = LazyMappings::read(images, pages.inner)?;
            let (mut now, mut later) = (Vec::new(), Vec::new());
            for range in &pages.ranges {
                for (part, is_lazy) in mappings.split(range.start, range.end) {
                    let range = Range { start: part.start, end: part.end };
                    if is_lazy { later.push(range) } else { now.push(range) }
                }
            }
            let now = Pages { ranges: now, ..pages.clone() };
            self.rest += send_pages(&now, self.leaves_out_empty, sink)?;
            for ranges in later.chunks(RANGES) {
                self.outstanding += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
                let ranges = ranges.iter().map(|range| (range.start, range.end)).collect();
                sink.put(StatePart::MemoryLater(LaterPages { process: pages.inner, ranges }))?;
            }
        }
        Ok(())
    }

    /// Sends the pages of code that the dump has touched. Blocks.
    ///
    /// # Errors
    /// As [`MemoryRounds::round`].
    pub fn code(&mut self, sink: &dyn StateSink) -> Result<u64, Cause> {
        let pids = self.cgroup.pids()?;
        let pages = self.tracking.written_code(&pids)?;
        self.send_all(&pages, sink)
    }

    /// Has the dump that follows leave out the memory of the frozen container.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn leave_out(&mut self) -> Result<(), Cause> {
        let pids = self.cgroup.pids()?;
        // That clears what the kernel has noted.
        if self.tracking.stops() {
            self.seen = Some(self.tracking.written(&pids)?);
        }
        let with_inner = |pid: i32| Some((pid, procfs::inner_pid(pid)?));
        let processes: Vec<(i32, i32)> = pids.into_iter().filter_map(with_inner).collect();
        let is_cleared = self.tracking.stops();
        Ok(self.apart.leave_out(&processes, is_cleared)?)
    }

    /// Returns whether the container is frozen for a moment in some rounds.
    #[must_use]
    pub fn freezes(&self) -> bool {
        self.tracking.stops()
    }

    fn longest_stop(&self) -> Duration {
        self.stops.iter().copied().max().unwrap_or_default()
    }

    /// Looks at a container that runs. It is frozen meanwhile if it has to be.
    fn look_at_running(&mut self) -> Result<Vec<Pages>, Cause> {
        if !self.tracking.needs_stop() || self.cgroup.is_freeze_requested()? {
            return Ok(self.tracking.written(&self.cgroup.pids()?)?);
        }
        let cgroup = Arc::clone(&self.cgroup);
        let began = Instant::now();
        let looked = cgroup
            .freeze(began + FREEZE)
            .and_then(|()| cgroup.pids())
            .map_err(Cause::from)
            .and_then(|pids| Ok(self.tracking.written(&pids)?));
        // System calls that were interrupted by that go on.
        cgroup.resume_undumped()?;
        self.stops.push(began.elapsed());
        looked
    }

    /// Sends pages of several processes. Returns how many bytes there were.
    fn send_all(&self, all: &[Pages], sink: &dyn StateSink) -> Result<u64, Cause> {
        let send = |sum, pages| Ok(sum + send_pages(pages, self.leaves_out_empty, sink)?);
        all.iter().try_fold(0, send)
    }
}

/// Sends pages of one process. Returns how many bytes there were: what is not mapped any more is left out.
fn send_pages(pages: &Pages, leaves_out_empty: bool, sink: &dyn StateSink) -> Result<u64, Cause> {
    let mut parts = PageSorter::new(pages.inner, leaves_out_empty);
    let mut sum = 0;
    for range in &pages.ranges {
        let mut start = range.start;
        while start < range.end {
            let length = (range.end - start).min(parts.room());
            let mut bytes = vec![0; length as usize];
            let read = write_tracking::read(pages.process, start, &mut bytes)?;
            bytes.truncate(read);
            sum += parts.add(start, &Bytes::from(bytes));
            parts.put(sink, false)?;
            // A page that could not be read is not there any more.
            start += if (read as u64) < length { read as u64 + PAGE } else { length };
        }
    }
    parts.put(sink, true)?;
    Ok(sum)
}
