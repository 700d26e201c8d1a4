//! The mounts of a process, from its mount table (proc_pid_mountinfo(5)).

use std::fs;
use std::io;

/// Most mounts that are looked at.
const MOST: usize = 10_000;
/// File systems without files of a container's own.
const KERNELS: [&str; 11] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "mqueue",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
    "nsfs",
];

/// The option of a mount in which symbolic links are not followed (`MS_NOSYMFOLLOW`, mount(2)).
const NO_SYMLINKS: &str = "nosymfollow";

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Major and minor number.
    pub(crate) device: (u64, u64),
    /// Where it is, as the process sees it.
    pub(crate) point: String,
    /// The kind of its file system.
    pub(crate) kind: String,
}

impl Mount {
    /// Returns whether the kernel makes all that is in it.
    pub(crate) fn is_kernels(&self) -> bool {
        KERNELS.contains(&self.kind.as_str())
    }
}

/// All mounts of a process' namespace.
#[derive(Debug, Default)]
pub(crate) struct Mounts(pub(crate) Vec<Mount>);

impl Mounts {
    /// Reads them; none when the process is gone.
    pub(crate) fn of_process(pid: i32) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut words = before.split(' ').skip(2);
            let (major, minor) = words.next()?.split_once(':')?;
            let point = words.nth(1)?.replace("\\040", " ");
            let kind = after.split(' ').next()?.to_owned();
            Some(Mount { device: (major.parse().ok()?, minor.parse().ok()?), point, kind })
        };
        Self(text.lines().take(MOST).filter_map(mount).collect())
    }

    /// Returns the mounts of a device.
    pub(crate) fn of_device(&self, device: (u64, u64)) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }
}

/// Returns the mount points of a process in which symbolic links are not followed. crun mounts the control groups
/// so; CRIU knows nothing of it (`parse_mnt_flags` in `criu/proc_parse.c`).
///
/// # Errors
/// `/proc/PID/mountinfo` cannot be read.
pub fn without_symlinks(pid: i32) -> io::Result<Vec<String>> {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).map(|table| marked(&table))
}

/// Returns those mount points of a mount table (proc_pid_mountinfo(5)) in which symbolic links are not followed. The
/// fifth word is the mount point, the sixth has its options.
fn marked(table: &str) -> Vec<String> {
    let mounts = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(4);
        Some((words.next()?, words.next()?))
    });
    mounts
        .filter(|(_, options)| options.split(',').any(|option| option == NO_SYMLINKS))
        .map(|(point, _)| unescaped(point))
        .collect()
}

/// Returns a path without the escapes of a mount table: a backslash and three octal digits for spaces and the
/// like.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            None => path.extend(["\\", part]),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let text = "670 666 0:184 / / rw,relatime - overlay overlay rw,lowerdir=/x\n\
                    671 670 0:54 /a /run/b\\040c rw - tmpfs tmpfs rw\n\
                    672 670 0:55 / /proc rw master:1 - proc proc rw\nnonsense\n";
        let mounts = Mounts::parse(text);
        assert_eq!(mounts.0.len(), 3);
        let second = mounts.of_device((0, 54)).next().unwrap();
        assert_eq!((second.point.as_str(), second.kind.as_str()), ("/run/b c", "tmpfs"));
        assert!(mounts.0[2].is_kernels() && !second.is_kernels());
    }
    #[test]
    fn only_marked_mounts_are_found_and_their_names_are_plain() {
        let table = "\
            31 23 0:26 / /sys/fs/cgroup ro,nosuid,relatime,nosymfollow - cgroup2 cgroup2 rw\n\
            32 23 0:27 / /proc rw,relatime - proc proc rw\n\
            33 23 0:28 / /a\\040b\\134c rw,nosymfollow shared:1 - tmpfs nosymfollow rw\n\
            34 23 0:29 / /d rw - tmpfs tmpfs rw,nosymfollow\n";
        assert_eq!(marked(table), ["/sys/fs/cgroup", "/a b\\c"]);
        assert!(without_symlinks(std::process::id() as i32).is_ok());
    }
}
