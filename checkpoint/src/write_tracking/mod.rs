//! Which pages of running processes are written, without stopping them: the kernel notes it for a userfaultfd in its
//! asynchronous mode (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7), and tells it by `PAGEMAP_SCAN`.
//!
//! What a look does not know to be unchanged counts as written: a new process, a new mapping, a program that exec(2) has
//! started, memory that was moved. When this is dropped, or its process dies, the kernel forgets everything, and nothing
//! is left in the processes.

mod inject;
mod scan;
mod soft_dirty;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

pub use scan::Range;
use scan::{Look, Mappings, mappings};

use crate::images::PAGE;
use crate::procfs;
use crate::userfault::Userfault;

/// Why the memory of a container cannot be followed while it runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not allow it, or cannot do it.
    #[error("cannot follow the memory of process {pid}")]
    Process {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Returns why this host cannot follow the memory of processes.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("writes can be followed on x86-64 alone".to_owned());
    }
    Method::choose().is_none().then(|| {
        "this host's kernel cannot tell which pages are written (Linux 6.7 can, and earlier ones with \
         CONFIG_MEM_SOFT_DIRTY)"
            .to_owned()
    })
}

/// Returns whether processes have to stand still on this host while they are looked at: its kernel is older than Linux 6.7.
#[must_use]
pub fn stops() -> bool {
    Method::choose() == Some(Method::SoftDirty)
}

/// Pages of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// The process, as this host numbers it.
    pub process: i32,
    /// The number that it has in its container, by which images name it.
    pub inner: i32,
    /// Its pages.
    pub ranges: Vec<Range>,
}

impl Pages {
    /// Returns how many bytes they have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// How the kernel notes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// For a userfaultfd, while the processes run.
    Userfault,
    /// By the soft-dirty bit. The processes have to stand still for every look but the first.
    SoftDirty,
}

impl Method {
    fn choose() -> Option<Self> {
        match scan::is_supported() {
            true => Some(Self::Userfault),
            false => soft_dirty::is_supported().then_some(Self::SoftDirty),
        }
    }
}

/// A process that is followed.
#[derive(Debug)]
struct Followed {
    /// Distinguishes it from a later process of the same number.
    started: Option<u64>,
    /// Notes its writes; `None` where the soft-dirty bit does.
    userfault: Option<Userfault>,
}

/// Follows the writes of processes.
#[derive(Debug)]
pub struct WriteTracking {
    method: Method,
    followed: BTreeMap<i32, Followed>,
}

impl Default for WriteTracking {
    fn default() -> Self {
        let method = Method::choose().unwrap_or(Method::Userfault);
        Self { method, followed: BTreeMap::new() }
    }
}

