//! Journals of a move that is long over: kept while it was made, and put back beside what runs there now.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::Host;

/// The directory of journals.
const JOURNALS: &str = "/var/lib/netmig/journal";
/// Between two looks at it.
const GLANCE: Duration = Duration::from_micros(500);

/// How far a migration has come, by the last record of its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// On the source: nothing is interrupted.
    Departure,
    /// On the source: the container may be frozen.
    Interruption,
    /// On the source: decided.
    Committed,
    /// On the source: only the original's removal is left, as after exit code 6.
    Acknowledged,
    /// On the destination: the copy is not the container yet.
    Arrival,
    /// On the destination: the copy is the container.
    Activated,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Departure,
        Self::Interruption,
        Self::Committed,
        Self::Acknowledged,
        Self::Arrival,
        Self::Activated,
    ];

    /// Whether the source's journal has it, and not the destination's.
    pub fn is_departure(self) -> bool {
        !matches!(self, Self::Arrival | Self::Activated)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Departure => "departure",
            Self::Interruption => "interruption",
            Self::Committed => "committed",
            Self::Acknowledged => "acknowledged",
            Self::Arrival => "arrival",
            Self::Activated => "activated",
        })
    }
}

/// The journal of one migration on one host, as it was at its longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Journal {
    /// Name of its file.
    name: String,
    text: String,
}

impl Journal {
    /// Puts it back as it was when it had just come so far; gives its path.
    pub(crate) fn plant(&self, host: &Host, kind: Kind) -> Result<String> {
        let text = self.up_to(kind).ok_or_else(|| {
            Error::Check(format!("the journal did not come to {kind}: {}", self.text))
        })?;
        let path = format!("{JOURNALS}/{}", self.name);
        host.write(&path, text)?;
        Ok(path)
    }

    /// The same of a move that is decided at another time, in seconds since 1970.
    pub(crate) fn decided_at(&self, at: u64) -> Self {
        let mut text = String::new();
        for line in self.text.split_inclusive('\n') {
            match line.split_once("\"at\":") {
                Some((front, behind)) => {
                    let behind = behind.trim_start_matches(|c: char| c.is_ascii_digit());
                    text.push_str(&format!("{front}\"at\":{at}{behind}"));
                }
                None => text.push_str(line),
            }
        }
        Self { name: self.name.clone(), text }
    }

    /// Its text up to the record of that kind.
    fn up_to(&self, kind: Kind) -> Option<String> {
        let record = format!("\"record\":\"{kind}\"");
        let lines: Vec<&str> = self.text.split_inclusive('\n').collect();
        let last = lines.iter().rposition(|line| line.contains(&record))?;
        Some(lines[..=last].concat())
    }
}

/// Does something and keeps the journals that hosts have meanwhile, by the host's name.
pub(crate) fn keep<T>(
    hosts: &[&Host],
    action: impl FnOnce() -> T,
) -> Result<(BTreeMap<String, Journal>, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut kept = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                hosts.iter().for_each(|host| look(host, &mut kept));
                thread::sleep(GLANCE);
            }
            kept
        });
        let outcome = action();
        over.store(true, Ordering::Relaxed);
        let kept = watcher.join().map_err(|_| Error::Check("a watcher died".to_owned()))?;
        Ok((kept, outcome))
    })
}

fn look(host: &Host, kept: &mut BTreeMap<String, Journal>) {
    for entry in fs::read_dir(host.path(JOURNALS)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // One that has ended meanwhile was kept as it was before.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let former = kept.get(host.name()).map_or(0, |journal| journal.text.len());
        if text.len() > former {
            kept.insert(host.name().to_owned(), Journal { name, text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_cut_after_the_record_that_is_wanted() {
        let lines = ["netmig journal 1\n", "{\"record\":\"departure\",\"name\":\"web\"}\n"];
        let text = [lines[0], lines[1], "{\"record\":\"committed\"}\n"].concat();
        let journal = Journal { name: "01".repeat(16), text: text.clone() };
        assert_eq!(journal.up_to(Kind::Departure), Some(lines.concat()));
        assert_eq!(journal.up_to(Kind::Committed), Some(text));
        assert_eq!(journal.up_to(Kind::Arrival), None);
    }
}
