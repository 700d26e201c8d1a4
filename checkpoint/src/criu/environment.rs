//! The environment in which CRIU runs: its options for one dump or one restore, how they reach it, and the limit of its
//! open files.
//!
//! CRIU keeps a file open for each TCP connection of a container, from when it has stopped the connection until the
//! dump is over (`dump_one_tcp` in `criu/sk-tcp.c`).

use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{setsid, write};

use super::Error;
use super::memory_apart::NOTES;

/// Where CRIU and the runtimes look for configuration files.
const SYSTEM_DIR: &CStr = c"/etc/criu";
/// The files that are read from there: CRIU's own, crun's and runc's.
const FILES: [&str; 3] = ["default.conf", "crun.conf", "runc.conf"];
/// The most urgent niceness (setpriority(2)).
const URGENT: i32 = -20;
/// Where sessions share the processors (sched(7), autogroup), niceness counts within one alone, and
/// this is the session's.
const SESSION_NICENESS: &CStr = c"/proc/self/autogroup";
/// [`URGENT`], for that file.
const URGENT_SESSION: &[u8] = b"-20";
/// CRIU reads one more file, named by this variable, before the runtime's request.
const ENV_FILE: &str = "CRIU_CONFIG_FILE";

/// What CRIU opens beside the connections.
const BESIDE: u64 = 256;
/// The kernel's own limit for one process.
const MOST_FILES: &str = "/proc/sys/fs/nr_open";
/// The bit of CAP_SYS_RESOURCE (`include/uapi/linux/capability.h`).
const SYS_RESOURCE: u32 = 24;

/// CRIU's options for one operation. Start from [`Options::dump`] or [`Options::restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until they are written with ConfigDir::create"]
pub struct Options {
    /// Dump and restore established TCP connections.
    pub tcp_established: bool,
    /// Leave out connections that are not yet accepted (SYN received) instead of failing.
    pub skip_in_flight: bool,
    /// Dump and restore `flock` and `fcntl` locks.
    pub file_locks: bool,
    /// Leave the container's control groups alone.
    pub ignore_cgroups: bool,
    /// Allow unix sockets whose other end is outside the container.
    pub external_unix: bool,
    /// Allow a terminal and a session that were opened outside the container.
    pub shell_job: bool,
    /// Largest deleted but still open file that goes into the images, in bytes.
    pub ghost_limit: u64,
    /// How long CRIU may take to collect the tasks, in seconds.
    pub timeout: u32,
    /// Where CRIU looks for what is watched, before the places that it knows.
    pub watched: Vec<PathBuf>,
    /// Images of an earlier dump: pages that were not written since are left out ([`super::MemoryApart`]).
    pub parent: Option<PathBuf>,
}

impl Options {
    /// Returns the options of a dump whose network is held and whose cgroup is frozen by us.
    pub fn dump() -> Self {
        Self {
            tcp_established: true,
            skip_in_flight: false,
            file_locks: true,
            ignore_cgroups: true,
            external_unix: false,
            shell_job: false,
            // CRIU's default is 1 MiB; the images are in memory and counted there anyway.
            ghost_limit: 256 << 20,
            timeout: 10,
            watched: Vec::new(),
            parent: None,
        }
    }

    /// Returns the options of a restore into a network namespace that is blocked by us.
    ///
    /// Control groups are left to the runtime: crun has CRIU put every process into the container's, and
    /// otherwise moves the first one there alone, when all of them run (`libcrun_container_restore`).
    pub fn restore() -> Self {
        Self { ignore_cgroups: false, ..Self::dump() }
    }

    /// Returns the text of a configuration file: one option a line, as on CRIU's command line but
    /// without the dashes.
    ///
    /// `network-lock skip`: the hold and the veth block are ours, and CRIU's own lock costs two
    /// runs of iptables-restore. No log
    /// level: the runtimes set one, and here it would put CRIU's first lines, which come before its
    /// log file is open, into the container's own log.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from("network-lock skip\n");
        for (wanted, option) in [
            (self.tcp_established, "tcp-established"),
            (self.skip_in_flight, "skip-in-flight"),
            (self.file_locks, "file-locks"),
            (self.ignore_cgroups, "manage-cgroups=ignore"),
            (self.external_unix, "ext-unix-sk"),
            (self.shell_job, "shell-job"),
        ] {
            if wanted {
                text.push_str(option);
                text.push('\n');
            }
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "ghost-limit {}", self.ghost_limit);
        let _ = writeln!(text, "timeout {}", self.timeout);
        for path in &self.watched {
            let _ = writeln!(text, "irmap-scan-path {}", path.display());
        }
        if let Some(parent) = &self.parent {
            let _ = writeln!(text, "track-mem\nprev-images-dir {}", parent.display());
        }
        text
    }
}

/// A directory that stands in for `/etc/criu` in one process.
///
/// It is ours alone (mode 0700) and holds the same options under each name that crun, runc and
/// CRIU look for. [`ConfigDir::attach`] may be called for any number of commands.
#[derive(Debug, Clone)]
pub struct ConfigDir {
    path: PathBuf,
    raw: CString,
    /// What lies over CRIU's notes of the kernel.
    notes: Option<CString>,
}

