//! State that must survive a migration of the server: memory with known content, and a log file whose lines are
//! numbered by a counter in memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::super::bulk::now_unix_ns;
use super::super::pattern;

/// The size in bytes of what is looked at for one echo.
const PAGE: usize = 4096;

/// Memory filled with the pattern.
#[derive(Debug)]
pub(super) struct Memory {
    bytes: Vec<u8>,
    is_touched: bool,
}

impl Memory {
    /// Makes it. With `is_touched`, [`Memory::touch`] looks at it.
    pub(super) fn fill(mebibytes: usize, is_touched: bool) -> Self {
        let mut bytes = vec![0; mebibytes << 20];
        pattern::fill(0, &mut bytes);
        Self { bytes, is_touched }
    }

    /// Looks at a page, another one for each number. Returns whether it has not changed.
    pub(super) fn touch(&self, number: u64) -> bool {
        let pages = (self.bytes.len() / PAGE) as u64;
        if !self.is_touched || pages == 0 {
            return true;
        }
        let start = (pattern::mix(number) % pages) as usize * PAGE;
        let page = self.bytes.get(start..start + PAGE).unwrap_or_default();
        pattern::check(start as u64, page).bad == 0
    }

    /// Returns the number of bytes and how many of them have changed.
    pub(super) fn check(&self) -> (u64, u64) {
        (self.bytes.len() as u64, pattern::check(0, &self.bytes).bad)
    }
}

/// A file with lines `NUMBER NANOSECONDS`. If file and process are not from the same time, a number is missing or
/// repeated.
#[derive(Debug)]
pub(super) struct AppendLog {
    file: File,
    next: u64,
}

impl AppendLog {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, next: 0 })
    }

    /// Appends a line. Returns the number of lines.
    pub(super) fn append(&mut self) -> io::Result<u64> {
        writeln!(self.file, "{} {}", self.next, now_unix_ns())?;
        self.next += 1;
        Ok(self.next)
    }
}
