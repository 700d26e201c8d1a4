//! What a container has too much of: for CRIU, or for the interruption that the user allows.

use std::time::Duration;

use agent_core::cause::Cause;
use agent_core::message::Blocker;
use checkpoint::cgroup::Cgroup;
use checkpoint::criu;
use checkpoint::estimate::{self, Workload};
use netmig::netns::Namespace;
use netmig::sockets::TcpSockets;

/// What the measurement is taken to be where it fails: the reference machine's.
const SCALE: f64 = 1.0;
const MIB: u64 = 1 << 20;

/// Looks for what is too much. `limit` is the longest interruption that the user allows.
pub fn blockers(
    container: &str,
    namespace: &Namespace,
    cgroup: &Cgroup,
    limit: Duration,
) -> Result<Vec<Blocker>, Cause> {
    let open = TcpSockets::open(namespace)?.list()?.open.len() as u64;
    let work = Workload::of_processes(&cgroup.pids()?, open);
    let scale = estimate::scale().unwrap_or(SCALE);
    let found = [
        too_many(container, open, criu::most_connections()),
        too_long(container, &work, scale, limit),
    ];
    Ok(found.into_iter().flatten().collect())
}

/// More connections than CRIU can dump here.
fn too_many(container: &str, open: u64, most: u64) -> Option<Blocker> {
    (open > most).then(|| Blocker {
        code: "open-files".to_owned(),
        message: format!(
            "{container} has {open} open TCP connections, and CRIU, which opens a file for each, can \
             have {most} here; raise the limit on open files for agent-client (ulimit -n), or let it \
             have CAP_SYS_RESOURCE"
        ),
    })
}

/// More than can be dumped, sent and restored in the time that is allowed.
fn too_long(container: &str, work: &Workload, scale: f64, limit: Duration) -> Option<Blocker> {
    let forecast = work.forecast(scale);
    let seconds = |duration: Duration| duration.as_secs_f64();
    tracing::debug!(?work, ?forecast, scale, "the interruption is estimated");
    (forecast.total() > limit).then(|| Blocker {
        code: "too-long".to_owned(),
        message: format!(
            "{container} would be interrupted for about {:.1} s (dump {:.1} s, transfer {:.1} s, restore \
             {:.1} s), for it has {} processes, {} MiB of memory and {} TCP connections; {:.1} s are \
             allowed: allow more (--max-interruption)",
            seconds(forecast.total()),
            seconds(forecast.dump),
            seconds(forecast.transfer),
            seconds(forecast.restore),
            work.processes,
            work.memory / MIB,
            work.connections,
            seconds(limit),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_refused_with_the_figures() {
        let work = Workload { processes: 600, connections: 3, memory: 200 << 20 };
        let second = Duration::from_secs(1);
        let refused = too_long("web", &work, 1.0, 5 * second).unwrap();
        assert_eq!(refused.code, "too-long");
        for part in
            ["600 processes, 200 MiB of memory and 3 TCP", "5.0 s are allowed", "about 7.3 s"]
        {
            assert!(refused.message.contains(part), "{part}: {}", refused.message);
        }
        assert_eq!(too_long("web", &work, 1.0, 60 * second), None);
        assert_eq!(too_many("web", 10, 10), None);
        assert_eq!(too_many("web", 11, 10).unwrap().code, "open-files");
    }
}
