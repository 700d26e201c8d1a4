//! The server: it puts pages of the images into the processes, those first that a process waits for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Places;
use super::at_source::AtSource;
use super::client::{CONTAINER, GO, HELD, READY};
use super::event_log::EventLog;
use super::hold::{Holder, Side, Succession, kill};
use super::process_memory::Memories;
use crate::images::Pagemap;
use crate::page_ranges::PageRanges;
use crate::pidfd::PidFd;
use crate::realtime::{self, RealtimePriority};
use crate::seqpacket;
use crate::userfault::{Userfault, is_supported};

/// What CRIU says in place of a process when all are restored (`LAZY_PAGES_RESTORE_FINISHED` in `criu/uffd.c`).
const RESTORED: i32 = 0x5253_5446;
/// How long something that the kernel refuses for now is left alone, in milliseconds.
const LATER: u16 = 1;
/// How long the server puts pages in place that nothing waits for, before it leaves the processor to others.
const STRETCH: Duration = Duration::from_millis(2);
/// For how long it does, in milliseconds.
const REST: u16 = 1;
/// How long the server does without a holder that the kernel does not give it.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether a source can be asked that has pages, in milliseconds.
const LOOK_EVERY: u16 = 200;
/// The score of a process that the kernel ends last for lack of memory (proc(5)).
const LAST: &str = "-1000";

/// Runs as the server of one container. Its standard input brings orders, its standard output says that it listens.
pub(super) fn run(places: &Places<'_>) -> io::Result<()> {
    let Places { images, socket, lock, source_link, patience } = *places;
    if !is_supported() {
        return Ok(());
    }
    spare_from_oom_killer();
    let _held = super::lock(lock)?;
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    tell(READY)?;
    let mut server = Server {
        images: images.to_owned(),
        orders: Some(io::stdin().as_fd().try_clone_to_owned()?.into()),
        criu: None,
        is_restored: false,
        is_going: false,
        container: None,
        first: None,
        memories: Memories::new()?,
        succession: Succession::new()?,
        holder: None,
        retry_at: None,
    };
    // Without CRIU the restore has not begun, and there is nothing to lose.
    if server.accept(&listener)? {
        drop(listener);
        let served = AtSource::open(images, source_link, patience).and_then(|at_source| {
            server.memories.at_source = at_source;
            server.serve()
        });
        if served.is_err() {
            server.fail();
        }
        // Who finds no socket takes the pages for lost.
        let closed = server.memories.at_source.take().map_or(Ok(()), AtSource::close);
        served.and(closed)?;
    }
    unlock(lock)?;
    server.succession.end();
    Ok(())
}

/// Tells the agent something.
fn tell(word: &[u8]) -> io::Result<()> {
    let mut told = io::stdout();
    told.write_all(word)?;
    told.flush()
}

