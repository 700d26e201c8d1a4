//! Which segments of shared memory processes have mapped: anonymous shared mappings, segments of System V, and memfds. All of
//! them are files of one file system that the kernel has for itself (`shm_mnt` in `mm/shmem.c`), and their inode numbers name
//! them in CRIU's images.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Whence, lseek64};

use crate::images::PAGE;

/// What `/proc/PID/maps` names segments of System V and memfds by. Any other name is that of an anonymous mapping.
const SYSTEM_V: &str = "/SYSV";
const MEMFD: &str = "/memfd:";

/// A segment that some process has mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapped {
    /// The process and the addresses of one of its mappings, by which the kernel names it in `map_files`.
    place: (i32, String),
    /// The end of what is mapped of it, in bytes from its beginning. CRIU takes that for the size of an anonymous mapping.
    extent: u64,
    is_anonymous: bool,
}

/// Returns the device of the kernel's own file system.
pub(super) fn device() -> io::Result<u64> {
    Ok(File::from(memfd_create("netmig-device", MFdFlags::MFD_CLOEXEC)?).metadata()?.dev())
}

/// Returns the segments that processes have mapped, by their inode numbers. A process that has ended has none.
pub(super) fn mapped(pids: &[i32], device: u64) -> io::Result<BTreeMap<u32, Mapped>> {
    let mut all = BTreeMap::new();
    for &pid in pids {
        match fs::read_to_string(format!("/proc/{pid}/maps")) {
            Ok(maps) => maps.lines().for_each(|line| add(&mut all, pid, line, device)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Adds the segment that a line of `/proc/PID/maps` names (proc_pid_maps(5)), if it does.
fn add(all: &mut BTreeMap<u32, Mapped>, pid: i32, line: &str, device: u64) {
    let mut fields = line.split_ascii_whitespace();
    let mut next = || fields.next().unwrap_or_default();
    let (range, permissions, offset, of, inode, name) =
        (next(), next(), next(), next(), next(), next());
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let number = |pair: (&str, &str)| Some((hexadecimal(pair.0)?, hexadecimal(pair.1)?));
    let is_shared = permissions.ends_with('s');
    let is_of_device = of.split_once(':').and_then(number).is_some_and(|(major, minor)| {
        libc::makedev(major as libc::c_uint, minor as libc::c_uint) == device
    });
    // CRIU has 32 bits for the numbers of memfds.
    let (true, true, Ok(inode)) = (is_shared, is_of_device, inode.parse::<u32>()) else { return };
    let bounds = range.split_once('-').and_then(number);
    let (Some((start, end)), Some(offset)) = (bounds, hexadecimal(offset)) else { return };
    let extent = offset.saturating_add(end.saturating_sub(start));
    let known = all.entry(inode).or_insert_with(|| Mapped {
        place: (pid, range.to_owned()),
        extent,
        is_anonymous: !name.starts_with(SYSTEM_V) && !name.starts_with(MEMFD),
    });
    known.extent = known.extent.max(extent);
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    /// The end of what CRIU restores of it: of an anonymous mapping that is the end of what is mapped.
    extent: Option<u64>,
}

impl Segment {
    /// Opens one; `None` if its process has unmapped it or has ended since.
    pub(super) fn open(inode: u32, mapped: &Mapped, device: u64) -> io::Result<Option<Self>> {
        let (pid, range) = &mapped.place;
        // Another file may be mapped there by now, and what is no segment must not be opened: that may wait, or do something.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH);
        let found = match options.open(format!("/proc/{pid}/map_files/{range}")) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {
                return Ok(None);
            }
            other => other?,
        };
        let meta = found.metadata()?;
        if !meta.is_file() || (meta.dev(), meta.ino()) != (device, u64::from(inode)) {
            return Ok(None);
        }
        let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
        Ok(Some(Self { file, extent: mapped.is_anonymous.then_some(mapped.extent) }))
    }

    /// Returns its length in bytes, in whole pages.
    pub(super) fn length(&self) -> io::Result<u64> {
        let length = self.file.metadata()?.len().next_multiple_of(PAGE);
        Ok(self.extent.map_or(length, |extent| length.min(extent)))
    }

    /// Returns the parts that have pages, whole pages in order, and ends at `length`.
    pub(super) fn parts(&self, length: u64) -> io::Result<Vec<(u64, u64)>> {
        let seek = |from: u64, whence| match lseek64(&self.file, from as i64, whence) {
            Ok(at) => Ok(Some(at as u64)),
            // There is nothing more, or it has become shorter.
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(errno) => Err(io::Error::from(errno)),
        };
        let (mut all, mut at) = (Vec::new(), 0);
        while at < length {
            let Some(start) = seek(at, Whence::SeekData)?.filter(|start| *start < length) else {
                break;
            };
            let end = seek(start, Whence::SeekHole)?.unwrap_or(length);
            at = end.next_multiple_of(PAGE).min(length);
            all.push((start / PAGE * PAGE, at));
        }
        Ok(all)
    }

    /// Reads whole pages. What is not there any more reads as zeros.
    pub(super) fn read(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], start + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        let whole = done / PAGE as usize * PAGE as usize;
        buffer[done..].fill(0);
        if done > whole {
            let page = &mut buffer[whole..whole + PAGE as usize];
            self.read_last_page(start + whole as u64, page)?;
        }
        Ok(())
    }

    /// Reads the page in which the file ends. Processes can write behind its end there, and read(2) does not return that.
    fn read_last_page(&self, start: u64, page: &mut [u8]) -> io::Result<()> {
        let length =
            std::num::NonZeroUsize::new(PAGE as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let (protection, flags) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        // SAFETY: the kernel chooses the place, so the mapping lies over nothing else.
        let mapped = unsafe { mmap(None, length, protection, flags, &self.file, start as i64) }?;
        // The page may be gone by now, for which a plain access would end this process.
        let place = [RemoteIoVec { base: mapped.as_ptr() as usize, len: PAGE as usize }];
        let read = process_vm_readv(Pid::this(), &mut [io::IoSliceMut::new(page)], &place);
        // SAFETY: the mapping is this function's own.
        unsafe { munmap(mapped, PAGE as usize) }?;
        match read {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EFAULT) => {
                page.fill(0);
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }
}
