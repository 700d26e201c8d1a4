//! A relay between an OCI runtime and CRIU. It holds the runtime's request back until the gate is opened, and freezes
//! the restored tasks before CRIU resumes them.
//!
//! CRIU has started, and waits for its request, while the container still runs. Before CRIU resumes restored tasks, it
//! notifies its client (`pre-resume`, `criu/cr-restore.c`) and waits for an answer. At that moment the tasks are stopped
//! by ptrace(2), on their way back from the restorer. A cgroup whose `cgroup.freeze` is set then counts as frozen at
//! once, and the tasks enter the freezer when CRIU detaches from them (`kernel/cgroup/freezer.c`): none of them executes
//! an instruction of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{Shutdown, getsockopt, shutdown};

use super::rpc;
use crate::seqpacket::{receive, receive_with};

/// The socket of the relay, in the gate's directory.
pub(super) const SOCKET: &str = "relay";
/// CRIU's word for the moment before it lets restored tasks go.
const PRE_RESUME: &str = "pre-resume";

/// What is done to a container while it is restored. Called from the relay's threads.
pub trait Attend: Send + Sync {
    /// Notes that a process works on the restore: CRIU, or the container's first one. Called again and again.
    fn at_work(&self, process: i32);

    /// Freezes the restored tasks, given their first process and CRIU's.
    ///
    /// # Errors
    /// They cannot be frozen.
    fn freeze(&self, first: i32, criu: i32) -> io::Result<()>;
}

