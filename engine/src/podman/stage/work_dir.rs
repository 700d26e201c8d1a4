//! The working directory of one staging.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::Error;
use checkpoint::cgroup::Cgroup;
use checkpoint::procfs::start_time;
use checkpoint::shim;

/// Holds the ID of the container that podman was told to make.
const OWNED: &str = "container";
/// Holds the container's cgroup.
const CGROUP: &str = "cgroup";
/// Holds the path of the file into which the runtime writes the ID of the first process.
const PID_FILE: &str = "pid-file";
/// Holds the path of conmon's socket for a terminal.
const CONSOLE: &str = "console";
/// Where cgroups of version 2 are mounted (file-hierarchy(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
/// Holds podman's process ID and start time.
const PODMAN: &str = "podman.pid";
/// Holds the shim's.
const SHIM: &str = "shim.pid";

/// How long killed processes may take to be gone.
const KILLED: Duration = Duration::from_secs(2);
/// Between two looks at them.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A directory of ours, mode 0700.
#[derive(Debug, Clone)]
pub(super) struct WorkDir {
    pub(super) dir: PathBuf,
}

impl WorkDir {
    /// Takes an empty or absent directory.
    pub(super) fn create(dir: &Path) -> Result<Self, Error> {
        let work = Self { dir: dir.to_path_buf() };
        if !dir.is_absolute() {
            return Err(work.fail(dir)(io::ErrorKind::InvalidInput.into()));
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let meta = fs::symlink_metadata(dir).map_err(work.fail(dir))?;
                let ours = meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw();
                if !ours || meta.mode() & 0o077 != 0 {
                    let source = io::Error::other("it is not a directory of ours with mode 0700");
                    return Err(work.fail(dir)(source));
                }
                if fs::read_dir(dir).map_err(work.fail(dir))?.next().is_some() {
                    return Err(Error::InUse { path: dir.to_path_buf() });
                }
            }
            other => other.map_err(work.fail(dir))?,
        }
        for name in ["tmp", "criu"] {
            let path = work.path(name);
            DirBuilder::new().mode(0o700).create(&path).map_err(work.fail(&path))?;
        }
        Ok(work)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Temporary files of podman.
    pub(super) fn tmp(&self) -> PathBuf {
        self.path("tmp")
    }

    /// CRIU's log.
    pub(super) fn criu(&self) -> PathBuf {
        self.path("criu")
    }

    pub(super) fn archive(&self) -> PathBuf {
        self.path("container.tar")
    }

