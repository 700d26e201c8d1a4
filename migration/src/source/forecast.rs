//! What a container has too much of: for CRIU, or for the interruption that the user allows.

use std::path::Path;
use std::time::Duration;

use checkpoint::cgroup::Cgroup;
use checkpoint::criu;
use checkpoint::estimate::{self, Forecast, Workload};
use netmig::netns::Namespace;
use netmig::sockets::TcpSockets;
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::id::HostId;

use super::past_moves::{Factors, Kind, PastMoves};
use crate::report::Parts;

/// What the measurement is taken to be where it fails: the reference machine's.
const SCALE: f64 = 1.0;
const MIB: u64 = 1 << 20;
/// From so many bytes of memory on it matters how fast the link is.
const LARGE: u64 = 16 * MIB;
/// From so many bytes of memory on the reference machine takes so long for it that it is better sent apart. On other machines as
/// much as takes the same time is; never less than [`LARGE`], and never more than the last of these.
const SLOW: u64 = 64 * MIB;
const HUGE: u64 = 256 * MIB;

/// The interruption that the container would have, and the longest that the user allows.
#[derive(Debug)]
pub struct ExpectedInterruption {
    container: String,
    work: Workload,
    /// The same with all memory.
    whole: Workload,
    scale: f64,
    /// Bytes a second that get to the destination, once that was measured.
    rate: Option<f64>,
    destination: HostId,
    past: PastMoves,
    limit: Duration,
    /// Bytes of memory that the destination is told of.
    offered: u64,
}

impl ExpectedInterruption {
    /// Looks at the container and at how fast this machine is at the moment. `limit` is the longest
    /// interruption that the user allows. `past` are earlier moves.
    ///
    /// # Errors
    /// The kernel does not tell of the container's sockets or processes.
    pub fn estimate(
        container: &str,
        namespace: &Namespace,
        cgroup: &Cgroup,
        limit: Duration,
        (destination, past): (HostId, PastMoves),
    ) -> Result<Self, Cause> {
        let open = TcpSockets::open(namespace)?.list()?.open.len() as u64;
        let work = Workload::of_processes(&cgroup.pids()?, open);
        let scale = estimate::scale().unwrap_or(SCALE);
        let offered = work.memory.saturating_add(work.shared);
        let (container, whole, rate) = (container.to_owned(), work, None);
        let it = Self { container, work, whole, scale, rate, destination, past, limit, offered };
        tracing::debug!(?work, forecast = ?it.forecast(), scale, "the interruption is estimated");
        Ok(it)
    }

    /// Returns what is too much, as far as this host can tell.
    pub fn blockers(&self) -> Vec<Blocker> {
        let too_many = too_many(&self.container, self.work.connections, criu::most_connections());
        too_many.into_iter().chain(self.too_long()).collect()
    }

    /// Returns the memory of the container with what its processes share counted twice: that is whole in the images until
    /// it is whole in the copy, too.
    pub fn offered_memory(&self) -> u64 {
        self.offered
    }

    /// Leaves the memory out that goes over while the container runs. What processes share is compared and restored all the same,
    /// or does not go before, unless `shared_goes` says so. Returns what would be too much with it.
    pub fn leave_memory_out(&mut self, shared_goes: bool) -> Option<Blocker> {
        let with_memory = self.too_long();
        let shared = self.work.shared;
        (self.work.memory, self.work.compared) =
            if shared_goes { (0, shared) } else { (shared, 0) };
        with_memory
    }

    /// Returns whether the rate of the link matters.
    pub fn depends_on_link(&self) -> bool {
        self.work.memory >= LARGE
    }

    /// Takes into account how many bytes a second get to the destination; returns what is too much then.
    pub fn over_link(&mut self, rate: f64) -> Option<Blocker> {
        self.rate = Some(rate);
        tracing::debug!(forecast = ?self.forecast(), rate, "the link was measured");
        self.too_long()
    }