impl WriteTracking {
    /// Returns whether the processes have to stand still for every look but the first, which is one at everything.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.method == Method::SoftDirty
    }

    /// Returns whether the processes have to stand still for the next look. What was written between reading the soft-dirty
    /// bits and clearing them would be lost. The first look reads none: it clears them and returns every page, whose content
    /// is read later.
    #[must_use]
    pub fn needs_stop(&self) -> bool {
        self.stops() && !self.followed.is_empty()
    }

    /// Begins to follow processes that run, and those that were not followed yet. Stops each new one for some 100 µs. One that
    /// cannot be followed counts as written whole each time.
    ///
    /// # Errors
    /// [`Error`], if none can be followed.
    pub fn follow(&mut self, pids: &[i32]) -> Result<(), Error> {
        let mut failed = None;
        // The first look at a process makes it one that is followed.
        let pids = if self.stops() { &[] } else { pids };
        for &pid in pids {
            let started = procfs::start_time(pid);
            if started.is_none()
                || self.followed.get(&pid).is_some_and(|known| known.started == started)
            {
                continue;
            }
            let followed = inject::userfault(pid);
            match followed.map(|userfault| Followed { started, userfault: Some(userfault) }) {
                Ok(followed) => drop(self.followed.insert(pid, followed)),
                // It may have ended meanwhile.
                Err(source) => {
                    tracing::debug!("process {pid} is not followed: {source}");
                    failed = Some(Error::Process { pid, source });
                }
            }
        }
        match failed {
            Some(error) if self.followed.is_empty() => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the pages of code that were written since the last look: those that CRIU changes for a moment, to have a task
    /// make a system call (`compel_execute_syscall`). It changes no other page that was there before.
    ///
    /// # Errors
    /// As [`WriteTracking::written`].
    pub fn written_code(&mut self, pids: &[i32]) -> Result<Vec<Pages>, Error> {
        // CRIU dumps pages with the soft-dirty bit itself.
        if self.stops() {
            return Ok(Vec::new());
        }
        self.look(pids, |mappings| &mappings.code)
    }

    /// Returns the pages of processes that were written since the last look, or that no look has seen. Processes that
    /// are not followed have all of their pages returned.
    ///
    /// # Errors
    /// [`Error`], if a process cannot be looked at.
    pub fn written(&mut self, pids: &[i32]) -> Result<Vec<Pages>, Error> {
        self.look(pids, |mappings| &mappings.private)
    }

    fn look(&mut self, pids: &[i32], of: fn(&Mappings) -> &[Range]) -> Result<Vec<Pages>, Error> {
        let is_first = self.stops() && self.followed.is_empty();
        if is_first {
            // All of them before any is looked at: some may have their memory together (vfork(2)).
            pids.iter().try_for_each(|pid| clear(*pid))?;
        }
        let mut all = Vec::new();
        for &pid in pids {
            let failed = |source| Error::Process { pid, source };
            // A zombie has no memory.
            let Some(started) = procfs::start_time(pid) else { continue };
            let Some(inner) = procfs::inner_pid(pid) else { continue };
            // A file that was opened before would be that of the program before (exec(2)).
            let opened = mappings(pid)
                .and_then(|all| Ok((all, File::open(format!("/proc/{pid}/pagemap"))?)));
            let (mappings, pagemap) = match opened {
                Err(e) if is_gone(&e) => continue,
                other => other.map_err(failed)?,
            };
            let followed = self.followed.get(&pid).filter(|known| known.started == Some(started));
            let noted = followed.map(|known| known.written(&pagemap, of(&mappings)));
            let ranges = match noted {
                Some(Ok(ranges)) => ranges,
                // It has started another program since, or this is not to be had any more.
                Some(Err(_)) | None => {
                    self.followed.remove(&pid);
                    match every(self.method, &pagemap, of(&mappings)) {
                        Err(e) if is_gone(&e) => continue,
                        other => other.map_err(failed)?,
                    }
                }
            };
            if self.stops() {
                if !is_first {
                    clear(pid)?;
                }
                self.followed.insert(pid, Followed { started: Some(started), userfault: None });
            }
            // Its pages count as those of a file, and are dumped all the same.
            let ranges = ranges.into_iter().chain(mappings.vdso).collect();
            all.push(Pages { process: pid, inner, ranges });
        }
        Ok(all)
    }
}

impl Followed {
    /// Returns the pages of mappings that were written.
    ///
    /// # Errors
    /// Nothing of them is noted: they are those of another program. Or the kernel does not tell.
    fn written(&self, pagemap: &File, mappings: &[Range]) -> io::Result<Vec<Range>> {
        let mut found = Vec::new();
        let Some(userfault) = &self.userfault else {
            for &mapping in mappings {
                soft_dirty::scan(pagemap, mapping, Look::Written, &mut found)?;
            }
            return Ok(found);
        };
        let mut any = mappings.is_empty();
        for &mapping in mappings {
            let noted = userfault.register_writes(mapping.start, mapping.end);
            let known = found.len();
            // What is not noted counts as written: a mapping that the kernel refuses, or the memory of another program
            // that the process has started since.
            let scanned =
                noted.and_then(|()| scan::scan(pagemap, mapping, Look::Written, &mut found));
            any |= scanned.is_ok();
            if scanned.is_err() {
                found.truncate(known);
                scan::scan(pagemap, mapping, Look::All, &mut found)?;
            }
        }
        if any { Ok(found) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

/// Clears the soft-dirty bits of a process. One that has ended has none.
fn clear(pid: i32) -> Result<(), Error> {
    match soft_dirty::clear(pid) {
        Err(e) if is_gone(&e) => Ok(()),
        other => other.map_err(|source| Error::Process { pid, source }),
    }
}

/// Returns all pages of a process that have content of its own.
fn every(method: Method, pagemap: &File, mappings: &[Range]) -> io::Result<Vec<Range>> {
    let mut found = Vec::new();
    for &mapping in mappings {
        match method {
            Method::Userfault => scan::scan(pagemap, mapping, Look::All, &mut found)?,
            Method::SoftDirty => soft_dirty::scan(pagemap, mapping, Look::All, &mut found)?,
        }
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// Reads memory of a process into `buffer`, whole pages, and returns how many bytes there were: the rest is not mapped any
/// more, or the process has ended.
///
/// # Errors
/// That of process_vm_readv(2), or of reading `/proc/PID/mem`.
pub fn read(pid: i32, start: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let base = usize::try_from(start).map_err(io::Error::other)?;
    let len = buffer.len();
    let mut local = [IoSliceMut::new(buffer)];
    match process_vm_readv(Pid::from_raw(pid), &mut local, &[RemoteIoVec { base, len }]) {
        Ok(read) if read == len => return Ok(read),
        Ok(_) | Err(Errno::EFAULT | Errno::EIO) => {}
        Err(Errno::ESRCH) => return Ok(0),
        Err(errno) => return Err(errno.into()),
    }
    // A page may be mapped without permission to read it.
    match open_memory(pid)? {
        Some(memory) => read_opened(&memory, start, buffer),
        None => Ok(0),
    }
}

/// Opens the memory of a process; `None` if it has ended. The file means this process, and the program that it runs now, even if its
/// ID becomes another one's.
///
/// # Errors
/// That of opening `/proc/PID/mem`.
pub fn open_memory(pid: i32) -> io::Result<Option<File>> {
    match File::open(format!("/proc/{pid}/mem")) {
        Err(e) if is_gone(&e) => Ok(None),
        other => other.map(Some),
    }
}

/// Reads opened memory of a process, as [`read`].
///
/// # Errors
/// That of reading `/proc/PID/mem`.
pub fn read_opened(memory: &File, start: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match memory.read_at(&mut buffer[done..], start + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done - done % PAGE as usize)
}
