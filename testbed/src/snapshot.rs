//! Snapshots of a host's state, to show that a migration leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::hash::Hasher;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::slowdown;

/// The directories whose files are compared by content.
const DIRECTORIES: &[&str] = &["/etc", "/run/netmig", "/var/lib/netmig"];
/// The time between two snapshots while a host settles.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// One part of a host's state, as lines that can be compared.
type Lines = BTreeSet<String>;

/// The comparable state of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    parts: BTreeMap<&'static str, Lines>,
}

/// The difference between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference(Vec<String>);

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Host {
    /// Takes a snapshot of this host's kernel tables, files, processes and containers.
    ///
    /// # Errors
    /// Something could not be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self)
    }
}

impl Snapshot {
    /// Takes a snapshot: nftables, policy rules, routes, links, addresses, conntrack marks, files, processes,
    /// containers and images.
    pub(crate) fn take(host: &Host) -> Result<Self> {
        let lines = |words: &[&str]| -> Result<Lines> {
            Ok(host.run(words)?.lines().filter_map(without_link_local).collect())
        };
        let mut parts = BTreeMap::from([
            ("nftables", nftables(host)?),
            ("rules", lines(&["ip", "rule", "show"])?),
            ("rules6", lines(&["ip", "-6", "rule", "show"])?),
            ("routes", lines(&["ip", "route", "show", "table", "all"])?),
            ("routes6", lines(&["ip", "-6", "route", "show", "table", "all"])?),
            ("links", lines(&["ip", "-oneline", "link", "show"])?),
            ("addresses", lines(&["ip", "-brief", "address", "show"])?),
            ("conntrack marks", marks(host)?),
            ("processes", processes(host)?),
            ("containers", podman(host, "ps", "{{.ID}} {{.Names}} {{.State}} {{.Image}}")?),
            ("images", podman(host, "images", "{{.ID}} {{.Repository}}:{{.Tag}}")?),
        ]);
        let mut files = Lines::new();
        for directory in DIRECTORIES {
            list_files(&host.path(directory), directory, &mut files)?;
        }
        parts.insert("files", files);
        Ok(Self { parts })
    }

    /// Returns the snapshot without lines of `part` that contain `text`; an empty text leaves out the
    /// whole part.
    #[must_use]
    pub fn without(mut self, part: &str, text: &str) -> Self {
        if let Some((_, lines)) = self.parts.iter_mut().find(|(name, _)| **name == part) {
            lines.retain(|line| !line.contains(text));
        }
        self
    }

    /// Returns the snapshot without the file or directory (with a `/` at its end) at `path`, whatever is in
    /// the file; what is in the directory stays.
    #[must_use]
    pub fn without_file(mut self, path: &str) -> Self {
        if let Some(files) = self.parts.get_mut("files") {
            files.retain(|line| line != path && line.rsplitn(3, ' ').nth(2) != Some(path));
        }
        self
    }

    /// Returns the lines of one part.
    pub fn part(&self, part: &str) -> impl Iterator<Item = &str> {
        self.parts.get(part).into_iter().flatten().map(String::as_str)
    }

    /// Returns the difference from this snapshot to a later one; `None` if there is none.
    pub fn difference(&self, later: &Self) -> Option<Difference> {
        let mut all = Vec::new();
        let none = Lines::new();
        let names: BTreeSet<_> = self.parts.keys().chain(later.parts.keys()).collect();
        for name in names {
            let before = self.parts.get(*name).unwrap_or(&none);
            let after = later.parts.get(*name).unwrap_or(&none);
            all.extend(before.difference(after).map(|line| format!("{name}: gone: {line}")));
            all.extend(after.difference(before).map(|line| format!("{name}: new: {line}")));
        }
        (!all.is_empty()).then_some(Difference(all))
    }

