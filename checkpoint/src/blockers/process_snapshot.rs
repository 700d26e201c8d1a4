//! A snapshot of a container's processes: what `/proc` shows of each (proc(5)).
//!
//! Reading is bounded. A process that ends meanwhile is left out.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most processes that are looked at. What is in others shows when CRIU meets it, and the move goes back.
const MOST_PROCESSES: usize = 10_000;
/// Most descriptors that are looked at, of all processes together.
const MOST_DESCRIPTORS: usize = 1_000_000;
/// Most threads of a process that are looked at.
const MOST_THREADS: usize = 4096;
/// Most bytes of one file of `/proc`.
const MOST_BYTES: u64 = 16 << 20;
/// What the kernel adds to the name of a file that is gone.
const DELETED: &str = " (deleted)";
/// Namespaces that are compared (namespaces(7)).
pub(super) const NAMESPACES: [&str; 8] =
    ["user", "ipc", "uts", "cgroup", "pid", "pid_for_children", "time", "time_for_children"];

/// The processes, the container's first one before all others.
#[derive(Debug, Default)]
pub(super) struct Processes {
    pub(super) all: Vec<Process>,
}

/// A process.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// Its number on the host.
    pub(super) pid: i32,
    /// Its program's short name.
    pub(super) name: String,
    /// The process that traces it or one of its threads; 0 if none does.
    pub(super) tracer: i32,
    /// Its real, effective and saved user IDs, then its group IDs, as this process' user namespace has them.
    pub(super) ids: [Vec<u32>; 2],
    /// The namespaces of [`NAMESPACES`], as the kernel names them; empty where there is none.
    pub(super) namespaces: [String; NAMESPACES.len()],
    /// Its executable, working directory and root directory, by their names in `/proc/PID`.
    pub(super) links: Vec<(&'static str, String)>,
    /// Its descriptors.
    pub(super) descriptors: Vec<Descriptor>,
    /// Files that it maps although their names are gone: the range in memory and the name.
    pub(super) gone_mappings: Vec<(String, String)>,
}

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) number: i32,
    /// What the kernel calls it.
    pub(super) target: String,
}

impl Processes {
    /// Looks at processes, of which `first` is the container's first one.
    pub(super) fn look(pids: &[i32], first: i32) -> Self {
        let mut room = MOST_DESCRIPTORS;
        let others = pids.iter().copied().filter(|pid| *pid != first);
        let all = std::iter::once(first)
            .chain(others)
            .take(MOST_PROCESSES)
            .filter_map(|pid| Process::look(pid, &mut room))
            .collect();
        Self { all }
    }

    /// Returns the container's first process.
    pub(super) fn first(&self) -> Option<&Process> {
        self.all.first()
    }

    /// Returns all descriptors with their processes.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (&Process, &Descriptor)> {
        let of = |process| Process::with_descriptors(process);
        self.all.iter().flat_map(of)
    }
}

