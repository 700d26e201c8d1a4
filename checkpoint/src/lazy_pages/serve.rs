//! The server: it puts pages of the images into the processes, those first that a process waits for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Places;
use super::at_source::AtSource;
use super::client::{CONTAINER, GO, READY};
use super::hold::Holder;
use super::process::Process;
use crate::images::{LazyRange, PAGE};
use crate::page_ranges::PageRanges;
use crate::pidfd::PidFd;
use crate::seqpacket;
use crate::userfault::{Copied, Event, Userfault, is_supported};

/// What CRIU says in place of a process when all are restored (`LAZY_PAGES_RESTORE_FINISHED` in `criu/uffd.c`).
const RESTORED: i32 = 0x5253_5446;
/// Bytes that are put in place for one page fault: what is beside a page is often needed next.
const AROUND: u64 = 64 << 10;
/// Bytes that are put in place at a time when nothing waits.
const CHUNK: u64 = 512 << 10;
/// How long something that the kernel refuses for now is left alone, in milliseconds.
const LATER: u16 = 1;
/// The score of a process that the kernel ends last for lack of memory (proc(5)).
const LAST: &str = "-1000";

/// How often it is looked whether a source can be asked that has pages, in milliseconds.
const LOOK_EVERY: u16 = 200;

/// Runs as the server of one container. Its standard input brings orders, its standard output says that it listens.
pub(super) fn run(places: &Places<'_>) -> io::Result<()> {
    let Places { images, socket, lock, source_link, patience } = *places;
    if !is_supported() {
        return Ok(());
    }
    spare_from_oom_killer();
    let held = super::lock(lock)?;
    let mut holder = Holder::start()?;
    holder.hold_lock(&*held, lock)?;
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    let mut told = io::stdout();
    told.write_all(READY)?;
    told.flush()?;
    let mut server = Server {
        images: images.to_owned(),
        orders: Some(io::stdin().as_fd().try_clone_to_owned()?.into()),
        criu: None,
        is_restored: false,
        is_going: false,
        is_decided: false,
        processes: Vec::new(),
        next: 0,
        buffer: vec![0; CHUNK as usize],
        container: None,
        at_source: None,
        holder,
    };
    if !server.accept(&listener)? {
        // The restore never began, so there is nothing to lose.
        server.holder.end()?;
        return fs::remove_file(lock);
    }
    drop(listener);
    server.at_source = AtSource::open(images, source_link, patience)?;
    let served = server.serve();
    let closed = server.at_source.take().map_or(Ok(()), AtSource::close);
    if let Err(error) = served {
        server.holder.fail();
        return Err(error);
    }
    server.holder.end()?;
    // The lock itself is kept until this process ends.
    fs::remove_file(lock)?;
    closed
}