    /// Returns the interruption that is expected, by what is known so far.
    pub fn forecast(&self) -> Forecast {
        let Factors { dump, transfer, restore } = self.factors();
        // A link that was measured is no faster for what an earlier one was.
        let is_measured = self.rate.is_some();
        let transfer = transfer.map(|factor| if is_measured { factor.max(1.0) } else { factor });
        // Earlier moves have shown how fast these machines are. The measurement tells it of this one alone.
        let (reference, here) = (self.of_reference(1.0), self.of_reference(self.scale));
        let part = |factor: Option<f64>, reference: Duration, here: Duration| {
            factor.map_or(here, |factor| {
                Duration::try_from_secs_f64(reference.as_secs_f64() * factor)
                    .unwrap_or(Duration::MAX)
            })
        };
        Forecast {
            dump: part(dump, reference.dump, here.dump),
            transfer: part(transfer, reference.transfer, here.transfer),
            restore: part(restore, reference.restore, here.restore),
        }
    }

    /// Returns what a machine would take for it that takes so many times as long as the reference machine.
    fn of_reference(&self, scale: f64) -> Forecast {
        let forecast = self.work.forecast(scale);
        self.rate.map_or(forecast, |rate| forecast.over_link(self.work.memory, rate))
    }

    fn kind(&self) -> Kind {
        let size = self.whole.forecast(1.0).total().as_secs_f64() * 1e3;
        Kind { size, is_apart: self.work.memory != self.whole.memory }
    }

    fn factors(&self) -> Factors {
        self.past.factors(self.destination, self.kind())
    }

    /// Returns whether its memory would take so long in the interruption that it is better sent apart.
    pub fn is_memory_slow(&self) -> bool {
        let (memory, factors) = (self.work.memory, self.factors());
        let without = Workload { memory: 0, ..self.work };
        let time = |memory, factors: Factors| {
            let (with, without) =
                (Workload { memory, ..self.work }.forecast(1.0), without.forecast(1.0));
            (with.dump - without.dump).as_secs_f64() * factors.dump.unwrap_or(1.0)
                + (with.restore - without.restore).as_secs_f64() * factors.restore.unwrap_or(1.0)
        };
        memory >= HUGE || memory >= LARGE && time(memory, factors) >= time(SLOW, Factors::default())
    }

    /// Notes for later forecasts how long the parts of the interruption have taken.
    pub fn note(&self, state: &Path, parts: &Parts) {
        let reference = self.of_reference(1.0);
        let noted = PastMoves::note(state, self.destination, self.kind(), &reference, parts);
        if let Err(error) = noted {
            tracing::debug!("the move is not noted for later forecasts: {}", chain(&error));
        }
    }

    /// Returns a blocker if more has to be dumped, sent and restored than fits into the time that is allowed.
    fn too_long(&self) -> Option<Blocker> {
        let Self { container, work, limit, .. } = self;
        let forecast = self.forecast();
        let seconds = |duration: Duration| duration.as_secs_f64();
        (forecast.total() > *limit).then(|| Blocker::new("too-long", format!(
                "{container} would be interrupted for about {:.1} s (dump {:.1} s, transfer {:.1} s, restore \
                 {:.1} s), for it has {} processes, {} MiB of memory and {} TCP connections; {:.1} s are \
                 allowed: allow more (--max-interruption)",
                seconds(forecast.total()),
                seconds(forecast.dump),
                seconds(forecast.transfer),
                seconds(forecast.restore),
                work.processes,
                (work.memory + work.compared) / MIB,
                work.connections,
                seconds(*limit),
            )))
    }
}