/// Removes the file of the lock, which this process has until it ends.
fn unlock(lock: &Path) -> io::Result<()> {
    match fs::remove_file(lock) {
        // The server before this one was killed right after it had removed it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Has the kernel end this process last when memory is short. Without the privilege for that, it is one among others.
fn spare_from_oom_killer() {
    let _ = fs::write("/proc/self/oom_score_adj", LAST);
}

struct Server {
    images: PathBuf,
    /// `None` once the agent has nothing more to say.
    orders: Option<File>,
    /// `None` once CRIU has sent everything.
    criu: Option<UnixStream>,
    is_restored: bool,
    /// Whether pages are put in place that nothing waits for.
    is_going: bool,
    /// The first process of the container and its ID, once it is restored.
    container: Option<(i32, String)>,
    /// That process.
    first: Option<PidFd>,
    memories: Memories,
    succession: Succession,
    /// What takes the place of this process, from the moment on at which the copy is restored. Before, it need not:
    /// nothing of the copy runs, and the agent removes it.
    holder: Option<Holder>,
    /// When a holder is started in place of one that could not be; `None` until there was one.
    retry_at: Option<Instant>,
}

impl Server {
    /// Waits for CRIU; returns `false` if the agent gives up before.
    fn accept(&mut self, listener: &UnixListener) -> io::Result<bool> {
        loop {
            let Some(orders) = &self.orders else { return Ok(false) };
            let (from_criu, from_agent) = {
                let mut sides = [
                    PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                    PollFd::new(orders.as_fd(), PollFlags::POLLIN),
                ];
                wait(&mut sides, PollTimeout::NONE)?;
                (sides[0].any().unwrap_or(true), sides[1].any().unwrap_or(true))
            };
            if from_criu {
                self.criu = Some(listener.accept()?.0);
                return Ok(true);
            }
            if from_agent && !self.take_orders()? {
                return Ok(false);
            }
        }
    }

    /// Serves until no process lacks a page.
    fn serve(&mut self) -> io::Result<()> {
        // On a busy host each page that a process waits for would wait for a processor, and one after another they add up.
        let _realtime = RealtimePriority::begin();
        let mut began = Instant::now();
        loop {
            if self.is_restored && self.memories.is_whole() && self.memories.has_told_end() {
                return Ok(());
            }
            let is_due = self.retry_at.is_some_and(|at| Instant::now() >= at);
            if self.memories.is_held && !self.memories.log.has_room()
                || self.holder.is_none() && is_due
            {
                self.renew_holder()?;
            }
            let is_going = self.is_restored && self.is_going && self.memories.has_pending();
            if is_going && began.elapsed() >= STRETCH {
                // Whoever waits for a page is heard meanwhile.
                self.look(REST.into())?;
                began = Instant::now();
            }
            let timeout = match (is_going, self.memories.is_refused(), &self.memories.at_source) {
                (true, ..) => PollTimeout::ZERO,
                (false, true, _) => LATER.into(),
                (false, false, Some(_)) => LOOK_EVERY.into(),
                (false, false, None) => PollTimeout::NONE,
            };
            self.look(timeout)?;
            self.memories.serve_faults()?;
            self.ask_source()?;
            if is_going && !self.memories.go_on()? {
                // Whatever refuses it now is over in a moment.
                self.look(LATER.into())?;
            }
            self.memories.forget_gone()?;
        }
    }

    /// Asks for pages that are at the source, if some are, as long as the container has not ended.
    fn ask_source(&mut self) -> io::Result<()> {
        let Some(at_source) = &mut self.memories.at_source else { return Ok(()) };
        let is_going = self.is_restored && self.is_going;
        at_source.ask(is_going);
        at_source.check_patience(is_going)?;
        if self.first.as_ref().map(PidFd::has_ended).transpose()?.unwrap_or_default() {
            self.memories.end_all();
        }
        Ok(())
    }

    /// Starts a holder in place of the one there is. The copy of this process that is the holder returns from here, too, when it has
    /// to serve: `true`. What was known before of who is to be heard counts no more then.
    fn renew_holder(&mut self) -> io::Result<bool> {
        let mut has_taken_over = false;
        loop {
            let log = std::mem::replace(&mut self.memories.log, EventLog::new()?);
            self.memories.is_held = true;
            match self.succession.start_holder() {
                Ok(Side::Server(holder)) => {
                    self.retry_at = Some(Instant::now());
                    if let Some(before) = self.holder.replace(holder) {
                        before.end();
                    }
                    return Ok(has_taken_over);
                }
                Ok(Side::Successor) => {
                    has_taken_over = true;
                    // Its descriptor was the former server's.
                    std::mem::forget(self.holder.take());
                    self.memories.take_over()?;
                    realtime::thread_began();
                    let (_, id) = self.container.as_ref().ok_or(io::ErrorKind::InvalidData)?;
                    if self.succession.is_exhausted() {
                        return Err(io::Error::other(format!("killed again and again, for {id}")));
                    }
                    eprintln!(
                        "netmig-shim: what puts pages of memory into container {id} was killed; its holder goes on"
                    );
                }
                Err(error) if self.retry_at.is_none() => return Err(error),
                Err(error) => {
                    // The log that the holder knows is full, so that it could not go on.
                    eprintln!("netmig-shim: there is no holder of pages: {error}");
                    drop(log);
                    self.retry_at = Some(Instant::now() + RETRY);
                    self.memories.is_held = false;
                    if let Some(before) = self.holder.take() {
                        before.end();
                    }
                    return Ok(has_taken_over);
                }
            }
        }
    }

    /// Kills the container, which would go on with empty pages: this process is about to end before all are in place.
    fn fail(&mut self) {
        if let Some((pid, id)) = &self.container {
            eprintln!("netmig-shim: killing container {id}, whose memory cannot be put in place");
            if let Err(error) = kill(*pid, id) {
                eprintln!("netmig-shim: container {id} could not be killed: {error}");
            }
        }
        self.succession.end();
    }

    /// Waits for events and orders, and follows them.
    fn look(&mut self, timeout: PollTimeout) -> io::Result<()> {
        let (from_agent, from_criu, has_no_holder, with_events, of_source) = {
            let side = |of| PollFd::new(of, PollFlags::POLLIN);
            let mut sides: Vec<PollFd<'_>> =
                self.memories.all().iter().map(|of| side(of.userfault.as_fd())).collect();
            let count = sides.len();
            sides.extend(self.orders.as_ref().map(|of| side(of.as_fd())));
            sides.extend(self.criu.as_ref().map(|of| side(of.as_fd())));
            sides.extend(self.holder.as_ref().map(|of| side(of.as_fd())));
            sides.extend(self.memories.at_source.iter().flat_map(AtSource::sides).map(side));
            wait(&mut sides, timeout)?;
            let mut ready = sides.iter().map(|side| side.any().unwrap_or(true));
            let with_events: Vec<usize> = ready
                .by_ref()
                .take(count)
                .enumerate()
                .filter_map(|(n, is)| is.then_some(n))
                .collect();
            let from_agent = self.orders.is_some() && ready.next().unwrap_or_default();
            let from_criu = self.criu.is_some() && ready.next().unwrap_or_default();
            let has_no_holder = self.holder.is_some() && ready.next().unwrap_or_default();
            (from_agent, from_criu, has_no_holder, with_events, ready.collect::<Vec<bool>>())
        };
        if has_no_holder && self.renew_holder()? {
            return Ok(());
        }
        if from_agent && !self.take_orders()? {
            // It stays open: the holder has the same descriptor by the same number.
            std::mem::forget(self.orders.take());
            self.is_going = true;
        }
        if from_criu {
            self.take_process()?;
        }
        if self.is_restored && self.container.is_some() && self.retry_at.is_none() {
            let has_taken_over = self.renew_holder()?;
            // What does not hear that will not wait for it either.
            let _ = tell(HELD);
            if has_taken_over {
                return Ok(());
            }
        }
        for process in with_events {
            self.memories.read_events(process)?;
        }
        self.memories.follow_agents(&of_source)
    }

    /// Follows the agent's orders; returns `false` when there will be no more.
    fn take_orders(&mut self) -> io::Result<bool> {
        let Some(orders) = &mut self.orders else { return Ok(false) };
        let mut bytes = [0; 256];
        let read = match orders.read(&mut bytes) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e),
        };
        let text = String::from_utf8_lossy(&bytes[..read]);
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [CONTAINER, pid, id] => {
                    let pid = pid.parse().map_err(io::Error::other)?;
                    self.container = Some((pid, (*id).to_owned()));
                    self.first = PidFd::open(pid).ok();
                }
                [GO] => {
                    self.is_going = true;
                    self.memories.decide();
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(read > 0)
    }

    /// Takes the next process that CRIU restores, or its word that all are restored.
    fn take_process(&mut self) -> io::Result<()> {
        let Some(criu) = &mut self.criu else { return Ok(()) };
        let mut number = [0; 4];
        match criu.read_exact(&mut number) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && self.is_restored => {
                self.criu = None;
                return Ok(());
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::other("CRIU ended before it had restored everything"));
            }
            other => other?,
        }
        let pid = i32::from_ne_bytes(number);
        if pid == RESTORED {
            self.is_restored = true;
            self.criu = None;
            return Ok(());
        }
        // A process that has ended has no memory.
        if pid < 0 {
            return Ok(());
        }
        let message = seqpacket::receive_with(criu.as_raw_fd(), 1)?;
        let descriptor = message.and_then(|message| message.descriptors.into_iter().next());
        let userfault = Userfault::new(descriptor.ok_or(io::ErrorKind::UnexpectedEof)?);
        let pagemap = Pagemap::read(&self.images, pid).map_err(io::Error::other)?;
        let file = OpenOptions::new().read(true).write(true).open(&pagemap.pages)?;
        let length = file.metadata()?.len();
        if pagemap.lazy.iter().any(|range| range.offset + (range.end - range.start) > length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.memories.add(userfault, PageRanges::new(&pagemap.lazy), Rc::new(file));
        Ok(())
    }
}

/// Waits for one of several descriptors; an interrupted wait ends early.
fn wait(sides: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(sides, timeout) {
        Err(Errno::EINTR) => Ok(()),
        other => other.map(drop).map_err(Into::into),
    }
}