impl Process {
    /// Returns `None` when it has ended.
    fn look(pid: i32, room: &mut usize) -> Option<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let status = read(&directory.join("status"))?;
        let field = |name: &str| field(&status, name).unwrap_or_default();
        let link = |name: &str| target(&directory.join(name)).unwrap_or_default();
        let mut process = Self {
            pid,
            name: field("Name").to_owned(),
            tracer: tracer(&directory),
            ids: ["Uid", "Gid"].map(|name| ids(field(name))),
            namespaces: NAMESPACES.map(|name| link(&format!("ns/{name}"))),
            links: ["exe", "cwd", "root"].map(|name| (name, link(name))).into(),
            ..Self::default()
        };
        for entry in fs::read_dir(directory.join("fd")).into_iter().flatten().flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (Some(number), Some(target)) = (number, target(&entry.path())) else { continue };
            *room = room.checked_sub(1)?;
            process.descriptors.push(Descriptor { number, target });
        }
        process.descriptors.sort_by_key(|descriptor| descriptor.number);
        let maps = read(&directory.join("maps")).unwrap_or_default();
        process.gone_mappings = gone(&maps).collect();
        Some(process)
    }

    fn with_descriptors(&self) -> impl Iterator<Item = (&Self, &Descriptor)> {
        self.descriptors.iter().map(move |descriptor| (self, descriptor))
    }

    /// Returns a path below its directory in `/proc`.
    pub(super) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(below)
    }

    /// Returns what the kernel tells of a descriptor (proc_pid_fdinfo(5)).
    pub(super) fn info(&self, descriptor: i32) -> String {
        read(&self.path(format!("fdinfo/{descriptor}"))).unwrap_or_default()
    }

    /// Returns whether what a link below its directory leads to is still linked somewhere under another name;
    /// `None` when it is closed by now.
    pub(super) fn has_names(&self, below: &str) -> Option<bool> {
        fs::metadata(self.path(below)).ok().map(|file| file.nlink() > 0)
    }
}

/// Returns the name of a file that is gone, as it was.
pub(super) fn gone_name(target: &str) -> Option<&str> {
    target.strip_suffix(DELETED)
}

/// Returns the tracer of any thread.
fn tracer(directory: &Path) -> i32 {
    let threads = fs::read_dir(directory.join("task")).into_iter().flatten().flatten();
    threads
        .take(MOST_THREADS)
        .filter_map(|thread| {
            field(&read(&thread.path().join("status"))?, "TracerPid")?.parse::<i32>().ok()
        })
        .find(|tracer| *tracer != 0)
        .unwrap_or(0)
}

/// Returns the mappings of files that are gone: ranges and names of `/proc/PID/maps`.
fn gone(maps: &str) -> impl Iterator<Item = (String, String)> {
    maps.lines().filter(|line| line.ends_with(DELETED)).filter_map(|line| {
        // Range, rights, offset, device, inode, name.
        let (range, rest) = line.split_once(' ')?;
        let name = rest.find('/').and_then(|place| rest.get(place..))?;
        Some((range.to_owned(), gone_name(name)?.to_owned()))
    })
}

/// Returns the real, effective and saved ID of a line of `/proc/PID/status`; the fourth is that for file systems.
fn ids(value: &str) -> Vec<u32> {
    value.split_whitespace().take(3).filter_map(|id| id.parse().ok()).collect()
}

/// Returns the value of a line `name:  value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn target(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(OsStr::to_string_lossy(target.as_os_str()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_and_one_that_is_gone_is_left_out() {
        let file = tempfile::tempfile().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let seen = Processes::look(&[own, i32::MAX], own);
        assert_eq!(seen.all.len(), 1);
        let first = seen.first().unwrap();
        assert_eq!((first.pid, first.tracer), (own, 0));
        assert!(first.namespaces[0].starts_with("user:["), "{first:?}");
        let user = nix::unistd::getuid().as_raw();
        assert_eq!((first.ids[0].len(), first.ids[0][0], first.ids[1].len()), (3, user, 3));
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let open = first.descriptors.iter().find(|one| one.number == number).unwrap();
        assert!(gone_name(&open.target).is_some());
        assert_eq!(first.has_names(&format!("fd/{number}")), Some(false));
        assert!(first.info(number).contains("pos:"));
    }

    #[test]
    fn mappings_of_files_that_are_gone_are_found() {
        let maps = "7f00-7f10 r-xp 00000000 00:24 77   /usr/lib/a b.so (deleted)\n\
                    7f20-7f30 r-xp 00000000 00:24 78   /usr/lib/c.so\n\
                    7f40-7f50 rw-p 00000000 00:00 0    [heap]\n";
        let found: Vec<_> = gone(maps).collect();
        assert_eq!(found, [("7f00-7f10".to_owned(), "/usr/lib/a b.so".to_owned())]);
    }
}