    /// Waits until the host is in this state again. `view` removes the parts that may differ.
    ///
    /// # Errors
    /// The host is not in this state after `limit`. The error has the difference.
    pub fn await_return(
        &self,
        host: &Host,
        limit: Duration,
        view: impl Fn(Self) -> Self,
    ) -> Result<()> {
        let deadline = Instant::now() + slowdown::limit(limit);
        let wanted = view(self.clone());
        loop {
            let Some(difference) = wanted.difference(&view(Self::take(host)?)) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let name = host.name();
                return Err(Error::Check(format!("host {name} is not as before:\n{difference}")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Returns a line of `ip` without link-local addresses, or none if it is about nothing else. The kernel
/// makes them, up to two seconds after their interface, which is compared itself.
fn without_link_local(line: &str) -> Option<String> {
    let is_link_local =
        |word: &&str| ["fe80::", "ff00::/8"].iter().any(|start| word.starts_with(start));
    let words: Vec<&str> = line.split_whitespace().collect();
    let about = words.iter().take(2).any(is_link_local);
    let kept = words.into_iter().filter(|word| !is_link_local(word)).collect::<Vec<_>>();
    (!about).then(|| kept.join(" "))
}

/// Lists the names of processes and their numbers.
fn processes(host: &Host) -> Result<Lines> {
    let mut counts = BTreeMap::<String, usize>::new();
    for name in host.run(["ps", "-eo", "comm="])?.lines().map(str::trim) {
        // Each listing contains ps itself.
        if name != "ps" {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect())
}

fn podman(host: &Host, what: &str, format: &str) -> Result<Lines> {
    let listed = host.podman([what, "--all", "--format", format])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Returns the ruleset without handles and counter values, one object a line.
fn nftables(host: &Host) -> Result<Lines> {
    let mut ruleset: Value =
        host.command("nft").args(["--json", "list", "ruleset"]).run()?.json()?;
    let objects = ruleset.get_mut("nftables").and_then(Value::as_array_mut);
    Ok(objects
        .into_iter()
        .flatten()
        .filter(|object| object.get("metainfo").is_none())
        .map(|object| {
            strip(object);
            object.to_string()
        })
        .collect())
}

/// Removes values that change by themselves.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for volatile in ["handle", "packets", "bytes", "expires"] {
                fields.remove(volatile);
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Lists the conntrack entries with a mark: protocol, original tuple and mark.
fn marks(host: &Host) -> Result<Lines> {
    let listed = host.run(["conntrack", "-L", "-o", "extended"])?;
    Ok(listed.lines().filter_map(marked_entry).collect())
}

fn marked_entry(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mark = words.iter().find_map(|word| word.strip_prefix("mark="))?;
    if mark == "0" {
        return None;
    }
    let tuple: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| ["src=", "dst=", "sport=", "dport="].iter().any(|key| word.starts_with(key)))
        .take(4)
        .collect();
    Some(format!("{} {} mark={mark}", words.get(2)?, tuple.join(" ")))
}

fn list_files(outside: &Path, inside: &str, all: &mut Lines) -> Result<()> {
    let what = || format!("looking at {inside}");
    let entries = match fs::read_dir(outside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(what)?,
    };
    for entry in entries {
        let entry = entry.context(what)?;
        let inside = format!("{inside}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().context(what)?;
        if kind.is_dir() {
            all.insert(format!("{inside}/"));
            list_files(&entry.path(), &inside, all)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).context(what)?;
            all.insert(format!("{inside} -> {}", target.display()));
        } else if kind.is_file() {
            let contents = fs::read(entry.path()).context(what)?;
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(&contents);
            all.insert(format!("{inside} {} {:016x}", contents.len(), hasher.finish()));
        } else {
            all.insert(format!("{inside} {kind:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(lines: &[&str]) -> Snapshot {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Snapshot { parts: BTreeMap::from([("rules", lines)]) }
    }

    #[test]
    fn link_local_addresses_do_not_count() {
        for line in
            ["local fe80::1 dev eth0 table local", "multicast ff00::/8 dev eth0", "fe80::/64"]
        {
            assert_eq!(without_link_local(line), None);
        }
        let both =
            without_link_local("eth0@if5 UP 192.0.2.1/24 2001:db8::1/64 fe80::1/64").unwrap();
        assert_eq!(both, "eth0@if5 UP 192.0.2.1/24 2001:db8::1/64");
    }

    #[test]
    fn a_file_is_left_out_by_its_whole_path() {
        let files = ["/v/", "/v/lock 0 00", "/v/locked 0 00", "/v/journal/", "/v/journal/x 1 00"];
        let lines = files.iter().map(|line| (*line).to_owned()).collect();
        let snapshot = Snapshot { parts: BTreeMap::from([("files", lines)]) };
        let left = snapshot.without_file("/v/").without_file("/v/lock").without_file("/v/journal/");
        assert_eq!(left.part("files").collect::<Vec<_>>(), ["/v/journal/x 1 00", "/v/locked 0 00"]);
    }

    #[test]
    fn a_difference_names_part_and_line() {
        let (before, after) = (snapshot(&["a", "b"]), snapshot(&["b", "c"]));
        assert_eq!(before.difference(&before), None);
        let text = before.difference(&after).unwrap().to_string();
        assert_eq!(text, "rules: gone: a\nrules: new: c");
        assert_eq!(before.without("rules", "a").difference(&after.without("rules", "c")), None);
    }

    #[test]
    fn only_marked_entries_count_and_timeouts_do_not() {
        let marked = "ipv4 2 tcp 6 431999 ESTABLISHED src=192.0.2.3 dst=192.0.2.1 sport=4 \
                      dport=7000 src=10.88.0.2 dst=192.0.2.3 sport=7000 dport=4 [ASSURED] \
                      mark=131072 use=1";
        assert_eq!(
            marked_entry(marked).unwrap(),
            "tcp src=192.0.2.3 dst=192.0.2.1 sport=4 dport=7000 mark=131072"
        );
        assert_eq!(marked_entry(&marked.replace("131072", "0")), None);
    }

    #[test]
    fn handles_and_counters_are_no_difference() {
        let mut rule = serde_json::json!({"rule": {"handle": 4, "expr": [
            {"counter": {"packets": 3, "bytes": 180}}, {"accept": null}]}});
        strip(&mut rule);
        assert_eq!(rule.to_string(), r#"{"rule":{"expr":[{"counter":{}},{"accept":null}]}}"#);
    }
}
