//! Counts how often processes of a cgroup restrict themselves, by a counter of the kernel at the entry of
//! landlock_restrict_self(2) (perf_event_open(2), `PERF_TYPE_TRACEPOINT`). A look at threads does not see what they do later.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// `PERF_TYPE_TRACEPOINT`.
const TRACEPOINT: u64 = 2;
/// Size of the oldest form of the attributes, `PERF_ATTR_SIZE_VER0`, which all kernels take.
const SIZE: u64 = 64;
/// `PERF_FLAG_PID_CGROUP` and `PERF_FLAG_FD_CLOEXEC`.
const FLAGS: libc::c_ulong = 4 | 8;
/// Where the number of the tracepoint stands, below the root of a tracefs.
const NUMBER: &str = "events/syscalls/sys_enter_landlock_restrict_self/id";

/// A counter. Dropped, it is removed in the background, since the kernel waits for all processors then.
#[derive(Debug)]
pub struct RestrictionCount {
    /// One for each processor.
    counters: Vec<File>,
}

impl RestrictionCount {
    /// Begins to count for the processes in a directory of the cgroup file system and below it. While there is a counter, system calls
    /// of all processes of the host take some 50 ns longer: it should not be kept for long.
    ///
    /// # Errors
    /// The kernel has no such tracepoint, or no counters for cgroups.
    pub fn begin(cgroup: &Path) -> io::Result<Self> {
        let number = tracepoint()?;
        let cgroup = File::open(cgroup)?;
        let counters = processors()?
            .into_iter()
            .map(|processor| counter(number, cgroup.as_raw_fd(), processor))
            .collect::<io::Result<_>>()?;
        Ok(Self { counters })
    }

    /// Returns how often processes have tried to restrict themselves.
    ///
    /// # Errors
    /// That of read(2).
    pub fn read(&self) -> io::Result<u64> {
        let mut all = 0;
        for mut counter in &self.counters {
            let mut count = [0; 8];
            counter.read_exact(&mut count)?;
            all += u64::from_ne_bytes(count);
        }
        Ok(all)
    }
}

impl Drop for RestrictionCount {
    fn drop(&mut self) {
        let counters = std::mem::take(&mut self.counters);
        // Without a thread they are closed here.
        let _ = std::thread::Builder::new()
            .name("netmig-uncount".to_owned())
            .spawn(move || drop(counters));
    }
}

fn counter(tracepoint: u64, cgroup: RawFd, processor: i32) -> io::Result<File> {
    // `struct perf_event_attr`: type and size, config, and six that are zero.
    let attributes: [u64; 8] = [TRACEPOINT | SIZE << 32, tracepoint, 0, 0, 0, 0, 0, 0];
    // SAFETY: perf_event_open(2) reads the attributes, which are as long as they say and outlive the call; the other arguments are
    // numbers: a cgroup, a processor, no group.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), cgroup, processor, -1, FLAGS)
    };
    owned(event).map(File::from)
}

/// Returns the processors that are online: ranges like `0-3,6`.
fn processors() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut all = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse().map_err(invalid)?..=last.parse::<i32>().map_err(invalid)?);
    }
    Ok(all)
}

/// Returns the number of the tracepoint.
fn tracepoint() -> io::Result<u64> {
    let mounted = Path::new("/sys/kernel/tracing").join(NUMBER);
    let text = match std::fs::read_to_string(mounted) {
        Ok(text) => text,
        Err(_) => {
            let root = tracefs()?;
            let file = openat(&root, NUMBER, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            let mut text = String::new();
            File::from(file).take(64).read_to_string(&mut text)?;
            text
        }
    };
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Opens a tracefs that is mounted nowhere (fsopen(2), fsmount(2)).
fn tracefs() -> io::Result<OwnedFd> {
    /// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC`.
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    /// `FSCONFIG_CMD_CREATE`.
    const CREATE: libc::c_uint = 6;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: the name ends with a zero.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), CLOSE_ON_EXEC) };
    let context = owned(context)?;
    // SAFETY: this command takes neither a key nor a value.
    let made =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) };
    nix::errno::Errno::result(made)?;
    // SAFETY: fsmount(2) takes numbers alone.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOSE_ON_EXEC, 0) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the rights of root, cgroups of version 2 and the tracepoint; says so where something lacks.
    #[test]
    fn a_thread_that_restricts_itself_is_counted() {
        let place = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let Ok(cgroup) = crate::cgroup::directory(&place) else {
            return println!("skipped: no cgroup of version 2");
        };
        let count = match RestrictionCount::begin(&cgroup) {
            Err(e) => return println!("skipped: {e}"),
            Ok(count) => count,
        };
        assert_eq!(count.read().unwrap(), 0);
        // With no ruleset it fails, which counts all the same.
        // SAFETY: the kernel refuses a descriptor that there is not.
        let attempt = || unsafe { libc::syscall(libc::SYS_landlock_restrict_self, -1, 0) };
        std::thread::spawn(move || assert_eq!(attempt(), -1)).join().unwrap();
        assert_eq!(count.read().unwrap(), 1);
    }
}
