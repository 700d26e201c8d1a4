//! Pages that are still at the source: which are asked for, and by which connection with the agent.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::agent_connection::{AgentConnection, end_others};
use super::source_link::{
    GONE, LANE, Lane, NOTED, PAGES, PAGES_HEAD, QUESTION_BYTES, QUESTION_RANGES, SENT,
};
use crate::images::{LazyRange, MissingPages, MissingRange, PAGE};

/// Bytes that are asked for from a page on which a process waits for.
const AROUND: u64 = 64 << 10;
/// The same for a process that waits for one page after the other.
const MOST_AROUND: u64 = 1 << 20;
/// Connections with agents.
const LINKS: usize = 8;
/// Pages that processes wait for and that no question has named yet. Others are looked at again when pages have come.
const URGENT: usize = 4096;

/// Pages that are still at the source.
#[derive(Debug)]
pub(super) struct AtSource {
    missing: MissingPages,
    /// The file into which they go.
    pages: File,
    listener: UnixListener,
    path: PathBuf,
    links: Vec<AgentConnection>,
    /// Places of pages that processes wait for.
    urgent: VecDeque<u64>,
    /// Where the pages end that were asked for last because a process waited, and how many bytes these were.
    last_urgent: (u64, u64),
    /// The place from which on other pages are asked for.
    next: u64,
    /// Since when no page has come, while the container runs.
    silent_since: Option<Instant>,
    patience: Duration,
    /// Whether all have arrived when none is wanted any more.
    ended: Option<bool>,
    is_noted: bool,
    /// Whether the copy is the container.
    is_decided: bool,
    /// What has arrived and the holder does not know of.
    arrived: Vec<(i32, LazyRange)>,
}

