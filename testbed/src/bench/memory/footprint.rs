//! What a move costs two hosts: the most memory that was in use at once, and the time of processors.
//!
//! Memory is looked at again and again: what processes have for themselves (`RssAnon`, proc_pid_status(5)), and what lies
//! in the host's file systems in memory. Memory that processes share by fork(2) counts for each of them. Not counted are
//! the kernel's own memory, such as buffers of sockets, the page cache, and memory that is shared without a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::lab::{Lab, cgroup};

/// The programs of the product.
const AGENTS: [&str; 3] = ["agent-client", "agent-server", "netmig-shim"];
/// The time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(15);
/// The ticks in a second of the times in `/proc/PID/stat`: the kernel's `USER_HZ`, the same on all usual machines.
const TICKS: f64 = 100.0;
const MIB: f64 = 1024.0 * 1024.0;

/// What was seen of one host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Footprint {
    /// The memory in use before, in mebibytes.
    pub(super) before: f64,
    /// The most that was in use at once, in mebibytes.
    pub(super) peak: f64,
    /// The most that the product's processes had at once, in mebibytes.
    pub(super) agents: f64,
    /// The time of processors that they took, in seconds.
    pub(super) agents_cpu: f64,
    /// The time of processors that the whole host took, its containers among it, in seconds.
    pub(super) cpu: f64,
    /// Bytes that the host has sent to others.
    pub(super) sent: f64,
}

/// Does something and watches hosts meanwhile. Returns what was seen of each.
pub(super) fn watch<T>(
    lab: &Lab,
    hosts: &[&Host],
    action: impl FnOnce() -> Result<T>,
) -> Result<(Vec<Footprint>, T)> {
    let over = AtomicBool::new(false);
    let mut watched =
        hosts.iter().map(|host| Watched::new(lab, host)).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                watched.iter_mut().for_each(Watched::look);
                thread::sleep(LOOK_EVERY);
            }
            watched.into_iter().map(Watched::end).collect::<Result<Vec<_>>>()
        });
        let outcome = action();
        over.store(true, Ordering::Relaxed);
        let seen = watching.join();
        let seen = seen.unwrap_or_else(|_| Err(Error::Check("watching a host failed".to_owned())));
        Ok((seen?, outcome?))
    })
}

/// A host that is watched.
struct Watched {
    cgroup: PathBuf,
    /// Its first process.
    init: i32,
    /// The counter of bytes that its link has sent.
    counter: PathBuf,
    /// The ticks that each of the product's processes had when it was seen first, unless it began later, and last.
    ticks: BTreeMap<i32, (u64, u64)>,
    cpu_before: f64,
    sent_before: f64,
    seen: Footprint,
}

impl Watched {
    fn new(lab: &Lab, host: &Host) -> Result<Self> {
        let mut this = Self {
            cgroup: lab.cgroup().join(host.name()),
            init: host.init(),
            counter: host.path("/sys/class/net/eth0/statistics/tx_bytes"),
            ticks: BTreeMap::new(),
            cpu_before: 0.0,
            sent_before: 0.0,
            seen: Footprint::default(),
        };
        this.look();
        for (first, last) in this.ticks.values_mut() {
            *first = *last;
        }
        this.cpu_before = this.cpu()?;
        this.sent_before = this.sent()?;
        this.seen = Footprint { before: this.seen.peak, ..Footprint::default() };
        Ok(this)
    }

    fn look(&mut self) {
        let (mut all, mut agents) = (0.0, 0.0);
        for pid in cgroup::processes(&self.cgroup) {
            // A process that has ended meanwhile has no memory.
            let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
            let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
            let kib = value("RssAnon:").and_then(|kib| kib.trim().strip_suffix(" kB"));
            let mib = kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0;
            all += mib;
            if value("Name:").is_some_and(|name| AGENTS.contains(&name.trim())) {
                agents += mib;
                self.note_ticks(pid);
            }
        }
        self.seen.peak = self.seen.peak.max(all + in_files(self.init));
        self.seen.agents = self.seen.agents.max(agents);
    }

    /// Notes the time of processors of a process: the fields `utime` and `stime` of proc_pid_stat(5), which follow a name in
    /// parentheses.
    fn note_ticks(&mut self, pid: i32) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let field = |number: usize| fields.get(number).and_then(|field| field.parse::<u64>().ok());
        if let (Some(user), Some(system)) = (field(11), field(12)) {
            self.ticks.entry(pid).or_default().1 = user + system;
        }
    }

    /// Returns the seconds of processors that the host's cgroup has had.
    fn cpu(&self) -> Result<f64> {
        let path = self.cgroup.join("cpu.stat");
        let text = fs::read_to_string(&path).context(|| format!("reading {}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(usage.and_then(|usage| usage.parse::<f64>().ok()).unwrap_or_default() / 1e6)
    }

    fn sent(&self) -> Result<f64> {
        let text = fs::read_to_string(&self.counter)
            .context(|| format!("reading {}", self.counter.display()))?;
        Ok(text.trim().parse().unwrap_or_default())
    }

    fn end(mut self) -> Result<Footprint> {
        self.look();
        self.seen.cpu = self.cpu()? - self.cpu_before;
        self.seen.sent = self.sent()? - self.sent_before;
        let ticks: u64 = self.ticks.values().map(|(first, last)| last.saturating_sub(*first)).sum();
        self.seen.agents_cpu = ticks as f64 / TICKS;
        Ok(self.seen)
    }
}

/// Returns what lies in a host's file systems in memory, in mebibytes. `init` is the host's first process.
fn in_files(init: i32) -> f64 {
    let mounts = fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap_or_default();
    let mut devices = BTreeSet::new();
    let mut mebibytes = 0.0;
    for line in mounts.lines().filter(|line| line.contains(" - tmpfs ")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(device), Some(place)) = (fields.get(2), fields.get(4)) else { continue };
        if !devices.insert((*device).to_owned()) {
            continue;
        }
        // What is mounted there may be gone, or lie below something else.
        let found = statfs(format!("/proc/{init}/root{place}").as_str()).ok();
        if let Some(found) = found.filter(|found| found.filesystem_type() == TMPFS_MAGIC) {
            let blocks = found.blocks().saturating_sub(found.blocks_free());
            mebibytes += blocks as f64 * found.block_size() as f64 / MIB;
        }
    }
    mebibytes
}
