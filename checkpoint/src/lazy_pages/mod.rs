//! Restoring memory while the restored processes run ("lazy pages", <https://criu.org/Lazy_migration>), from images that
//! are on this host already.
//!
//! CRIU maps the private memory of the processes without filling it, and sends a userfaultfd (userfaultfd(2)) for each
//! process to a socket `lazy-pages.socket` in its working directory. Whatever touches a page that is not there waits until
//! the process at that socket has put the page in place. CRIU has such a process of its own. This one is ours for two
//! reasons: it gives the memory of the images back while it goes, and it cannot lose pages.
//!
//! ```text
//! agent ── LazyPages ─── orders ──► server ◄── userfaultfds ── CRIU, page faults ── container
//!                                     │
//!                                     └── the same descriptors, events, pages in place ──► holder
//! ```
//!
//! When the last descriptor of a userfaultfd is closed, its process gets empty pages in place of those that it lacks
//! (`userfaultfd_release` in `fs/userfaultfd.c`). So there is a second process with the same descriptors, the holder. If
//! the server is killed, the holder is the server and starts a holder of its own; if the holder is killed, the server
//! starts another one. Neither depends on the agent, and both are the last that the kernel ends for lack of memory. A
//! server that cannot go on (the images cannot be read, say) kills the container: memory that is silently wrong is
//! worse than a container that ends.
//!
//! Pages may still be at the source (post-copy). The server knows which, and asks for them by the agent
//! ([`source_link`](SourceLink)): those first that a process waits for, which waits until they have come. The agent may end and
//! be replaced. So may the server: a holder that takes its place ends the connections that it had with the agent, which
//! connects anew, and asks for what had not come.
//!
//! The file of the lock is removed when no page is missing any more. One that nobody has locked tells of lost pages.

mod agent_connection;
mod arguments;
mod at_source;
mod client;
mod event_log;
mod hold;
mod process_memory;
mod serve;
mod source_link;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::userfault;

pub use arguments::fetch_arguments;
pub use client::{LazyPages, Listening};
pub use source_link::{Lane, QUESTION_BYTES, QUESTION_RANGES, Said, SourceLink, source_link_path};

/// The first argument of the shim that makes it the server.
const SERVE: &str = "lazy-pages";
/// What a server calls itself, in place of that argument, as long as it is the holder.
const HOLD: &str = "hold-pages";
/// The socket to which CRIU sends, in its working directory (`LAZY_PAGES_SOCK_NAME` in `criu/uffd.c`).
pub const SOCKET: &str = "lazy-pages.socket";
/// The directory of the locks, in the run directory.
const LOCKS: &str = "lazy-pages";

/// Where the server finds what, from its arguments.
struct Places<'a> {
    /// The images.
    images: &'a Path,
    /// The socket for CRIU.
    socket: &'a Path,
    /// The file that is locked while pages are missing.
    lock: &'a Path,
    /// The socket for the agent, should pages be at the source.
    source_link: &'a Path,
    /// How long the container waits for a source that cannot be asked.
    patience: Duration,
}

/// Returns whether a program's arguments, without its name, ask for a server of pages.
#[must_use]
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|first| first == SERVE)
}

/// Runs as the server.
#[must_use]
pub fn run(arguments: &[OsString]) -> ExitCode {
    let outcome = match arguments {
        [what, images, socket, lock, source_link, patience] if what == SERVE => {
            let patience = patience.to_str().and_then(|seconds| seconds.parse().ok());
            let patience = Duration::from_secs(patience.unwrap_or(u64::MAX));
            let [images, socket, lock, source_link] =
                [images, socket, lock, source_link].map(Path::new);
            serve::run(&Places { images, socket, lock, source_link, patience })
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netmig-shim: pages of memory: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether this host's kernel can have memory put in place later.
#[must_use]
pub fn is_supported() -> bool {
    userfault::is_supported()
}

/// Returns the file that is locked while pages of a container's memory are missing.
#[must_use]
pub fn lock_path(run: &Path, id: &str) -> PathBuf {
    run.join(LOCKS).join(id)
}

/// What has become of a container's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All are in place.
    Whole,
    /// A server puts them in place.
    UnderWay,
    /// Nothing does, and some are missing.
    Lost,
}

/// Returns what has become of the pages of the container to which a lock belongs.
///
/// # Errors
/// The lock cannot be looked at.
pub fn state(lock: &Path) -> io::Result<State> {
    let file = match File::open(lock) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Whole),
        other => other?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        // A server that ends well removes the file before it ends.
        Ok(file) if file.metadata()?.nlink() == 0 => Ok(State::Whole),
        Ok(_) => Ok(State::Lost),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(State::UnderWay),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Returns whether pages of a container's memory are missing still. A dump would not have them.
///
/// # Errors
/// The lock cannot be looked at.
pub fn is_under_way(run: &Path, id: &str) -> io::Result<bool> {
    Ok(state(&lock_path(run, id))? == State::UnderWay)
}

/// Returns the containers that lack pages, by their IDs, and what becomes of them.
///
/// # Errors
/// The locks cannot be looked at.
pub fn unfinished(run: &Path) -> io::Result<Vec<(String, State)>> {
    let entries = match fs::read_dir(run.join(LOCKS)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Sockets of servers are there, too.
        if !entry.file_type()?.is_file() {
            continue;
        }
        let state = state(&entry.path())?;
        all.extend(entry.file_name().into_string().ok().map(|id| (id, state)));
    }
    all.retain(|(_, state)| *state != State::Whole);
    Ok(all)
}

/// Forgets that a container lacks pages: it has ended.
///
/// # Errors
/// The file cannot be removed.
pub fn forget_lost(run: &Path, id: &str) -> io::Result<()> {
    fs::remove_file(lock_path(run, id))
}

/// Takes the lock of a container whose pages are missing.
fn lock(path: &Path) -> io::Result<Flock<File>> {
    if let Some(directory) = path.parent() {
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_has_tells_of_lost_pages() {
        let run = tempfile::tempdir().unwrap();
        let path = lock_path(run.path(), "abc");
        assert_eq!(state(&path).unwrap(), State::Whole);
        assert!(unfinished(run.path()).unwrap().is_empty());
        let held = lock(&path).unwrap();
        let link = source_link_path(run.path(), "def");
        let _listener = std::os::unix::net::UnixListener::bind(link).unwrap();
        assert_eq!(state(&path).unwrap(), State::UnderWay);
        assert!(is_under_way(run.path(), "abc").unwrap());
        assert_eq!(unfinished(run.path()).unwrap(), [("abc".to_owned(), State::UnderWay)]);
        drop(held);
        assert_eq!(state(&path).unwrap(), State::Lost);
        assert_eq!(unfinished(run.path()).unwrap(), [("abc".to_owned(), State::Lost)]);
        forget_lost(run.path(), "abc").unwrap();
        assert_eq!(state(&path).unwrap(), State::Whole);
    }
}
