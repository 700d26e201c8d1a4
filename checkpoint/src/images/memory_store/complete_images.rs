//! Completes images by the pages that came before them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Known, MemoryStore, Stored};
use crate::images::Error;
use crate::images::lazy_mappings::{LazyMappings, Part};
use crate::images::missing_pages::{MissingPages, MissingRange};
use crate::images::pagemap::{Entry, Index, LazyRange, decode_entries, encode};
use crate::images::tmpfs::io_error;

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// The pages of one process, on their way into a file of pages that replaces the one of the images.
struct Completion<'a> {
    /// The name of the pagemap, for errors.
    name: &'a str,
    process: i32,
    store: &'a MemoryStore,
    stored: Option<&'a Stored>,
    own: File,
    own_path: PathBuf,
    /// Where the next pages of the present file begin.
    taken: u64,
    whole: File,
    /// The length of the new file.
    length: u64,
    entries: Vec<Entry>,
    /// Pages that stay in the store.
    lazy: Vec<LazyRange>,
    has_lazy: bool,
    missing: Vec<MissingRange>,
}

impl MemoryStore {
    /// Completes images whose pages are here: each pagemap gets its pages in its own file of pages. With `lazy_pages`, pages
    /// that may be lazy stay here, and a restore of these images has to be lazy. Images that lack nothing are left alone. Returns
    /// whether the images need pages that come after the decision.
    ///
    /// # Errors
    /// [`Error::Differs`] if a page is missing, or an image is none; [`Error::Io`].
    pub fn complete(&self, images: &Path, lazy_pages: bool) -> Result<bool, Error> {
        let mut missing = Vec::new();
        for entry in fs::read_dir(images).map_err(io_error("list", images))? {
            let path = entry.map_err(io_error("list", images))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
            if let Some(process) = number.and_then(|number| number.parse().ok()) {
                let of_this = self.complete_process(images, &path, (process, &name), lazy_pages)?;
                missing.extend(of_this);
            }
        }
        if missing.is_empty() {
            return Ok(false);
        }
        MissingPages::new(&missing).write(images, &self.path)?;
        Ok(true)
    }

    /// Completes the images of one process. Returns which pages come after the decision.
    fn complete_process(
        &self,
        images: &Path,
        pagemap: &Path,
        (process, name): (i32, &str),
        lazy_pages: bool,
    ) -> Result<Vec<MissingRange>, Error> {
        let bytes = fs::read(pagemap).map_err(io_error("read", pagemap))?;
        let problem = "it is no pagemap";
        let differs = || Error::Differs { name: name.to_owned(), problem };
        let (pages_id, entries) = decode_entries(&bytes).ok_or_else(differs)?;
        if !entries.iter().any(Entry::is_in_parent) {
            return Ok(Vec::new());
        }
        let mappings = match lazy_pages {
            true => LazyMappings::read(images, process)?,
            false => LazyMappings::default(),
        };
        let own_path = images.join(format!("pages-{pages_id}.img"));
        let whole_path = images.join(format!("pages-{pages_id}.new"));
        let file = |path: &Path, writes: bool| {
            let mut options = OpenOptions::new();
            options.read(!writes).write(writes).create(writes).mode(0o600);
            options.open(path).map_err(io_error("open", path))
        };
        let mut completion = Completion {
            name,
            process,
            store: self,
            stored: self.processes.get(&process),
            own: file(&own_path, false)?,
            own_path,
            taken: 0,
            whole: file(&whole_path, true)?,
            length: 0,
            entries: Vec::new(),
            lazy: Vec::new(),
            has_lazy: false,
            missing: Vec::new(),
        };
        for entry in entries {
            if entry.is_present() {
                completion.keep(entry)?;
            } else if entry.is_in_parent() {
                for (part, is_lazy) in mappings.split(entry.start, entry.end) {
                    completion.fill(part, is_lazy)?;
                }
            } else {
                completion.entries.push(entry);
            }
        }
        let Completion { own_path, whole, length, entries, lazy, has_lazy, missing, .. } =
            completion;
        whole.set_len(length).map_err(io_error("write", &whole_path))?;
        fs::rename(&whole_path, &own_path).map_err(io_error("replace", &own_path))?;
        fs::write(pagemap, encode(pages_id, &entries)).map_err(io_error("write", pagemap))?;
        if has_lazy {
            Index { pages: self.path.clone(), ranges: lazy }.write(pagemap)?;
        }
        Ok(missing)
    }
}

impl Completion<'_> {
    /// Copies pages that the images have.
    fn keep(&mut self, entry: Entry) -> Result<(), Error> {
        let (from, to) = (self.taken, self.length);
        self.extend(entry.start, entry.end, false)?;
        self.taken = from.checked_add(entry.end - entry.start).ok_or_else(|| self.too_large())?;
        copy(&self.own, from, &self.whole, to, entry.end - entry.start)
            .map_err(io_error("copy", &self.own_path))
    }

    /// Takes pages from the store, or leaves them there if they are lazy.
    fn fill(&mut self, part: Part, is_lazy: bool) -> Result<(), Error> {
        let place = self.length;
        self.extend(part.start, part.end, is_lazy)?;
        self.has_lazy |= is_lazy;
        let mut at = part.start;
        while at < part.end {
            let known = self.stored.and_then(|stored| stored.at(at, part.end));
            at = match known.ok_or_else(|| self.differs("a page of memory is missing"))? {
                // The file has a hole there, and the server gives what is lazy an empty page.
                Known::Empty(end) => end,
                Known::Stored(found) => {
                    self.take(found, place + (at - part.start), is_lazy)?;
                    found.end
                }
            };
        }
        Ok(())
    }

    /// Takes pages that are in the store.
    fn take(&mut self, found: LazyRange, place: u64, is_lazy: bool) -> Result<(), Error> {
        let later = self.stored.map(|of| of.later.within(found.start, found.end));
        let later = later.unwrap_or_default();
        if is_lazy {
            self.lazy.push(found);
            let process = self.process;
            self.missing.extend(later.into_iter().map(|at| MissingRange { process, at }));
            return Ok(());
        }
        if !later.is_empty() {
            return Err(self.differs("a page that has to be there comes later"));
        }
        let length = found.end - found.start;
        copy(&self.store.file, found.offset, &self.whole, place, length)
            .map_err(io_error("copy", &self.store.path))
    }

    /// Adds pages to the new file and to the pagemap.
    fn extend(&mut self, start: u64, end: u64, is_lazy: bool) -> Result<(), Error> {
        let length = self.length.checked_add(end - start);
        self.length = length.ok_or_else(|| self.too_large())?;
        self.entries.push(Entry::present(start, end, is_lazy));
        Ok(())
    }

    fn too_large(&self) -> Error {
        self.differs("it has more pages than a file can have")
    }

    fn differs(&self, problem: &'static str) -> Error {
        Error::Differs { name: self.name.to_owned(), problem }
    }
}

fn copy(from: &File, at: u64, to: &File, offset: u64, length: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE.min(length as usize)];
    let mut done = 0;
    while done < length {
        let piece = (length - done).min(PIECE as u64) as usize;
        from.read_exact_at(&mut buffer[..piece], at + done)?;
        to.write_all_at(&buffer[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(())
}
