//! The state of a container as the kernel shows it: read of the frozen original and of the frozen copy, and compared
//! before the commit.
//!
//! CRIU's images hold most of a container, and no list says what they leave out. So nothing here asks CRIU: each
//! [`Fact`] is read from `/proc` in the same way on both hosts, and has to be equal. Values that may differ are not
//! read, or are made comparable where they are read, with the reason beside them.

mod descriptor;
mod mount;
mod task;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::cgroup::{self, Cgroup};

/// Most facts of one container.
pub const MOST_FACTS: usize = 1 << 20;
/// Most differences that are told.
pub const MOST_DIFFERENCES: usize = 32;
/// Longest value of a fact in a difference, in bytes.
const SHOWN: usize = 200;

/// What a fact is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// That a process is there, and its place in the tree of processes.
    Process,
    /// Users, groups, capabilities, seccomp, no_new_privs, the label of a security module.
    Credentials,
    /// What is blocked, ignored, caught and pending.
    Signals,
    /// Policy, priorities, affinity, timer slack.
    Scheduling,
    /// Resource limits and what the kernel does when memory is short.
    Limits,
    /// Which namespaces are shared with the first process.
    Namespaces,
    /// A mount with its flags.
    Mount,
    /// An open file with its flags and position.
    Descriptor,
    /// A lock on a file.
    Lock,
    /// A timer.
    Timer,
}

impl Kind {
    /// All kinds, in their order.
    pub const ALL: &[Self] = &[
        Self::Process,
        Self::Credentials,
        Self::Signals,
        Self::Scheduling,
        Self::Limits,
        Self::Namespaces,
        Self::Mount,
        Self::Descriptor,
        Self::Lock,
        Self::Timer,
    ];

    /// Returns the kind with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Returns the kind's stable name, by which other hosts know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Credentials => "credentials",
            Self::Signals => "signals",
            Self::Scheduling => "scheduling",
            Self::Limits => "limits",
            Self::Namespaces => "namespaces",
            Self::Mount => "mount",
            Self::Descriptor => "descriptor",
            Self::Lock => "lock",
            Self::Timer => "timer",
        }
    }
}

/// What a fact is about, and of which object: `capabilities of process 7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// The kind.
    pub kind: Kind,
    /// The object, for people.
    pub object: String,
}

/// Everything that has to be equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    facts: BTreeMap<Fact, String>,
}

/// A fact that is not equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub fact: Fact,
    /// Its value of the original; `None` where only the copy has it.
    pub original: Option<String>,
    /// Its value of the copy; `None` where only the original has it.
    pub copy: Option<String>,
}

impl ContainerFacts {
    /// Reads the facts of a container whose tasks are frozen.
    ///
    /// # Errors
    /// When its cgroup or `/proc` cannot be read. A process that vanishes meanwhile is an error as well: a
    /// frozen one does not.
    pub fn read(cgroup: &Cgroup, first: i32) -> Result<Self, Error> {
        let mut read = Self::default();
        let processes = cgroup.pids()?;
        mount::read(first, &mut read)?;
        let namespaces = task::namespaces(first)?;
        for process in processes {
            let Some(number) = task::read(process, &namespaces, &mut read)? else { continue };
            descriptor::read(process, number, &mut read)?;
        }
        Ok(read)
    }

    /// Returns in which facts the copy of this original differs, at most [`MOST_DIFFERENCES`].
    #[must_use]
    pub fn differences(&self, copy: &Self) -> Vec<Difference> {
        // Almost always so, and this is quicker than to look up each of them.
        if self == copy {
            return Vec::new();
        }
        let of = |fact: &Fact| Difference {
            fact: fact.clone(),
            original: self.facts.get(fact).map(|value| shown(value)),
            copy: copy.facts.get(fact).map(|value| shown(value)),
        };
        let lost = self.facts.iter().filter(|(fact, value)| copy.facts.get(fact) != Some(value));
        let new = copy.facts.keys().filter(|fact| !self.facts.contains_key(fact));
        lost.map(|(fact, _)| fact).chain(new).take(MOST_DIFFERENCES).map(of).collect()
    }

    /// Returns all facts with their values, in the order of their kinds and objects.
    pub fn into_facts(self) -> impl Iterator<Item = (Fact, String)> {
        self.facts.into_iter()
    }

    /// Adds facts that another host has read.
    ///
    /// # Errors
    /// [`Error::TooMany`] beyond [`MOST_FACTS`].
    pub fn join(&mut self, facts: impl IntoIterator<Item = (Fact, String)>) -> Result<(), Error> {
        // Built from a sorted list, and appended: neither looks up a place for each fact.
        self.facts.append(&mut facts.into_iter().collect());
        if self.facts.len() > MOST_FACTS { Err(Error::TooMany) } else { Ok(()) }
    }

