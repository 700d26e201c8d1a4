//! Records the journals of a migration and restores one of them after the migration has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::Host;

/// The directory with the journals of migrations that have not ended.
const JOURNALS: &str = "/var/lib/netmig/journal";
/// The time between two reads of that directory.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// The last record of a journal: how far the migration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LastRecord {
    /// On the source: the container is not interrupted.
    Departure,
    /// On the source: the container may be frozen.
    Interruption,
    /// On the source: decided.
    Committed,
    /// On the source: only the removal of the original is left, as after exit code 6.
    Acknowledged,
    /// On the destination: the copy is not the container yet.
    Arrival,
    /// On the destination: the copy is the container.
    Activated,
}

impl LastRecord {
    /// All records, those of the source first.
    pub const ALL: [Self; 6] = [
        Self::Departure,
        Self::Interruption,
        Self::Committed,
        Self::Acknowledged,
        Self::Arrival,
        Self::Activated,
    ];

    /// Returns whether the source's journal has this record.
    pub fn is_departure(self) -> bool {
        !matches!(self, Self::Arrival | Self::Activated)
    }
}

impl fmt::Display for LastRecord {
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

/// The longest state of the journal of one migration on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Journal {
    /// The name of its file.
    name: String,
    text: String,
}

impl Journal {
    /// Writes the journal to a host, up to this record. Returns its path.
    pub(crate) fn plant(&self, host: &Host, kind: LastRecord) -> Result<String> {
        let text = self.up_to(kind).ok_or_else(|| {
            Error::Check(format!("the journal did not come to {kind}: {}", self.text))
        })?;
        let path = format!("{JOURNALS}/{}", self.name);
        host.write(&path, text)?;
        Ok(path)
    }

    /// Returns a copy with another time of the decision, in seconds since the Unix epoch.
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

    /// Returns the text up to the last record of this kind.
    fn up_to(&self, kind: LastRecord) -> Option<String> {
        let record = format!("\"record\":\"{kind}\"");
        let lines: Vec<&str> = self.text.split_inclusive('\n').collect();
        let last = lines.iter().rposition(|line| line.contains(&record))?;
        Some(lines[..=last].concat())
    }
}

/// Runs `action` and records the journals that the hosts have meanwhile, by host name.
pub(crate) fn record_journals<T>(
    hosts: &[&Host],
    action: impl FnOnce() -> T,
) -> Result<(BTreeMap<String, Journal>, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut kept = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                hosts.iter().for_each(|host| look(host, &mut kept));
                thread::sleep(POLL_INTERVAL);
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
        // A journal that has just been removed is recorded already.
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
        assert_eq!(journal.up_to(LastRecord::Departure), Some(lines.concat()));
        assert_eq!(journal.up_to(LastRecord::Committed), Some(text));
        assert_eq!(journal.up_to(LastRecord::Arrival), None);
    }
}