    /// Puts the archive in its place, readable by root alone, in one step: podman may open it at any time.
    pub(super) fn put_archive(&self, archive: &[u8]) -> Result<(), Error> {
        let (new, path) = (self.path("container.tar.new"), self.archive());
        let put = || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(&new)?.write_all(archive)?;
            fs::rename(&new, &path)
        };
        put().map_err(self.fail(&path))
    }

    /// podman's output.
    pub(super) fn output(&self) -> PathBuf {
        self.path("podman.log")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path(shim::SOCKET)
    }

    pub(super) fn conmon(&self) -> PathBuf {
        self.path(shim::CONMON)
    }

    /// Lays the links through which podman calls the shim.
    pub(super) fn link(&self, shim: &Path, conmon: &Path) -> Result<(), Error> {
        for (target, name) in [(shim, shim::CONMON), (conmon, shim::REAL_CONMON)] {
            let path = self.path(name);
            symlink(target, &path).map_err(self.fail(&path))?;
        }
        Ok(())
    }

    /// Notes the container before podman is told to make it.
    pub(super) fn own(&self, id: &str) -> Result<(), Error> {
        let path = self.path(OWNED);
        fs::write(&path, id).map_err(self.fail(&path))
    }

    /// Whether podman was told to make this container.
    pub(super) fn owns(&self, id: &str) -> bool {
        read_short(&self.path(OWNED)).is_some_and(|owned| owned == id)
    }

    /// Notes podman's process.
    pub(super) fn note_podman(&self, pid: u32) -> Result<(), Error> {
        self.note_process(PODMAN, pid)
    }

    /// podman's process, if it is still there.
    pub(super) fn podman(&self) -> Option<Pid> {
        self.process(PODMAN)
    }

    /// Notes the shim's process.
    pub(super) fn note_shim(&self, pid: u32) -> Result<(), Error> {
        self.note_process(SHIM, pid)
    }

    /// The shim's process, if it is still there.
    pub(super) fn shim(&self) -> Option<Pid> {
        self.process(SHIM)
    }

    fn note_process(&self, name: &str, pid: u32) -> Result<(), Error> {
        let path = self.path(name);
        let start = i32::try_from(pid).ok().and_then(start_time).unwrap_or(0);
        fs::write(&path, format!("{pid} {start}")).map_err(self.fail(&path))
    }

    fn process(&self, name: &str) -> Option<Pid> {
        let text = read_short(&self.path(name))?;
        let (pid, start) = text.split_once(' ')?;
        let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
        (start_time(pid)? == start.parse::<u64>().ok()?).then(|| Pid::from_raw(pid))
    }

    /// Whether CRIU has begun to restore: it has opened its log.
    pub(super) fn restore_began(&self) -> bool {
        fs::read_dir(self.criu()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Notes the container's cgroup before the runtime makes it. systemd's scopes (a path with
    /// colons) go by themselves.
    pub(super) fn note_cgroup(&self, path: Option<&str>) -> Result<(), Error> {
        let file = self.path(CGROUP);
        fs::write(&file, path.unwrap_or_default()).map_err(self.fail(&file))
    }

    /// Kills what is in the container's cgroup and waits until it is gone. Absent means done.
    pub(super) async fn kill_cgroup(&self, id: &str) {
        let end = Instant::now() + KILLED;
        let pid = read_short(&self.path(PID_FILE)).and_then(|path| read_short(Path::new(&path)));
        if let Some(pid) = pid.and_then(|text| text.trim().parse().ok())
            && let Ok(cgroup) = Cgroup::of_pid(pid, id)
        {
            if let Err(error) = cgroup.kill(end) {
                tracing::warn!(id, %error, "a copy was not killed");
            }
            return;
        }
        // The runtime has not come so far as to name the first process.
        let Some(path) = read_short(&self.path(CGROUP)).and_then(|path| own_cgroup(&path, id))
        else {
            return;
        };
        // Kernels before 5.14 have no such file (cgroup-v2.rst, cgroup.kill).
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            return;
        }
        let events = path.join("cgroup.events");
        while fs::read_to_string(&events).is_ok_and(|text| text.contains("populated 1"))
            && Instant::now() < end
        {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Notes where the runtime will write the ID of the container's first process.
    pub(super) fn note_pid_file(&self, path: Option<&OsStr>) -> Result<(), Error> {
        let file = self.path(PID_FILE);
        fs::write(&file, path.unwrap_or_default().as_bytes()).map_err(self.fail(&file))
    }

    /// Removes the cgroup that a failed restore leaves, with what is in it: a runtime that fails after
    /// CRIU has succeeded, because a disk is full, leaves processes that podman knows nothing of. Absent
    /// means done.
    pub(super) async fn remove_cgroup(&self, id: &str) {
        let Some(path) = read_short(&self.path(CGROUP)) else { return };
        let Some(path) = own_cgroup(&path, id) else { return };
        if !path.exists() {
            return;
        }
        // Kernels before 5.14 have no such file (cgroup-v2.rst, cgroup.kill).
        let _ = fs::write(path.join("cgroup.kill"), "1");
        let end = Instant::now() + KILLED;
        let outcome = loop {
            match remove_empty(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                outcome => break outcome,
            }
        };
        if let Err(error) = outcome
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a cgroup stays");
        }
    }

    /// Removes conmon's directory for the container, which a failed start leaves
    /// (`/run/libpod/persist/ID`). Absent means done.
    pub(super) fn remove_persist(&self, id: &str) {
        let Ok(path) = fs::read_link(self.path(shim::PERSIST)) else { return };
        if path.is_absolute()
            && path.file_name().is_some_and(|name| name == id)
            && let Err(error) = fs::remove_dir_all(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "conmon's directory stays");
        }
    }

    /// Notes the socket on which conmon waits for the container's terminal.
    pub(super) fn note_console(&self, path: Option<&OsStr>) -> Result<(), Error> {
        let file = self.path(CONSOLE);
        fs::write(&file, path.unwrap_or_default().as_bytes()).map_err(self.fail(&file))
    }

    /// Removes conmon's socket, which stays when the runtime never connects. Absent means done.
    pub(super) fn remove_console(&self) {
        let Some(path) = read_short(&self.path(CONSOLE)).map(PathBuf::from) else { return };
        let name = path.file_name().and_then(OsStr::to_str);
        let is_socket = fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket());
        if name.is_some_and(|name| name.starts_with("conmon-term."))
            && is_socket
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "conmon's socket stays");
        }
    }

    /// What podman has printed.
    pub(super) fn printed(&self) -> String {
        let mut bytes = Vec::new();
        // No output is an answer too.
        let _ = File::open(self.output()).and_then(|f| f.take(64 << 10).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Removes the directory. Absent means done.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.fail(&self.dir)(e)),
            _ => Ok(()),
        }
    }

    pub(super) fn fail(&self, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::Work { path, source }
    }
}

