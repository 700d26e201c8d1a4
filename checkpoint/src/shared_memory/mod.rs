//! Memory that processes share, while they run: what of it has changed since it was read last, by a hash of each page.
//!
//! The kernel notes writes for each mapping of each process. A process that is born, writes and ends between two looks leaves no
//! note, nor does write(2) on a memfd. So all of the memory is read again at each look. Hashes take 4 MiB for a gigabyte.

mod segments;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use twox_hash::XxHash3_128;

use crate::images::PAGE;
use segments::{Mapped, Segment, device, mapped};

/// Segments below this size are left to CRIU, in bytes.
const LARGE: u64 = 1 << 20;
/// Most segments that are read. CRIU has the others.
const MOST: usize = 256;
/// Pages of which the hashes are together.
const CHUNK: usize = 512;
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// The hash of a page with nothing but zeros, which need not be there.
const EMPTY: u128 = 0;

/// Hashes of the pages of a chunk.
type Hashes = [u128; CHUNK];

/// Pages of one segment that have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The segment, by the number that CRIU gives it.
    pub segment: u32,
    /// Pages that follow each other, each with the place of the first one in the segment, in bytes.
    pub pages: Vec<(u64, Vec<u8>)>,
    /// Places and lengths of pages that have nothing but zeros now.
    pub empty: Vec<(u64, u64)>,
}

/// What a segment has after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// The segment.
    pub segment: u32,
    /// Number of its pages that have something else than zeros.
    pub pages: u64,
    /// Whether a process has it mapped.
    pub is_mapped: bool,
}

/// Shared memory that is read again and again.
#[derive(Debug)]
pub struct SharedMemory {
    device: u64,
    /// What the hashes begin with: nobody can prepare two pages with the same hash.
    seed: u64,
    segments: BTreeMap<u32, Tracked>,
}

#[derive(Debug)]
struct Tracked {
    segment: Segment,
    is_mapped: bool,
    hashes: BTreeMap<u64, Box<Hashes>>,
}

/// A part of a segment that one thread reads: parts with pages of one chunk.
struct Job {
    segment: u32,
    chunk: u64,
    parts: Vec<(u64, u64)>,
}

impl SharedMemory {
    /// Makes one that has read nothing.
    ///
    /// # Errors
    /// The kernel gives no memory, or no random number.
    pub fn new() -> io::Result<Self> {
        let mut seed = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self { device: device()?, seed: u64::from_ne_bytes(seed), segments: BTreeMap::new() })
    }

    /// Returns the device and the inode numbers of the segments that are read.
    #[must_use]
    pub fn files(&self) -> (u64, Vec<u32>) {
        (self.device, self.segments.keys().copied().collect())
    }

    /// Looks which segments the processes have mapped. With `adds_new`, those that are not known are read from now on.
    ///
    /// # Errors
    /// A process or a segment cannot be looked at.
    pub fn find(&mut self, pids: &[i32], adds_new: bool) -> io::Result<()> {
        let found = mapped(pids, self.device)?;
        self.segments.values_mut().for_each(|known| known.is_mapped = false);
        for (inode, at) in &found {
            self.note(*inode, at, adds_new)?;
        }
        Ok(())
    }

    fn note(&mut self, inode: u32, at: &Mapped, adds_new: bool) -> io::Result<()> {
        let count = self.segments.len();
        match self.segments.entry(inode) {
            // Its number may be another one's by now.
            Entry::Occupied(mut known) => {
                if let Some(segment) = Segment::open(inode, at, self.device)? {
                    known.get_mut().segment = segment;
                }
                known.get_mut().is_mapped = true;
            }
            Entry::Vacant(place) if adds_new && count < MOST => {
                let opened = Segment::open(inode, at, self.device)?;
                if let Some(segment) = opened
                    && segment.length()? >= LARGE
                {
                    place.insert(Tracked { segment, is_mapped: true, hashes: BTreeMap::new() });
                }
            }
            Entry::Vacant(_) => {}
        }
        Ok(())
    }

    /// Reads all segments by so many threads, and gives `take` what has changed since the last time. Returns what each of them
    /// has. `take` is called by several threads at once. Blocks.
    ///
    /// # Errors
    /// That of `take`, or a segment cannot be read. What has changed is not known any more then.
    pub fn changed<E: From<io::Error> + Send>(
        &mut self,
        threads: usize,
        take: impl Fn(Changed) -> Result<(), E> + Sync,
    ) -> Result<Vec<Content>, E> {
        let mut jobs = Vec::new();
        for (&segment, tracked) in &self.segments {
            jobs.extend(tracked.jobs(segment)?);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            let mut buffer = vec![0; PIECE];
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some(of) = self.segments.get(&job.segment) else { continue };
                let hashes = of.look(job, self.seed, &mut buffer, &take)?;
                done.push((job.segment, job.chunk, hashes));
            }
            Ok::<_, E>(done)
        };
        let results: Vec<_> = match threads.min(jobs.len()) {
            0 | 1 => vec![work()],
            threads => thread::scope(|scope| {
                let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                let lost = || Err(io::Error::other("a thread has panicked").into());
                started.into_iter().map(|one| one.join().unwrap_or_else(|_| lost())).collect()
            }),
        };
        for result in results {
            for (segment, chunk, hashes) in result? {
                let Some(of) = self.segments.get_mut(&segment) else { continue };
                match hashes {
                    Some(hashes) => drop(of.hashes.insert(chunk, hashes)),
                    None => drop(of.hashes.remove(&chunk)),
                }
            }
        }
        Ok(self.segments.iter().map(|(&segment, of)| of.content(segment)).collect())
    }
}

