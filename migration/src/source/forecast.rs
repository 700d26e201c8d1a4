//! What a container has too much of: for CRIU, or for the interruption that the user allows.

use std::time::Duration;

use checkpoint::cgroup::Cgroup;
use checkpoint::criu;
use checkpoint::estimate::{self, Forecast, Workload};
use netmig::netns::Namespace;
use netmig::sockets::TcpSockets;
use state::blocker::Blocker;
use state::cause::Cause;

/// What the measurement is taken to be where it fails: the reference machine's.
const SCALE: f64 = 1.0;
const MIB: u64 = 1 << 20;
/// From so many bytes of memory on it matters how fast the link is.
const LARGE: u64 = 16 * MIB;

/// The interruption that the container would have, and the longest that the user allows.
#[derive(Debug)]
pub struct ExpectedInterruption {
    container: String,
    work: Workload,
    forecast: Forecast,
    scale: f64,
    limit: Duration,
    /// Bytes of memory that the destination is told of.
    offered: u64,
}

impl ExpectedInterruption {
    /// Looks at the container and at how fast this machine is at the moment. `limit` is the longest
    /// interruption that the user allows.
    ///
    /// # Errors
    /// The kernel does not tell of the container's sockets or processes.
    pub fn estimate(
        container: &str,
        namespace: &Namespace,
        cgroup: &Cgroup,
        limit: Duration,
    ) -> Result<Self, Cause> {
        let open = TcpSockets::open(namespace)?.list()?.open.len() as u64;
        let work = Workload::of_processes(&cgroup.pids()?, open);
        let scale = estimate::scale().unwrap_or(SCALE);
        let forecast = work.forecast(scale);
        tracing::debug!(?work, ?forecast, scale, "the interruption is estimated");
        let offered = work.memory.saturating_add(work.shared);
        Ok(Self { container: container.to_owned(), work, forecast, scale, limit, offered })
    }

    /// Returns what is too much, as far as this host can tell.
    pub fn blockers(&self) -> Vec<Blocker> {
        let too_many = too_many(&self.container, self.work.connections, criu::most_connections());
        too_many.into_iter().chain(self.too_long()).collect()
    }

    /// Returns the memory of the container, in bytes.
    pub fn memory(&self) -> u64 {
        self.work.memory
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
        self.forecast = self.work.forecast(self.scale);
        with_memory
    }

    /// Returns whether the rate of the link matters.
    pub fn depends_on_link(&self) -> bool {
        self.work.memory >= LARGE
    }

    /// Takes into account how many bytes a second get to the destination; returns what is too much then.
    pub fn over_link(&mut self, rate: f64) -> Option<Blocker> {
        self.forecast = self.forecast.over_link(self.work.memory, rate);
        tracing::debug!(forecast = ?self.forecast, rate, "the link was measured");
        self.too_long()
    }

    /// Returns a blocker if more has to be dumped, sent and restored than fits into the time that is allowed.
    fn too_long(&self) -> Option<Blocker> {
        let Self { container, work, forecast, limit, .. } = self;
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
            forecast: work.forecast(1.0),
            scale: 1.0,
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
        assert_eq!((apart.too_long(), apart.memory()), (None, 3 << 20));
        let with_shared = apart.forecast.total();
        apart.leave_memory_out(true);
        assert_eq!(apart.memory(), 0);
        assert!(apart.forecast.total() < with_shared);
        assert_eq!(apart.offered_memory(), 203 << 20, "it has to have room there all the same");
        assert_eq!(too_many("web", 10, 10), None);
        assert_eq!(too_many("web", 11, 10).unwrap().code, "open-files");
    }
}
