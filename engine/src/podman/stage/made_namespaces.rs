//! The network namespaces that podman makes for a container, as the kernel tells of them.
//!
//! podman makes a file of a random name, puts the new namespace there, and has netavark connect it (`newNS`,
//! `pkg/netns/netns_linux.go` in `go.podman.io/common`). Killed before netavark has connected it, podman leaves a namespace that
//! nothing tells from another's. So the files are noted that this very podman makes, while it does: fanotify(7) names the process
//! that has closed a file after writing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use tokio::task::spawn_blocking;

use super::lost_network::{NAMESPACES, PREFIX, processes, read_bounded};
use super::work_dir::WorkDir;
use crate::podman::database::knows_text;
use crate::podman::{Error as PodmanError, Info};

/// Holds their paths, one in a line.
const FILE: &str = "namespaces";
/// Between two looks at what the kernel has told, while podman makes a container.
const NOTE_EVERY: Duration = Duration::from_millis(2);
/// How long netavark may take whose podman was killed.
const CONNECTED: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Notes which namespaces a podman makes.
#[derive(Debug)]
pub(super) struct NamespaceWatch {
    events: Fanotify,
    podman: i32,
}

impl NamespaceWatch {
    /// Begins before podman can make any. `None` where the kernel does not tell, or podman has ended.
    pub(super) fn begin(podman: Option<u32>) -> Option<Self> {
        let podman = i32::try_from(podman?).ok()?;
        match watch() {
            Ok(events) => Some(Self { events, podman }),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not tell which network namespaces podman makes");
                None
            }
        }
    }

    /// Notes them as they come, and never ends.
    pub(super) async fn note(&self, work: &WorkDir) {
        loop {
            self.note_made(work);
            tokio::time::sleep(NOTE_EVERY).await;
        }
    }

    /// Notes those that were made until now.
    pub(super) fn note_made(&self, work: &WorkDir) {
        loop {
            let events = match self.events.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                // There are no more.
                Err(_) => return,
            };
            for event in events.iter().filter(|event| event.pid() == self.podman) {
                let path = event.fd().and_then(|file| {
                    fs::read_link(format!(
                        "/proc/self/fd/{}",
                        std::os::fd::AsRawFd::as_raw_fd(&file)
                    ))
                    .ok()
                });
                if let Some(path) = path.filter(|path| is_podmans(path))
                    && let Err(error) = note(work, &path)
                {
                    tracing::warn!(path = %path.display(), %error, "a network namespace is not noted");
                }
            }
        }
    }
}

fn watch() -> io::Result<Fanotify> {
    // podman makes it with its first namespace, in the same way.
    fs::create_dir_all(NAMESPACES)?;
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let fanotify = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
    let what = MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_EVENT_ON_CHILD;
    fanotify.mark(MarkFlags::FAN_MARK_ADD, what, nix::fcntl::AT_FDCWD, Some(NAMESPACES))?;
    Ok(fanotify)
}

fn note(work: &WorkDir, path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).open(work.path(FILE))?;
    file.write_all(format!("{}\n", path.display()).as_bytes())
}

/// Returns whether a path is that of a namespace as podman names them.
fn is_podmans(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.parent() == Some(Path::new(NAMESPACES))
        && name.strip_prefix(PREFIX).is_some_and(|id| {
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        })
}

/// Returns whether any was made for a working directory.
pub(super) fn are_noted(work: &WorkDir) -> bool {
    work.path(FILE).exists()
}

/// Waits until nobody uses the namespaces that a podman has made: its netavark goes on when podman is killed, and connects them. What
/// is in use for longer stays so.
pub(super) async fn wait_unused(work: &WorkDir) {
    let give_up = Instant::now() + CONNECTED;
    for path in noted(work) {
        while path.exists() && Instant::now() < give_up {
            let path = path.clone();
            if !spawn_blocking(move || is_in_use(&path)).await.unwrap_or(false) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Returns the paths that were noted.
fn noted(work: &WorkDir) -> Vec<PathBuf> {
    let noted = read_bounded(&work.path(FILE)).unwrap_or_default();
    let noted = String::from_utf8_lossy(&noted);
    noted.lines().map(PathBuf::from).filter(|path| is_podmans(path)).collect()
}

/// Removes the namespaces that a podman has made and that are nobody's, once the container is gone. One that a container names,
/// that a process lives in or has open, or that is not to be told of stays. Blocks the calling thread.
///
/// # Errors
/// [`PodmanError::Database`] when podman's database cannot be read.
pub(super) fn give_back(info: &Info, work: &WorkDir) -> Result<(), PodmanError> {
    for path in noted(work) {
        // Nothing is left of most: podman has removed them with the container.
        let Ok(file) = path.symlink_metadata() else { continue };
        if !file.is_file() || knows_text(info, &path.to_string_lossy())? || is_in_use(&path) {
            tracing::warn!(path = %path.display(), "the network namespace is in use, and stays");
            continue;
        }
        match umount2(&path, MntFlags::MNT_DETACH) {
            // podman was killed before it had put the namespace there.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a network namespace stays");
                continue;
            }
        }
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the name of a network namespace stays");
        }
    }
    Ok(())
}

/// Returns whether a process lives in the namespace behind a file, or has it open.
fn is_in_use(path: &Path) -> bool {
    let Ok(meta) = File::open(path).and_then(|file| file.metadata()) else { return true };
    let wanted = (meta.dev(), meta.ino());
    let own = std::process::id().to_string();
    processes().is_none_or(|mut all| {
        all.any(|process| {
            let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            let links = files.map(|file| file.path()).filter(|_| !process.ends_with(&own));
            // Only links of the kernel's own are followed: others may lead to file systems that do not answer.
            let is_namespace = |link: &PathBuf| {
                fs::read_link(link).is_ok_and(|to| {
                    to.to_str()
                        .is_some_and(|to| to.starts_with("net:[") || is_podmans(Path::new(to)))
                })
            };
            let is_it = |link: PathBuf| {
                link.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == wanted)
            };
            is_it(process.join("ns/net")) || links.filter(is_namespace).any(is_it)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_podmans_are_taken() {
        let own = "/run/netns/netns-1a2b3c4d-0000-1111-2222-333344445555";
        assert!(is_podmans(Path::new(own)));
        for path in [
            "/run/netns/netns-",
            "/run/netns/mine",
            "/run/netns/netns-mine",
            "/run/netns/netns-1a (deleted)",
            "/run/netns/sub/netns-1a",
            "/etc/netns-1a",
            "netns-1a",
        ] {
            assert!(!is_podmans(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_namespace_with_processes_is_in_use() {
        assert!(is_in_use(Path::new("/proc/self/ns/net")));
        assert!(is_in_use(Path::new("/nonexistent")), "what cannot be looked at");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(!is_in_use(&file));
    }
}