impl Tracked {
    fn content(&self, segment: u32) -> Content {
        let pages = |hashes: &Hashes| hashes.iter().filter(|hash| **hash != EMPTY).count() as u64;
        let pages = self.hashes.values().map(|hashes| pages(hashes)).sum();
        // CRIU has no image of a memfd without content, also if it is mapped.
        let has_image = self.segment.length().is_ok_and(|length| length > 0);
        Content { segment, pages, is_mapped: self.is_mapped && has_image }
    }

    /// Returns the chunks that have pages, and those that had some.
    fn jobs(&self, segment: u32) -> io::Result<Vec<Job>> {
        const BYTES: u64 = CHUNK as u64 * PAGE;
        let mut chunks: BTreeMap<u64, Vec<(u64, u64)>> =
            self.hashes.keys().map(|chunk| (*chunk, Vec::new())).collect();
        for (mut start, end) in self.segment.parts(self.segment.length()?)? {
            while start < end {
                let chunk = start / BYTES;
                let upto = end.min((chunk + 1) * BYTES);
                chunks.entry(chunk).or_default().push((start, upto));
                start = upto;
            }
        }
        Ok(chunks.into_iter().map(|(chunk, parts)| Job { segment, chunk, parts }).collect())
    }

    /// Reads a chunk, and gives `take` what has changed in it. Returns its hashes; `None` if it is empty.
    fn look<E: From<io::Error>>(
        &self,
        job: &Job,
        seed: u64,
        buffer: &mut [u8],
        take: &impl Fn(Changed) -> Result<(), E>,
    ) -> Result<Option<Box<Hashes>>, E> {
        let first = job.chunk * CHUNK as u64;
        let before = self.hashes.get(&job.chunk);
        let before = |page: usize| before.and_then(|hashes| hashes.get(page)).copied();
        let mut now = Box::new([EMPTY; CHUNK]);
        let of = || Changed { segment: job.segment, ..Changed::default() };
        for &(start, end) in &job.parts {
            let mut at = start;
            while at < end {
                let length = (end - at).min(buffer.len() as u64) as usize;
                let piece = &mut buffer[..length];
                self.segment.read(at, piece)?;
                let mut changed = of();
                for (place, page) in (at..).step_by(PAGE as usize).zip(piece.chunks(PAGE as usize))
                {
                    let number = (place / PAGE - first) as usize;
                    let hash = hash(page, seed);
                    if let Some(kept) = now.get_mut(number) {
                        *kept = hash;
                    }
                    if hash != EMPTY && before(number) != Some(hash) {
                        changed.add_page(place, page);
                    }
                }
                if !changed.pages.is_empty() {
                    take(changed)?;
                }
                at += length as u64;
            }
        }
        let mut changed = of();
        for (number, hash) in now.iter().enumerate() {
            if *hash == EMPTY && before(number).is_some_and(|before| before != EMPTY) {
                changed.add_empty((first + number as u64) * PAGE);
            }
        }
        if !changed.empty.is_empty() {
            take(changed)?;
        }
        Ok(now.iter().any(|hash| *hash != EMPTY).then_some(now))
    }
}

impl Changed {
    fn add_page(&mut self, place: u64, page: &[u8]) {
        match self.pages.last_mut() {
            Some((start, bytes)) if *start + bytes.len() as u64 == place => {
                bytes.extend_from_slice(page);
            }
            _ => self.pages.push((place, page.to_vec())),
        }
    }

    fn add_empty(&mut self, place: u64) {
        match self.empty.last_mut() {
            Some((start, length)) if *start + *length == place => *length += PAGE,
            _ => self.empty.push((place, PAGE)),
        }
    }
}

fn hash(page: &[u8], seed: u64) -> u128 {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    if page == ZEROS {
        return EMPTY;
    }
    // A hash that is the mark of an empty page by chance is another one.
    XxHash3_128::oneshot_with_seed(seed, page).max(EMPTY + 1)
}

#[cfg(test)]
mod tests;