impl ConfigDir {
    /// Makes `path` (its parent must exist) and writes the options; an existing directory is
    /// used again.
    ///
    /// # Errors
    /// [`Error::Config`] when a file cannot be written or the path contains a NUL byte.
    pub fn create(path: &Path, options: &Options) -> Result<Self, Error> {
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Config { path, source }
        };
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(fail(path))?,
        }
        let text = options.text();
        for name in FILES {
            let file = path.join(name);
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&file)
                .and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()))
                .map_err(fail(&file))?;
        }
        Self::open(path)
    }

    /// Uses a directory that [`ConfigDir::create`] made, perhaps in another process.
    ///
    /// # Errors
    /// [`Error::Config`] when it is not there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Config { path: path.to_path_buf(), source };
        let path = path.canonicalize().map_err(fail)?;
        let raw = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| fail(io::ErrorKind::InvalidInput.into()))?;
        Ok(Self { path, raw, notes: None })
    }

    /// Has CRIU read a file in place of its notes of the kernel ([`super::MemoryApart`]).
    ///
    /// # Errors
    /// [`Error::Config`] when the path contains a NUL byte.
    pub fn with_notes(mut self, notes: Option<&Path>) -> Result<Self, Error> {
        let raw = |path: &Path| {
            CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Config {
                path: path.to_path_buf(),
                source: io::ErrorKind::InvalidInput.into(),
            })
        };
        self.notes = notes.map(raw).transpose()?;
        Ok(self)
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `command` (an OCI runtime) run with these options, in a session and a mount namespace of
    /// its own, ahead of others for the processor, since connections wait for it, and with as many open
    /// files as it may have. No Ctrl-C at our terminal reaches CRIU. The container's own tasks keep their
    /// priorities and limits, which are part of the images, and have sessions of their own.
    ///
    /// Where the host has no `/etc/criu` there is nothing to hide, and `CRIU_CONFIG_FILE` names
    /// our file instead. A failure shows up as the error of the spawn.
    pub fn attach(&self, command: &mut Command) {
        command.env(ENV_FILE, self.path.join(FILES[0]));
        let (raw, notes) = (self.raw.clone(), self.notes.clone());
        // SAFETY: between fork and exec the closure makes a few system calls on strings that
        // were prepared before the fork; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                // Where it is not allowed it is only slower.
                let _ = setsid();
                let _ = libc::setpriority(libc::PRIO_PROCESS, 0, URGENT);
                let _ = open(SESSION_NICENESS, OFlag::O_WRONLY, Mode::empty())
                    .and_then(|file| write(&file, URGENT_SESSION));
                let _ = use_hard_limit();
                mount_config(&raw)?;
                if let Some(notes) = &notes {
                    let bind = MsFlags::MS_BIND;
                    mount(Some(&**notes), NOTES, None::<&CStr>, bind, None::<&CStr>)?;
                }
                Ok(())
            });
        }
    }
}

/// Gives the calling process (single-threaded: a child between fork and exec) a mount namespace
/// of its own in which `dir` lies over `/etc/criu`. Prefer [`ConfigDir::attach`].
///
/// The new namespace is a *slave* of the host's, not private: what the runtime mounts never
/// leaks out, yet what the host unmounts meanwhile is not kept busy here, and a volume with
/// `rslave` propagation that CRIU restores from here goes on following the host.
///
/// Where `/etc/criu` does not exist nothing is mounted, and `CRIU_CONFIG_FILE` must name the
/// options; then no `crun.conf` or `runc.conf` can exist that would override it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOENT when `dir` is not there although `/etc/criu` is.
pub fn mount_config(dir: &CStr) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&CStr>)?;
    match mount(Some(dir), SYSTEM_DIR, None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>) {
        Err(Errno::ENOENT) if !is_there(SYSTEM_DIR) => Ok(()),
        other => other,
    }
}

/// Returns whether a path exists; no allocation.
fn is_there(path: &CStr) -> bool {
    nix::sys::stat::stat(path).is_ok()
}

/// Returns the most TCP connections that a container can have for a CRIU that this process starts. CRIU lifts the
/// limit that it inherits if it may, which takes CAP_SYS_RESOURCE (`rlimit_unlimit_nofile` in
/// `criu/util.c`).
#[must_use]
pub fn most_connections() -> u64 {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let lifted =
        has_sys_resource().then(|| fs::read_to_string(MOST_FILES).ok()?.trim().parse().ok());
    hard.max(lifted.flatten().unwrap_or(0)).saturating_sub(BESIDE)
}

/// Lets the calling process and its programs use what they may have. Where CRIU cannot lift its limit,
/// many hosts have one of 1,024 files that could be more.
fn use_hard_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// Returns whether this process and its programs have CAP_SYS_RESOURCE.
#[must_use]
pub fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> SYS_RESOURCE & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn text_names_every_option_that_is_on() {
        let watched = vec!["/srv/a".into()];
        let options = Options { skip_in_flight: true, ghost_limit: 77, watched, ..Options::dump() };
        let text = options.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"network-lock skip"));
        assert!(lines.contains(&"manage-cgroups=ignore"));
        assert!(!Options::restore().text().contains("manage-cgroups"));
        assert!(lines.contains(&"tcp-established"));
        assert!(lines.contains(&"skip-in-flight"));
        assert!(lines.contains(&"ghost-limit 77"));
        assert!(lines.contains(&"irmap-scan-path /srv/a"));
        assert!(!lines.contains(&"shell-job"));
        assert!(!text.contains("--"));
    }

    #[test]
    fn directory_is_private_holds_all_names_and_can_be_made_twice() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("criu");
        ConfigDir::create(&path, &Options::restore()).unwrap();
        let dir = ConfigDir::create(&path, &Options::dump()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for name in FILES {
            assert_eq!(
                fs::read_to_string(dir.path().join(name)).unwrap(),
                Options::dump().text(),
                "{name}"
            );
        }
        assert!(ConfigDir::open(&parent.path().join("absent")).is_err());
    }

    #[test]
    fn the_limit_is_that_of_criu() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let all: u64 = fs::read_to_string(MOST_FILES).unwrap().trim().parse().unwrap();
        let expected = if has_sys_resource() { all.max(hard) } else { hard };
        assert_eq!(most_connections(), expected - BESIDE);
    }
}
