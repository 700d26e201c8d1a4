//! The holder: it has the descriptors of the server as well, and kills the container if the server is killed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::HOLD;
use crate::cgroup::Cgroup;
use crate::seqpacket::{self, Message};

/// A descriptor to hold comes with it.
const DESCRIPTOR: u8 = b'F';
/// Names the file of the lock.
const LOCK: u8 = b'L';
/// Names the container: its first process and its ID follow.
const CONTAINER: u8 = b'C';
/// No page is missing any more.
const END: u8 = b'X';
/// Says nothing: whether it can be sent tells whether the holder is there.
const PROBE: u8 = b'?';
/// How long killed tasks may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// The holder, seen from the server. Dropped without [`Holder::end`], it kills the container.
#[derive(Debug)]
pub(super) struct Holder {
    socket: OwnedFd,
    child: Child,
    container: Option<(i32, String)>,
    is_gone: bool,
}

impl Holder {
    /// Starts a holder.
    pub(super) fn start() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (socket, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        let child = Command::new("/proc/self/exe")
            .arg(OsStr::new(HOLD))
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { socket, child, container: None, is_gone: false })
    }

    /// Tells it something. If it was killed, serving goes on without it: to end would close the last descriptors.
    fn tell(&mut self, message: &Message) {
        if let Err(error) = message.send(&self.socket)
            && !std::mem::replace(&mut self.is_gone, true)
        {
            eprintln!("netmig-shim: the holder of pages is gone: {error}");
        }
    }

    /// Gives it a descriptor, which stays open here.
    pub(super) fn hold(&mut self, descriptor: impl AsFd) -> io::Result<()> {
        let descriptors = vec![descriptor.as_fd().try_clone_to_owned()?];
        self.tell(&Message { bytes: vec![DESCRIPTOR], descriptors });
        Ok(())
    }

    /// Gives it the lock, and the file to be removed if this process is killed.
    pub(super) fn hold_lock(&mut self, lock: impl AsFd, path: &Path) -> io::Result<()> {
        self.hold(lock)?;
        let bytes = [&[LOCK][..], path.as_os_str().as_bytes()].concat();
        self.tell(&Message { bytes, descriptors: Vec::new() });
        Ok(())
    }

    /// Names the container that is to be killed if this process is.
    pub(super) fn name_container(&mut self, pid: i32, id: &str) {
        self.container = Some((pid, id.to_owned()));
        let mut bytes = vec![CONTAINER];
        bytes.extend(format!("{pid} {id}").bytes());
        self.tell(&Message { bytes, descriptors: Vec::new() });
    }

    /// Has it close everything, and waits until it has.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.tell(&Message { bytes: vec![END], descriptors: Vec::new() });
        self.child.wait().map(drop)
    }

    /// Kills the container if the holder cannot: this process is about to end before all pages are in place.
    pub(super) fn fail(&mut self) {
        self.tell(&Message { bytes: vec![PROBE], descriptors: Vec::new() });
        if let (true, Some((pid, id))) = (self.is_gone, &self.container)
            && let Err(error) = kill(*pid, id)
        {
            eprintln!("netmig-shim: container {id} could not be killed: {error}");
        }
    }
}

/// Runs as the holder, with the socket as standard input.
pub(super) fn run() -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    super::serve::spare_from_oom_killer();
    match hold(&socket)? {
        Outcome::Ended => Ok(()),
        Outcome::Killed { container: Some((pid, id)), held, lock } => {
            eprintln!(
                "netmig-shim: what puts pages of memory into container {id} was killed before all were in place; \
                 killing the container, which would go on with empty pages"
            );
            let killed = kill(pid, &id);
            drop(held);
            if let Some(lock) = lock {
                fs::remove_file(lock)?;
            }
            killed
        }
        // It is frozen, and the agent, which has seen the same, removes it.
        Outcome::Killed { container: None, held, lock } => {
            drop(held);
            lock.map_or(Ok(()), fs::remove_file)
        }
    }
}

/// Kills a container.
fn kill(pid: i32, id: &str) -> io::Result<()> {
    Cgroup::of_pid(pid, id)
        .and_then(|cgroup| cgroup.kill(Instant::now() + KILLED))
        .map_err(io::Error::other)
}

/// How the server has ended.
#[derive(Debug)]
enum Outcome {
    /// No page is missing.
    Ended,
    /// It was killed.
    Killed {
        /// The first process of its container and the ID.
        container: Option<(i32, String)>,
        /// What keeps the processes waiting.
        held: Vec<OwnedFd>,
        /// The file of the lock.
        lock: Option<PathBuf>,
    },
}

/// Holds what comes until the server ends.
fn hold(socket: &OwnedFd) -> io::Result<Outcome> {
    let mut held = Vec::new();
    let mut container = None;
    let mut lock = None;
    while let Some(Message { bytes, descriptors }) = seqpacket::receive(socket)? {
        held.extend(descriptors);
        match bytes.split_first() {
            Some((&CONTAINER, named)) => {
                let named = std::str::from_utf8(named).unwrap_or_default();
                let (pid, id) = named.split_once(' ').unwrap_or_default();
                container = pid.parse().ok().map(|pid| (pid, id.to_owned()));
            }
            Some((&LOCK, path)) => lock = Some(PathBuf::from(OsStr::from_bytes(path))),
            Some((&END, _)) => return Ok(Outcome::Ended),
            _ => {}
        }
    }
    Ok(Outcome::Killed { container, held, lock })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn told(messages: &[(u8, &str)]) -> Outcome {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (server, holder) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        for (kind, text) in messages {
            let descriptors = match *kind {
                DESCRIPTOR => vec![File::open("/dev/null").unwrap().into()],
                _ => Vec::new(),
            };
            let bytes = [&[*kind][..], text.as_bytes()].concat();
            Message { bytes, descriptors }.send(&server).unwrap();
        }
        drop(server);
        hold(&holder).unwrap()
    }

    #[test]
    fn a_server_that_is_killed_leaves_its_descriptors_and_the_name() {
        let told_all =
            [(DESCRIPTOR, ""), (LOCK, "/run/x"), (CONTAINER, "17 abc"), (DESCRIPTOR, "")];
        let Outcome::Killed { container, held, lock } = told(&told_all) else { panic!() };
        assert_eq!(container, Some((17, "abc".to_owned())));
        assert_eq!(held.len(), 2);
        assert_eq!(lock, Some("/run/x".into()));
        assert!(matches!(told(&[]), Outcome::Killed { container: None, .. }));
        assert!(matches!(told(&[(DESCRIPTOR, ""), (END, "")]), Outcome::Ended));
    }
}