/// Returns a blocker if there are more connections than CRIU can dump here.
fn too_many(container: &str, open: u64, most: u64) -> Option<Blocker> {
    (open > most).then(|| Blocker::new("open-files", format!(
            "{container} has {open} open TCP connections, and CRIU, which opens a file for each, can \
             have {most} here; raise the limit on open files for agent-client (ulimit -n), or let it \
             have CAP_SYS_RESOURCE"
        )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_refused_with_the_figures() {
        let work = Workload {
            processes: 600,
            connections: 3,
            memory: 200 << 20,
            shared: 3 << 20,
            compared: 0,
        };
        let second = Duration::from_secs(1);
        let of = |limit| ExpectedInterruption {
            container: "web".to_owned(),
            work,
            whole: work,
            scale: 1.0,
            rate: None,
            destination: HostId([1; 16]),
            past: PastMoves::default(),
            limit,
            offered: 203 << 20,
        };
        let refused = of(5 * second).too_long().unwrap();
        assert_eq!(refused.code, "too-long");
        for part in
            ["600 processes, 200 MiB of memory and 3 TCP", "5.0 s are allowed", "about 7.3 s"]
        {
            assert!(refused.message.contains(part), "{part}: {}", refused.message);
        }
        assert_eq!(of(60 * second).too_long(), None);
        assert_eq!(of(60 * second).over_link(1e9), None);
        let slow = of(60 * second).over_link(2e6).unwrap();
        assert!(slow.message.contains("transfer 102.5 s"), "{}", slow.message);
        let mut apart = of(second * 7);
        assert!(apart.leave_memory_out(false).is_some(), "it would be too long with the memory");
        assert_eq!((apart.too_long(), apart.work.memory), (None, 3 << 20));
        let with_shared = apart.forecast().total();
        apart.leave_memory_out(true);
        assert_eq!(apart.work.memory, 0);
        assert!(apart.forecast().total() < with_shared);
        assert_eq!(apart.offered_memory(), 203 << 20, "it has to have room there all the same");
        assert_eq!(too_many("web", 10, 10), None);
        assert_eq!(too_many("web", 11, 10).unwrap().code, "open-files");
    }
    /// Notes moves that took `times` as long as on the reference machine.
    fn noted(state: &Path, of: &ExpectedInterruption, times: f64) -> PastMoves {
        let Forecast { dump, transfer, restore } = of.of_reference(1.0);
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3 * times;
        let (dump, transfer, restore) = (ms(dump), ms(transfer), ms(restore));
        of.note(state, &Parts { dump, transfer, restore, ..Parts::default() });
        PastMoves::read(state)
    }

    #[test]
    fn what_was_measured_counts_more_than_the_constants() {
        let state = tempfile::tempdir().unwrap();
        let work =
            Workload { processes: 1, connections: 0, memory: 100 << 20, ..Workload::default() };
        let mut expected = ExpectedInterruption {
            container: "web".to_owned(),
            work,
            whole: work,
            scale: 3.0,
            rate: None,
            destination: HostId([1; 16]),
            past: PastMoves::default(),
            limit: Duration::from_secs(5),
            offered: 100 << 20,
        };
        assert_eq!(expected.forecast(), work.forecast(3.0));
        assert!(expected.is_memory_slow());
        expected.past = noted(state.path(), &expected, 0.25);
        let corrected = expected.forecast().total().as_secs_f64();
        let measured = work.forecast(1.0).total().as_secs_f64() / 4.0;
        assert!((corrected / measured - 1.0).abs() < 1e-3, "{corrected}, not {measured}");
        assert!(!expected.is_memory_slow(), "these machines are fast");
        let huge = Workload { memory: 512 << 20, ..work };
        let huge = ExpectedInterruption { work: huge, whole: huge, ..expected };
        assert!(huge.is_memory_slow());
    }

    #[test]
    fn without_earlier_moves_memory_is_slow_from_64_mib_on() {
        let of = |mib: u64| {
            let work =
                Workload { processes: 3, connections: 9, memory: mib << 20, ..Workload::default() };
            ExpectedInterruption {
                container: "web".to_owned(),
                work,
                whole: work,
                scale: 4.0,
                rate: None,
                destination: HostId([1; 16]),
                past: PastMoves::default(),
                limit: Duration::from_secs(5),
                offered: 0,
            }
        };
        assert_eq!(
            [15, 63, 64, 300].map(|mib| of(mib).is_memory_slow()),
            [false, false, true, true]
        );
    }
}