/// A relay. Dropped, it ends every conversation.
pub(super) struct Relay {
    state: Arc<State>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

struct State {
    phase: Mutex<Phase>,
    changed: Condvar,
    attend: Box<dyn Attend>,
}

#[derive(Debug, Default)]
struct Phase {
    is_reached: bool,
    is_open: bool,
    lazy_pages: bool,
    is_over: bool,
    /// Descriptors of conversations, shut down at the end.
    open: Vec<OwnedFd>,
}

impl Relay {
    /// Listens in the gate's directory.
    pub(super) fn start(dir: &Path, attend: Box<dyn Attend>) -> io::Result<Self> {
        let listener = UnixListener::bind(dir.join(SOCKET))?;
        let state = Arc::new(State { phase: Mutex::default(), changed: Condvar::new(), attend });
        let shared = Arc::clone(&state);
        // It ends with this process at the latest; its socket goes with the directory.
        thread::Builder::new().name("criu-relay".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if shared.phase().is_over {
                    return;
                }
                let state = Arc::clone(&shared);
                let conversation = move || {
                    // A conversation that breaks is seen by the runtime.
                    let _ = state.converse(&stream);
                };
                let _ = thread::Builder::new().name("criu-relay".to_owned()).spawn(conversation);
            }
        })?;
        Ok(Self { state })
    }

    /// Returns whether a request waits.
    pub(super) fn is_reached(&self) -> bool {
        self.state.phase().is_reached
    }

    /// Waits until a request waits; `false` when that took too long or `ended` says that none will come.
    pub(super) fn await_reached(
        &self,
        limit: Duration,
        look_every: Duration,
        mut ended: impl FnMut() -> bool,
    ) -> bool {
        let end = Instant::now() + limit;
        let mut phase = self.state.phase();
        loop {
            if phase.is_reached {
                return true;
            }
            if Instant::now() >= end || ended() {
                return false;
            }
            let waited = self.state.changed.wait_timeout(phase, look_every);
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the request that waits, and later ones, go on. With `lazy_pages`, restores get memory that follows.
    pub(super) fn open(&self, lazy_pages: bool) {
        let mut phase = self.state.phase();
        phase.is_open = true;
        phase.lazy_pages = lazy_pages;
        drop(phase);
        self.state.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut phase = self.state.phase();
        phase.is_over = true;
        phase.open.drain(..).for_each(|descriptor| end(&descriptor));
        self.state.changed.notify_all();
    }
}

/// Ends a connection, whichever copies of its descriptor there are.
fn end(descriptor: &OwnedFd) {
    // One that has ended already is fine.
    let _ = shutdown(descriptor.as_raw_fd(), Shutdown::Both);
}

impl State {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        // A phase is whole between any two statements of this file.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the two sockets of a conversation and passes messages on until one side closes.
    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        let (runtime, criu) = receive_sockets(stream)?;
        {
            let mut phase = self.phase();
            phase.open.push(runtime.try_clone()?);
            phase.open.push(criu.try_clone()?);
            if phase.is_over {
                return Ok(());
            }
        }
        let outcome = self.pass_on(&runtime, &criu);
        end(&runtime);
        end(&criu);
        outcome
    }

    fn pass_on(&self, runtime: &OwnedFd, criu: &OwnedFd) -> io::Result<()> {
        let mut pid = None;
        loop {
            let mut sides = [
                PollFd::new(runtime.as_fd(), PollFlags::POLLIN),
                PollFd::new(criu.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut sides, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.map(drop)?,
            }
            let [from_runtime, from_criu] = sides.map(|side| side.any().unwrap_or(true));
            if from_runtime {
                let Some(mut message) = receive(runtime)? else { break };
                if rpc::is_operation(&message.bytes) {
                    if !self.hold_back() {
                        break;
                    }
                    self.attend.at_work(getsockopt(criu, PeerCredentials)?.pid());
                    if self.phase().lazy_pages {
                        message.bytes = rpc::with_lazy_pages(&message.bytes);
                    }
                }
                message.send(criu)?;
            }
            if from_criu {
                let Some(message) = receive(criu)? else { break };
                if let Some(told) = rpc::notification(&message.bytes) {
                    pid = told.pid.or(pid);
                    if let Some(pid) = pid {
                        self.attend.at_work(pid);
                    }
                    if told.script == PRE_RESUME {
                        self.freeze(pid, getsockopt(criu, PeerCredentials)?.pid())?;
                    }
                }
                message.send(runtime)?;
            }
        }
        Ok(())
    }

    /// Waits until the gate is opened; `false` when it never will be.
    fn hold_back(&self) -> bool {
        let mut phase = self.phase();
        phase.is_reached = true;
        self.changed.notify_all();
        while !phase.is_open && !phase.is_over {
            phase = self.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
        }
        phase.is_open && !phase.is_over
    }

    /// Freezes what CRIU is about to let go. CRIU does not stop for a failure at this moment, so tasks that
    /// cannot be frozen are killed: nothing of a copy may run before it is the container.
    fn freeze(&self, pid: Option<i32>, criu: i32) -> io::Result<()> {
        let Some(pid) = pid else {
            return Err(io::Error::other("CRIU has not named the restored process"));
        };
        let frozen = self.attend.freeze(pid, criu);
        if frozen.is_err() {
            // SAFETY: kill(2) takes numbers alone. The process is stopped by CRIU, so it is the one meant.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        frozen
    }
}

fn receive_sockets(stream: &UnixStream) -> io::Result<(OwnedFd, OwnedFd)> {
    let message = receive_with(stream.as_raw_fd(), 1)?;
    let mut descriptors =
        message.map(|message| message.descriptors).unwrap_or_default().into_iter();
    match (descriptors.next(), descriptors.next()) {
        (Some(runtime), Some(criu)) => Ok((runtime, criu)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::divert::divert;
    use super::*;
    use crate::seqpacket::Message;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::Read;
    use std::sync::atomic::{AtomicI32, Ordering};

    const RESTORE: &[u8] = &[0x08, 2, 0x12, 0];
    const LIMIT: Duration = Duration::from_secs(10);

    /// Keeps the last process that was at work, and the one that was frozen.
    #[derive(Default)]
    struct Seen {
        at_work: Arc<AtomicI32>,
        frozen: Arc<AtomicI32>,
    }

    impl Attend for Seen {
        fn at_work(&self, process: i32) {
            self.at_work.store(process, Ordering::SeqCst);
        }

        fn freeze(&self, first: i32, _criu: i32) -> io::Result<()> {
            self.frozen.store(first, Ordering::SeqCst);
            Ok(())
        }
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    /// Returns a runtime's end, which has sent a request, and CRIU's, with a relay between them.
    fn relayed(dir: &Path, request: &[u8]) -> (OwnedFd, OwnedFd) {
        let (runtime, service) = pair();
        message(request).send(&runtime).unwrap();
        divert(dir, service.as_raw_fd()).unwrap();
        (runtime, service)
    }

    fn message(bytes: &[u8]) -> Message {
        Message { bytes: bytes.to_vec(), descriptors: Vec::new() }
    }

    fn notify(script: &str, pid: Option<u8>) -> Vec<u8> {
        let mut inner = vec![0x0a, script.len() as u8];
        inner.extend(script.bytes());
        inner.extend(pid.into_iter().flat_map(|pid| [0x10, pid]));
        [&[0x08, 4, 0x10, 1, 0x2a, inner.len() as u8][..], &inner].concat()
    }

    #[test]
    fn a_request_waits_and_the_restored_tasks_are_frozen_before_the_last_answer() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Seen::default();
        let (frozen, at_work) = (Arc::clone(&seen.frozen), Arc::clone(&seen.at_work));
        let relay = Relay::start(dir.path(), Box::new(seen)).unwrap();
        let (runtime, criu) = relayed(dir.path(), RESTORE);
        assert!(relay.await_reached(LIMIT, Duration::from_millis(1), || false));
        let mut sides = [PollFd::new(criu.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut sides, 50_u16).unwrap(), 0, "the request is held back");
        assert_eq!(at_work.load(Ordering::SeqCst), 0, "nobody works yet");
        relay.open(false);
        assert_eq!(receive(&criu).unwrap().unwrap().bytes, RESTORE);

        let (mut reader, writer) = io::pipe().unwrap();
        let told = notify("orphan-pts-master", None);
        Message { bytes: told.clone(), descriptors: vec![writer.into()] }.send(&criu).unwrap();
        let heard = receive(&runtime).unwrap().unwrap();
        assert_eq!(heard.bytes, told);
        assert_eq!(heard.descriptors.len(), 1, "descriptors come along");
        drop(heard);
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "and nobody keeps them");

        for (script, pid) in [("post-restore", Some(77)), ("pre-resume", None)] {
            assert_eq!(frozen.load(Ordering::SeqCst), 0, "{script}");
            message(&notify(script, pid)).send(&criu).unwrap();
            assert_eq!(receive(&runtime).unwrap().unwrap().bytes, notify(script, pid));
            message(b"\x08\x04\x18\x01").send(&runtime).unwrap();
            assert_eq!(receive(&criu).unwrap().unwrap().bytes, b"\x08\x04\x18\x01");
        }
        assert_eq!(frozen.load(Ordering::SeqCst), 77);
        assert_eq!(at_work.load(Ordering::SeqCst), 77);
        drop(criu);
        assert!(receive(&runtime).unwrap().is_none(), "CRIU's end is the runtime's end");
    }

    #[test]
    fn a_relay_that_is_dropped_ends_who_waits() {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::start(dir.path(), Box::new(Seen::default())).unwrap();
        let (runtime, criu) = relayed(dir.path(), RESTORE);
        assert!(relay.await_reached(LIMIT, Duration::from_millis(1), || false));
        drop(relay);
        assert!(receive(&criu).unwrap().is_none());
        assert!(receive(&runtime).unwrap().is_none());
    }

    #[test]
    fn other_requests_go_on_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::start(dir.path(), Box::new(Seen::default())).unwrap();
        let (_runtime, criu) = relayed(dir.path(), &[0x08, 10]);
        assert_eq!(receive(&criu).unwrap().unwrap().bytes, [0x08, 10]);
        assert!(!relay.is_reached());
    }
}
