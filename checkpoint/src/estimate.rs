//! An estimate of an interruption, made before it begins.
//!
//! Everything that costs time is counted and multiplied by its cost on a reference machine. A short measurement shows
//! how much slower or faster this machine is at this moment. The figures come from moves of three containers (one
//! process, a hundred processes, 256 MiB of memory), one move each, between two hosts on one machine of two
//! processors, with the agents' connection by TLS. Those of connections come from the benchmark of flows:
//!
//! | | dump | transfer | restore |
//! | --- | --- | --- | --- |
//! | fixed | 50 ms | 6 ms | 34 ms |
//! | a process | 3.4 ms | 0.5 ms | 6.7 ms |
//! | a TCP connection | 37 µs | 1 µs | 13 µs |
//! | 1 MiB of memory | 2.9 ms, with the transfer | | 1.3 ms |
//! | 1 MiB of memory that is shared and went over before | 0.3 ms | | 1.3 ms |

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes of the measurement, and how long it takes on the reference machine.
const MEASURED: usize = 16 << 20;
const REFERENCE: Duration = Duration::from_micros(12_600);
/// The measurement is not trusted beyond these: it looks at memory alone.
const SCALE: std::ops::RangeInclusive<f64> = 0.25..=4.0;
/// Most processes that are looked at.
const MOST_PROCESSES: usize = 10_000;
const MIB: f64 = 1024.0 * 1024.0;

/// What a container has that takes time in an interruption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its processes.
    pub processes: u64,
    /// Its TCP connections.
    pub connections: u64,
    /// Bytes of memory that are in no file of its own.
    pub memory: u64,
    /// Those of them that processes share with each other.
    pub shared: u64,
    /// Bytes of memory beside these that went over before, and are only compared and restored in the interruption.
    pub compared: u64,
}

/// How long the parts of an interruption are expected to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The dump, and what is sent meanwhile.
    pub dump: Duration,
    /// What is sent when the dump has ended.
    pub transfer: Duration,
    /// The restore.
    pub restore: Duration,
}

impl Forecast {
    /// Returns the forecast over a link that takes so many bytes a second. Memory is sent while it is dumped,
    /// so only what the link takes longer for counts.
    #[must_use]
    pub fn over_link(self, memory: u64, rate: f64) -> Self {
        let sent = Duration::try_from_secs_f64(memory as f64 / rate).unwrap_or(Duration::MAX);
        let transfer = self.transfer.saturating_add(sent.saturating_sub(self.dump));
        Self { transfer, ..self }
    }

    /// Returns the interruption as a whole.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.dump.saturating_add(self.transfer).saturating_add(self.restore)
    }
}

impl Workload {
    /// Looks at processes.
    #[must_use]
    pub fn of_processes(pids: &[i32], connections: u64) -> Self {
        let (mut memory, mut shared) = (0, 0);
        for pid in pids.iter().take(MOST_PROCESSES) {
            let of = own_memory(*pid);
            memory += of.0 + of.1;
            shared += of.1;
        }
        Self { processes: pids.len() as u64, connections, memory, shared, compared: 0 }
    }

    /// Forecasts the interruption on a machine that takes `scale` times as long as the reference machine.
    #[must_use]
    pub fn forecast(&self, scale: f64) -> Forecast {
        let (processes, connections) = (self.processes as f64, self.connections as f64);
        let (memory, compared) = (self.memory as f64 / MIB, self.compared as f64 / MIB);
        let part = |fixed: f64, process: f64, connection: f64, mib: f64, mib_compared: f64| {
            let of_memory = mib * memory + mib_compared * compared;
            let ms = fixed + process * processes + connection * connections + of_memory;
            Duration::from_secs_f64((ms * scale / 1e3).max(0.0))
        };
        Forecast {
            dump: part(50.0, 3.4, 0.037, 2.9, 0.3),
            transfer: part(6.0, 0.5, 0.001, 0.0, 0.0),
            restore: part(34.0, 6.7, 0.013, 1.3, 1.3),
        }
    }
}

/// Measures how many times as long as the reference machine this one takes, at this moment, for writing and
/// reading memory.
///
/// # Errors
/// The kernel gives no memory.
pub fn scale() -> io::Result<f64> {
    let mut file = File::from(memfd_create("netmig-estimate", MFdFlags::MFD_CLOEXEC)?);
    let mut piece = vec![0x5a_u8; 1 << 20];
    let began = Instant::now();
    for _ in 0..MEASURED / piece.len() {
        file.write_all(&piece)?;
    }
    file.rewind()?;
    for _ in 0..MEASURED / piece.len() {
        file.read_exact(&mut piece)?;
    }
    let times = began.elapsed().as_secs_f64() / REFERENCE.as_secs_f64();
    Ok(times.clamp(*SCALE.start(), *SCALE.end()))
}

/// Bytes of memory of a process that are in no file, private ones and its part of those that it shares
/// (`/proc/PID/smaps_rollup`, proc_pid_smaps(5)).
fn own_memory(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number =
            line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or_default() * 1024
    };
    (bytes("Pss_Anon:"), bytes("Pss_Shmem:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_more_of_takes_longer() {
        let one = Workload { processes: 1, connections: 1, memory: 1 << 20, ..Workload::default() };
        let forecast = |work: Workload| work.forecast(1.0).total();
        assert!(forecast(one) < Duration::from_millis(200));
        assert!(forecast(Workload { processes: 600, ..one }) > Duration::from_secs(5));
        assert!(forecast(Workload { memory: 1400 << 20, ..one }) > Duration::from_secs(5));
        assert!(forecast(Workload { connections: 10_000, ..one }) > Duration::from_millis(400));
        assert!(one.forecast(2.0).total() > one.forecast(1.0).total());
        let much = Workload { memory: 100 << 20, ..one }.forecast(1.0);
        assert_eq!(much.over_link(100 << 20, 1e12), much);
        assert!(much.over_link(100 << 20, 1e7).total() > Duration::from_secs(10));
        assert!(much.over_link(100 << 20, 0.0).total() > Duration::from_secs(1 << 40));
    }

    #[test]
    fn the_memory_of_this_process_is_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = Workload::of_processes(&[own], 0).memory;
        let more = vec![7_u8; 64 << 20];
        let after = Workload::of_processes(&[own, i32::MAX], 0);
        assert_eq!((after.processes, more[more.len() - 1]), (2, 7));
        assert!(after.memory > before + (32 << 20), "{before}, then {}", after.memory);
    }

    #[test]
    fn the_measurement_stays_within_its_bounds() {
        assert!(SCALE.contains(&scale().unwrap()));
    }
}