    /// Adds a fact. Of two with the same name both are kept, one after the other.
    fn add(&mut self, kind: Kind, object: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        self.facts
            .entry(Fact { kind, object: object.into() })
            .and_modify(|present| {
                present.push_str("; ");
                present.push_str(&value);
            })
            .or_insert(value);
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fact { kind, object } = &self.fact;
        let kind = kind.name();
        match (&self.original, &self.copy) {
            (Some(original), Some(copy)) => {
                write!(f, "{kind}: {object} is {copy:?}, not {original:?}")
            }
            (Some(original), None) => write!(f, "{kind}: {object} ({original:?}) is lost"),
            (None, Some(copy)) => write!(f, "{kind}: {object} ({copy:?}) is new"),
            (None, None) => write!(f, "{kind}: {object}"),
        }
    }
}

/// Returns the beginning of a value.
fn shown(value: &str) -> String {
    let end = value.char_indices().map(|(at, _)| at).take_while(|at| *at <= SHOWN).last();
    let end = if value.len() <= SHOWN { value.len() } else { end.unwrap_or(0) };
    value[..end].to_owned()
}

/// Facts could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of procfs.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More facts than [`MOST_FACTS`].
    #[error("more than {MOST_FACTS} facts")]
    TooMany,
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
}

/// Reads a file of procfs; what is no text becomes U+FFFD.
fn text(path: String) -> Result<String, Error> {
    match std::fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Reads a file of `/proc`; `None` where this kernel or process has no such file.
fn optional(path: String) -> Result<Option<String>, Error> {
    match text(path) {
        Ok(text) => Ok(Some(text)),
        Err(Error::Read { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(facts: &[(Kind, &str, &str)]) -> ContainerFacts {
        let mut all = ContainerFacts::default();
        for (kind, object, value) in facts {
            all.add(*kind, *object, *value);
        }
        all
    }

    #[test]
    fn a_loss_a_change_and_an_addition_are_each_named() {
        let original = of(&[
            (Kind::Lock, "FLOCK of process 7 on /a", "WRITE"),
            (Kind::Limits, "nofile of process 7", "1024"),
            (Kind::Mount, "/sys/firmware", "ro"),
        ]);
        let copy = of(&[
            (Kind::Limits, "nofile of process 7", "512"),
            (Kind::Mount, "/sys/firmware", "ro"),
            (Kind::Mount, "/new", "rw"),
        ]);
        let told: Vec<String> =
            original.differences(&copy).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "limits: nofile of process 7 is \"512\", not \"1024\"",
                "lock: FLOCK of process 7 on /a (\"WRITE\") is lost",
                "mount: /new (\"rw\") is new",
            ]
        );
        assert!(original.differences(&original).is_empty());
    }

    #[test]
    fn parts_make_up_the_whole_in_any_order() {
        let mut whole = ContainerFacts::default();
        for kind in Kind::ALL {
            for number in 0..10 {
                whole.add(*kind, format!("object {number}"), "x");
            }
        }
        let facts: Vec<_> = whole.clone().into_facts().collect();
        assert!(facts.is_sorted());
        let (first, second) = facts.split_at(30);
        let mut joined = ContainerFacts::default();
        joined.join(second.to_vec()).unwrap();
        joined.join(first.to_vec()).unwrap();
        assert_eq!(joined, whole);
        assert!(whole.differences(&joined).is_empty());
    }

    #[test]
    fn kinds_are_found_by_their_names() {
        assert!(Kind::ALL.iter().all(|kind| Kind::of_name(kind.name()) == Some(*kind)));
        assert_eq!(Kind::of_name("weather"), None);
    }

    #[test]
    fn differences_are_bounded() {
        let mut original = ContainerFacts::default();
        for number in 0..1000 {
            original.add(Kind::Process, format!("process {number}"), "ä".repeat(1000));
        }
        let differences = original.differences(&ContainerFacts::default());
        assert_eq!(differences.len(), MOST_DIFFERENCES);
        assert!(differences[0].original.as_ref().unwrap().len() <= SHOWN);
    }

    #[test]
    fn the_facts_of_a_process_are_the_same_twice() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = i32::try_from(sleeper.id()).unwrap();
        let read = || {
            let mut read = ContainerFacts::default();
            mount::read(process, &mut read).unwrap();
            let namespaces = task::namespaces(process).unwrap();
            let number = task::read(process, &namespaces, &mut read).unwrap().unwrap();
            descriptor::read(process, number, &mut read).unwrap();
            read
        };
        // Until it has become the other program.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (first, second) = (read(), read());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(first.differences(&second).is_empty(), "{:?}", first.differences(&second));
        for kind in [
            Kind::Process,
            Kind::Credentials,
            Kind::Signals,
            Kind::Scheduling,
            Kind::Limits,
            Kind::Namespaces,
            Kind::Mount,
            Kind::Descriptor,
        ] {
            assert!(first.facts.keys().any(|fact| fact.kind == kind), "{kind:?}");
        }
    }
}
