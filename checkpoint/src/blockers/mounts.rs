//! The mounts of a process (proc_pid_mountinfo(5)).

use std::fs;

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

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Major and minor number.
    pub(super) device: (u64, u64),
    /// Where it is, as the process sees it.
    pub(super) point: String,
    /// The kind of its file system.
    pub(super) kind: String,
}

impl Mount {
    /// Whether the kernel makes all that is in it.
    pub(super) fn is_kernels(&self) -> bool {
        KERNELS.contains(&self.kind.as_str())
    }
}

/// All mounts of a process' namespace.
#[derive(Debug, Default)]
pub(super) struct Mounts(pub(super) Vec<Mount>);

impl Mounts {
    /// Reads them; none when the process is gone.
    pub(super) fn of_process(pid: i32) -> Self {
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

    /// The mounts of a device.
    pub(super) fn of_device(&self, device: (u64, u64)) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }
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
}