impl AtSource {
    /// Reads which pages are missing from `images`, and listens at `path`; `None` if none is.
    pub(super) fn open(images: &Path, path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let Some((pages, missing)) = MissingPages::read(images)? else { return Ok(None) };
        let pages = OpenOptions::new().write(true).open(pages)?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Some(Self {
            missing,
            pages,
            listener,
            path: path.to_owned(),
            links: Vec::new(),
            urgent: VecDeque::new(),
            last_urgent: (0, AROUND),
            next: 0,
            silent_since: None,
            patience,
            ended: None,
            is_noted: false,
            is_decided: false,
            arrived: Vec::new(),
        }))
    }

    /// Removes the socket.
    pub(super) fn close(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            // The server before this one was killed right after it had removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Returns what is to be waited for: the listener, and each connection.
    pub(super) fn sides(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.links.iter().map(|of| of.socket.as_fd()))
    }

    /// Returns the part of some pages that is alike from the first page on, and whether it is there.
    pub(super) fn first_alike(&self, range: LazyRange) -> (LazyRange, bool) {
        self.missing.first_alike(range)
    }

    /// Has the page at a place in the file asked for, since a process waits for it. Pages that are on their way because they were
    /// next may take long: they are asked for again.
    pub(super) fn want(&mut self, place: u64) {
        let is_asked = self.is_asked_urgently(place);
        if !is_asked && self.urgent.len() < URGENT && !self.urgent.contains(&place) {
            self.urgent.push_back(place);
        }
    }

    /// Says to every agent that no page is wanted any more.
    fn end(&mut self, is_whole: bool) {
        if self.ended.is_none() {
            self.ended = Some(is_whole);
            self.links.iter_mut().for_each(|link| link.tell_end(is_whole));
        }
    }

    /// Says to every agent that no page is wanted any more, and returns whether that is noted where it has to be. `lives`: the
    /// container has not ended.
    pub(super) fn has_told_end(&mut self, lives: bool) -> bool {
        // Nobody lacks what has not come: it was unmapped, or all have ended.
        self.end(lives);
        // Of a copy that was given up nobody notes anything.
        self.is_noted || !lives && !self.is_decided
    }

    /// Notes that nobody needs this server any more to learn how it ended.
    pub(super) fn note(&mut self) {
        self.is_noted = true;
    }

    pub(super) fn is_noted(&self) -> bool {
        self.is_noted
    }

    /// Notes that the copy is the container.
    pub(super) fn decide(&mut self) {
        self.is_decided = true;
    }

    /// Returns what has arrived since the last call.
    pub(super) fn take_arrived(&mut self) -> impl Iterator<Item = (i32, LazyRange)> + use<> {
        std::mem::take(&mut self.arrived).into_iter()
    }

    /// Notes what a server that was killed has written into the file.
    pub(super) fn forget(&mut self, process: i32, start: u64, end: u64) {
        for at in self.missing.within(process, start, end) {
            self.missing.forget(process, at);
        }
    }

    /// Takes the place of a server that was killed. Agents have to connect anew. What has arrived without being noted is asked
    /// for again: it has not changed at the source.
    pub(super) fn take_over(&mut self) -> io::Result<()> {
        self.links.drain(..).for_each(AgentConnection::forget);
        self.urgent.clear();
        self.arrived.clear();
        self.silent_since = None;
        end_others(&self.listener, &self.path)
    }

    /// Follows what the agents say on those of [`AtSource::sides`] that are ready. Returns whether pages have come, or what was
    /// asked for may have to be asked for again.
    pub(super) fn follow(&mut self, ready: &[bool]) -> io::Result<bool> {
        let mut changes = false;
        let (listener, links) = ready.split_first().unwrap_or((&false, &[]));
        for (number, _) in links.iter().enumerate().filter(|(_, is_ready)| **is_ready) {
            changes |= self.hear(number)?;
        }
        self.links.retain(|link| !link.is_gone);
        if *listener {
            self.accept()?;
        }
        if self.missing.is_empty() {
            self.end(true);
        }
        Ok(changes)
    }

    fn accept(&mut self) -> io::Result<()> {
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            // Whoever it was has gone.
            Err(_) => return Ok(()),
        };
        socket.set_nonblocking(true)?;
        if self.links.len() < LINKS {
            self.links.push(AgentConnection::new(socket));
        }
        Ok(())
    }

    /// Hears what an agent says.
    fn hear(&mut self, number: usize) -> io::Result<bool> {
        let Some(link) = self.links.get_mut(number) else { return Ok(false) };
        link.receive();
        let mut changes = link.is_gone;
        while let Some(message) = self.links.get_mut(number).and_then(AgentConnection::next) {
            changes |= self.obey(number, &message)?;
        }
        Ok(changes)
    }

    /// Does what one message of an agent says. Returns whether pages have come.
    fn obey(&mut self, number: usize, message: &[u8]) -> io::Result<bool> {
        let Some(link) = self.links.get_mut(number) else { return Ok(false) };
        match message.split_first() {
            Some((&LANE, [lane])) => {
                link.lane = Lane::from_byte(*lane);
                if let Some(is_whole) = self.ended {
                    link.tell_end(is_whole);
                }
            }
            Some((&PAGES, _)) => return self.take(message),
            Some((&SENT, _)) => {
                let asked = std::mem::take(&mut link.asked);
                let is_missing = |of: &MissingRange| {
                    !self.missing.within(of.process, of.at.start, of.at.end).is_empty()
                };
                if asked.iter().any(is_missing) {
                    return Err(io::Error::other("the source does not have a page of the memory"));
                }
            }
            Some((&GONE, _)) => {
                return Err(io::Error::other("the source does not have the memory any more"));
            }
            Some((&NOTED, _)) if self.ended.is_some() => self.note(),
            Some((&NOTED, _)) => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(false)
    }

    /// Takes pages. What has come before is left as it is: the container may have written it since.
    fn take(&mut self, message: &[u8]) -> io::Result<bool> {
        let (head, pages) =
            message.split_at_checked(PAGES_HEAD).ok_or(io::ErrorKind::InvalidData)?;
        let (_, head) = head.split_at(1);
        let (Some((process, rest)), length) = (head.split_first_chunk::<4>(), pages.len() as u64)
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let start = rest.first_chunk::<8>().map(|start| u64::from_ne_bytes(*start));
        let process = i32::from_ne_bytes(*process);
        let whole = start.filter(|start| (start | length) % PAGE == 0);
        let range = whole.and_then(|start| Some((start, start.checked_add(length)?)));
        let (start, end) = range.ok_or(io::ErrorKind::InvalidData)?;
        for at in self.missing.within(process, start, end) {
            let part = (at.start - start) as usize..(at.end - start) as usize;
            self.pages.write_all_at(pages.get(part).unwrap_or_default(), at.offset)?;
            self.missing.forget(process, at);
            self.arrived.push((process, at));
            self.silent_since = None;
        }
        Ok(true)
    }

    /// Asks for pages by each connection whose last question is answered. `is_going`: also for those that nothing waits for.
    pub(super) fn ask(&mut self, is_going: bool) {
        for number in 0..self.links.len() {
            let link = &self.links[number];
            let is_free = link.asked.is_empty() && !link.is_gone && self.ended.is_none();
            let Some(lane) = link.lane.filter(|lane| is_free && *lane != Lane::Watch) else {
                continue;
            };
            let mut wanted = Vec::new();
            let mut is_for_a_fault = true;
            let is_only = !self.links.iter().any(|of| of.lane == Some(Lane::Urgent));
            if lane == Lane::Urgent || is_only {
                wanted = self.most_urgent();
            }
            if wanted.is_empty() && lane == Lane::Others && is_going {
                (wanted, is_for_a_fault) = (self.others(), false);
            }
            if !wanted.is_empty() {
                self.links[number].is_for_a_fault = is_for_a_fault;
                self.links[number].ask(wanted);
            }
        }
        self.links.retain(|link| !link.is_gone);
    }

    /// Returns the pages that processes wait for, and those beside them.
    fn most_urgent(&mut self) -> Vec<MissingRange> {
        let mut wanted: Vec<MissingRange> = Vec::new();
        let mut room = QUESTION_BYTES;
        while wanted.len() < QUESTION_RANGES
            && room > 0
            && let Some(place) = self.urgent.pop_front()
        {
            let is_among = wanted.iter().any(|of| includes(of, place));
            if is_among || self.is_asked_urgently(place) {
                continue;
            }
            let (end, length) = self.last_urgent;
            let is_next = place == end && wanted.is_empty();
            let length = if is_next { MOST_AROUND.min(2 * length) } else { AROUND };
            if let Some(found) = self.missing.at_place(place, length.min(room)) {
                let found_bytes = found.at.end - found.at.start;
                self.last_urgent = (place + found_bytes, length);
                room -= found_bytes;
                wanted.push(found);
            }
        }
        wanted
    }

    /// Returns the next pages that nothing waits for.
    fn others(&mut self) -> Vec<MissingRange> {
        let mut wanted = Vec::new();
        let mut room = QUESTION_BYTES;
        let mut is_again = self.next == 0;
        while wanted.len() < QUESTION_RANGES && room > 0 {
            let Some(mut found) = self.missing.next(self.next, room) else {
                if is_again {
                    break;
                }
                (self.next, is_again) = (0, true);
                continue;
            };
            if let Some(end) = self.is_asked(found.at.offset) {
                self.next = end;
                continue;
            }
            if wanted.iter().any(|of: &MissingRange| includes(of, found.at.offset)) {
                break;
            }
            // Another connection has asked for what follows.
            let all = self.links.iter().flat_map(|link| &link.asked);
            let length = found.at.end - found.at.start;
            let behind = |of: &MissingRange| {
                of.at.offset.checked_sub(found.at.offset).filter(|before| *before < length)
            };
            let length = all.filter_map(behind).min().unwrap_or(length);
            found.at.end = found.at.start + length;
            self.next = found.at.offset + length;
            room -= length;
            wanted.push(found);
        }
        wanted
    }

    /// Returns whether a page is asked for because a process waits for it.
    fn is_asked_urgently(&self, place: u64) -> bool {
        let urgent = self.links.iter().filter(|link| link.is_for_a_fault);
        urgent.flat_map(|link| &link.asked).any(|of| includes(of, place))
    }

    /// Returns whether a page is asked for: where in the file these pages end.
    fn is_asked(&self, place: u64) -> Option<u64> {
        let mut all = self.links.iter().flat_map(|link| &link.asked);
        let of = all.find(|of| includes(of, place))?;
        Some(of.at.offset + (of.at.end - of.at.start))
    }

    /// Checks whether a page has come lately. `is_going`: the container runs. A source that is reached and sends nothing is as bad
    /// as one that is not reached.
    pub(super) fn check_patience(&mut self, is_going: bool) -> io::Result<()> {
        if self.ended.is_some() || !is_going {
            self.silent_since = None;
            return Ok(());
        }
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.patience {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the source has sent nothing for {} s, and {} KiB of the memory are missing",
            self.patience.as_secs(),
            self.missing.bytes() >> 10
        )))
    }
}

/// Returns whether some pages include the one at a place in the file.
fn includes(range: &MissingRange, place: u64) -> bool {
    let at = &range.at;
    place >= at.offset && place - at.offset < at.end - at.start
}

#[cfg(test)]
mod tests;
