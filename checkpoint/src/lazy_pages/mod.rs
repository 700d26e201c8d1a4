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
//!                                     └── the same descriptors ──► holder
//! ```
//!
//! When the last descriptor of a userfaultfd is closed, its process gets empty pages in place of those that it lacks
//! (`userfaultfd_release` in `fs/userfaultfd.c`). So the holder, a process of its own, has all of them as well. If the
//! server is killed, the processes wait, and the holder kills them: memory that is silently wrong is worse than a
//! container that ends. Neither depends on the agent, and both are the last that the kernel ends for lack of memory.
//!
//! Pages may still be at the source (post-copy). The server knows which, and asks for them by the agent
//! ([`source_link`](SourceLink)): those first that a process waits for, which waits until they have come. The agent may end and
//! be replaced.

mod arguments;
mod at_source;
mod client;
mod hold;
mod process;
mod serve;
mod source_link;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

pub use arguments::fetch_arguments;
pub use client::{LazyPages, Listening};
pub use source_link::{Lane, Said, SourceLink, source_link_path};

/// The first argument of the shim that makes it the server.
const SERVE: &str = "lazy-pages";
/// The first argument of the shim that makes it the holder.
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

/// Returns whether a program's arguments, without its name, ask for a process of this module.
#[must_use]
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|first| first == SERVE || first == HOLD)
}

/// Runs as the process that the arguments ask for.
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
        [what] if what == HOLD => hold::run(),
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
    crate::userfault::is_supported()
}

/// Returns the file that is locked while pages of a container's memory are missing.
#[must_use]
pub fn lock_path(run: &Path, id: &str) -> PathBuf {
    run.join(LOCKS).join(id)
}

/// Returns whether pages of a container's memory are missing still. A dump would not have them.
///
/// # Errors
/// The lock cannot be looked at.
pub fn is_under_way(run: &Path, id: &str) -> io::Result<bool> {
    let file = match File::open(lock_path(run, id)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
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