/// Has the kernel end this process last when memory is short. Without the privilege for that, it is one among others.
pub(super) fn spare_from_oom_killer() {
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
    /// Whether the agent has ordered that.
    is_decided: bool,
    processes: Vec<Process>,
    /// The process whose turn it is.
    next: usize,
    buffer: Vec<u8>,
    /// The first process of the container.
    container: Option<PidFd>,
    /// Pages that are still at the source, if there were any.
    at_source: Option<AtSource>,
    holder: Holder,
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
        loop {
            let is_whole = self.processes.iter().all(Process::is_whole);
            if self.is_restored && is_whole && self.has_ended() {
                return Ok(());
            }
            let is_refused = self.processes.iter().any(|of| !of.faults.is_empty());
            let is_going =
                self.is_restored && self.is_going && self.processes.iter().any(Process::can_go_on);
            let timeout = match (is_going, is_refused, &self.at_source) {
                (true, ..) => PollTimeout::ZERO,
                (false, true, _) => LATER.into(),
                (false, false, Some(_)) => LOOK_EVERY.into(),
                (false, false, None) => PollTimeout::NONE,
            };
            self.look(timeout)?;
            for process in 0..self.processes.len() {
                let faults = std::mem::take(&mut self.processes[process].faults);
                for address in faults {
                    self.serve_fault(process, address)?;
                }
            }
            if let Some(at_source) = &mut self.at_source {
                let is_going = self.is_restored && self.is_going;
                at_source.ask(is_going);
                at_source.check_patience(is_going)?;
            }
            if is_going && !self.go_on()? {
                // Whatever refuses it now is over in a moment.
                self.look(LATER.into())?;
            }
            let has_ended = match &self.container {
                Some(container) if self.at_source.is_some() => container.has_ended()?,
                _ => false,
            };
            self.processes.retain(|process| !process.is_gone && !has_ended);
        }
    }

    /// Returns whether there is nothing more to say about pages at the source, once no process lacks a page.
    fn has_ended(&mut self) -> bool {
        let Some(at_source) = &mut self.at_source else { return true };
        // Nobody lacks what has not come: it was unmapped, or all have ended.
        let lives = !self.processes.is_empty();
        at_source.end(lives);
        // Of a copy that was given up nobody notes anything.
        at_source.is_noted() || !lives && !self.is_decided
    }

    /// Waits for events and orders, and follows them.
    fn look(&mut self, timeout: PollTimeout) -> io::Result<()> {
        let (from_agent, from_criu, with_events, of_source) = {
            let side = |of| PollFd::new(of, PollFlags::POLLIN);
            let mut sides: Vec<PollFd<'_>> =
                self.processes.iter().map(|of| side(of.userfault.as_fd())).collect();
            let count = sides.len();
            sides.extend(self.orders.as_ref().map(|of| side(of.as_fd())));
            sides.extend(self.criu.as_ref().map(|of| side(of.as_fd())));
            sides.extend(self.at_source.iter().flat_map(AtSource::sides).map(side));
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
            (from_agent, from_criu, with_events, ready.collect::<Vec<bool>>())
        };
        if from_agent && !self.take_orders()? {
            self.orders = None;
            self.is_going = true;
        }
        if from_criu {
            self.take_process()?;
        }
        for process in with_events {
            while let Some(event) = self.processes[process].userfault.event()? {
                self.follow(process, event)?;
            }
        }
        if let Some(at_source) = &mut self.at_source
            && at_source.follow(&of_source)?
        {
            self.processes.iter_mut().for_each(Process::look_again);
        }
        Ok(())
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
                    self.holder.name_container(pid, id);
                    self.container = PidFd::open(pid).ok();
                }
                [GO] => (self.is_going, self.is_decided) = (true, true),
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
        self.holder.hold(&userfault)?;
        self.processes.push(Process::read(userfault, &self.images, pid)?);
        Ok(())
    }

    /// Follows what a process does with its memory.
    fn follow(&mut self, process: usize, event: Event) -> io::Result<()> {
        let of = &mut self.processes[process];
        match event {
            Event::PageFault { address } => of.faults.push(address),
            Event::Remap { from, to, length } => {
                of.pending.remap(from, to, length);
                of.look_again();
            }
            Event::Remove { start, end } => of.pending.forget(start, end),
            Event::Fork { child } => {
                self.holder.hold(&child)?;
                let child = of.fork(child);
                self.processes.push(child);
            }
        }
        Ok(())
    }

    /// Puts the page in place that a process waits for, and those beside it.
    fn serve_fault(&mut self, process: usize, address: u64) -> io::Result<()> {
        let of = &mut self.processes[process];
        if let Some(mut range) = of.pending.at(address, AROUND) {
            if let Some(at_source) = &mut self.at_source {
                let (alike, is_there) = at_source.first_alike(range);
                if !is_there {
                    at_source.want(range.offset);
                    of.waiting.push(address);
                    return Ok(());
                }
                range = alike;
            }
            // Pages of another mapping are beside it.
            if self.put(process, range)? == Copied::Unmapped && range.end - range.start > PAGE {
                self.put(process, LazyRange { end: range.start + PAGE, ..range })?;
            }
            let of = &mut self.processes[process];
            if of.pending.at(address, PAGE).is_some() && !of.is_gone {
                of.faults.push(address);
            }
            return Ok(());
        }
        match of.userfault.zero(address)? {
            Copied::Later => of.faults.push(address),
            Copied::Present => of.userfault.wake(address),
            Copied::Gone => of.is_gone = true,
            // What is not mapped any more waits for nothing.
            Copied::Bytes(_) | Copied::Unmapped => {}
        }
        Ok(())
    }

    /// Puts the next pages in place that nothing waits for. Returns whether it could.
    fn go_on(&mut self) -> io::Result<bool> {
        let count = self.processes.len();
        let lacking = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|process| self.processes[*process].can_go_on());
        let Some(process) = lacking else { return Ok(true) };
        self.next = process + 1;
        let at_source = self.at_source.as_ref();
        let Some(range) = self.processes[process].next(at_source, CHUNK) else { return Ok(true) };
        let mut put = self.put(process, range)?;
        if put == Copied::Unmapped && range.end - range.start > PAGE {
            // It reaches beyond one mapping.
            let single = LazyRange { end: range.start + PAGE, ..range };
            put = self.put(process, single)?;
        }
        Ok(put != Copied::Later)
    }

    /// Puts pages in place as far as that goes at once. A single page that is not mapped any more is forgotten.
    fn put(&mut self, process: usize, range: LazyRange) -> io::Result<Copied> {
        let of = &mut self.processes[process];
        let length = (range.end - range.start) as usize;
        let buffer = &mut self.buffer[..length];
        of.pages.read_exact_at(buffer, range.offset)?;
        let copied = of.userfault.copy(range.start, buffer)?;
        let done = match copied {
            Copied::Bytes(bytes) => bytes,
            Copied::Present => {
                of.userfault.wake(range.start);
                PAGE
            }
            Copied::Unmapped if range.end - range.start <= PAGE => PAGE,
            Copied::Unmapped | Copied::Later => 0,
            Copied::Gone => {
                of.is_gone = true;
                of.pending = PageRanges::default();
                0
            }
        };
        of.pending.forget(range.start, range.start + done);
        // A child may need them, too.
        if done > 0 && Rc::strong_count(&of.pages) == 1 {
            let (offset, done) = (range.offset as i64, done as i64);
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&*of.pages, flags, offset, done)?;
        }
        Ok(copied)
    }
}

/// Waits for one of several descriptors; an interrupted wait ends early.
fn wait(sides: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(sides, timeout) {
        Err(Errno::EINTR) => Ok(()),
        other => other.map(drop).map_err(Into::into),
    }
}