/// Whether a process has ended. A zombie has: its parent may be an init that never reaps.
pub(super) fn is_gone(pid: Pid) -> bool {
    start_time(pid.as_raw()).is_none()
}

/// The directory of a container's own cgroup; `None` for anything else.
fn own_cgroup(path: &str, id: &str) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let own = !id.is_empty() && relative.file_name()?.to_str()?.ends_with(id);
    (plain && own).then(|| Path::new(CGROUPS).join(relative))
}

/// Removes a directory of directories. The kernel refuses for a cgroup with processes.
fn remove_empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

fn read_short(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m1");
        let work = WorkDir::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(WorkDir::create(&path), Err(Error::InUse { .. })));
        work.remove().unwrap();
        work.remove().unwrap();
        assert!(!path.exists());
        assert!(matches!(WorkDir::create(Path::new("relative")), Err(Error::Work { .. })));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(WorkDir::create(&file), Err(Error::Work { .. })));
    }

    #[test]
    fn only_the_noted_container_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::create(&dir.path().join("m")).unwrap();
        assert!(!work.owns("a7"));
        work.own("a7").unwrap();
        assert!(work.owns("a7") && !work.owns("a"));
    }

    #[test]
    fn only_a_cgroup_with_the_containers_id_is_ours() {
        let own = own_cgroup("/libpod_parent/libpod-a7", "a7").unwrap();
        assert_eq!(own, Path::new("/sys/fs/cgroup/libpod_parent/libpod-a7"));
        for path in ["", "/", "/a7/..", "/../a7", "machine.slice:libpod:a7", "/libpod-b8"] {
            assert_eq!(own_cgroup(path, "a7"), None, "{path}");
        }
        assert_eq!(own_cgroup("/libpod_parent", ""), None);
    }

    #[test]
    fn directories_with_anything_in_them_stay() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("sub/container")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        assert!(remove_empty(&top).is_err());
        fs::remove_file(top.join("file")).unwrap();
        fs::create_dir_all(top.join("sub")).unwrap();
        remove_empty(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn podman_is_known_again_by_its_start_time() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::create(&dir.path().join("m")).unwrap();
        assert_eq!(work.podman(), None);
        work.note_podman(std::process::id()).unwrap();
        assert!(work.podman().is_some());
        fs::write(work.path(PODMAN), format!("{} 1", std::process::id())).unwrap();
        assert_eq!(work.podman(), None);
        for text in ["", "x y", "1 1", "-5 0"] {
            fs::write(work.path(PODMAN), text).unwrap();
            assert_eq!(work.podman(), None);
        }
    }
}
