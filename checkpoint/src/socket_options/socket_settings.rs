//! Options that are not at their defaults: read from the original, set on the copy.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};

use super::defaults::Defaults;
use super::echo_socket;
use super::multicast_groups::{self as groups, Membership};
use super::option_table::{Kind, LONGEST, OPTIONS, SocketOption};
use crate::pidfd::PidFd;
use crate::procfs::inner_pid;
use crate::unread::{self, Unread};

/// Options could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's network namespace cannot be visited.
    #[error("cannot read the options of the container's sockets")]
    Visit(#[source] io::Error),
    /// The copy lacks a socket.
    #[error(
        "the copy has no socket as descriptor {descriptor} of its process {process}, whose options were to \
         be set"
    )]
    NoSocket {
        /// The process, as the container numbers it.
        process: i32,
        /// The descriptor.
        descriptor: i32,
    },
    /// The kernel refused a value.
    #[error(
        "cannot set {option} of the copy's socket (descriptor {descriptor} of its process {process}); \
         perhaps this kernel does not know the value"
    )]
    Set {
        /// The option's name.
        option: String,
        /// The process, as the container numbers it.
        process: i32,
        /// The descriptor.
        descriptor: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A group could not be joined again.
    #[error(
        "cannot join the multicast group {group} at {interface} again (descriptor {descriptor} of the copy's \
         process {process})"
    )]
    Join {
        /// The group.
        group: std::net::IpAddr,
        /// The interface.
        interface: String,
        /// The process, as the container numbers it.
        process: i32,
        /// The descriptor.
        descriptor: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The source sent what is no option of the table.
    #[error("the source sent the socket option {0:?}, which is not carried")]
    Unknown(String),
}

/// What was seen of the sockets of a frozen container.
#[derive(Debug, Default)]
pub struct Looked {
    /// Options that are not at their defaults.
    pub settings: Vec<SocketSettings>,
    /// What the container has not read, and will not find in the copy.
    pub unread: BTreeSet<Unread>,
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The option's name, or that of a call that makes the socket what it was.
    pub option: String,
    /// Its value, as the kernel has it.
    pub value: Vec<u8>,
}

/// A socket that has options which are not at their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketSettings {
    /// A process that has it open, as the container numbers it.
    pub process: i32,
    /// Its descriptor there.
    pub descriptor: i32,
    /// The values.
    pub values: Vec<Value>,
    /// Multicast groups that it has joined.
    pub groups: Vec<Membership>,
}

impl SocketSettings {
    /// Reads those of all sockets of these processes, which may be frozen and are in the network namespace of
    /// the first one. What vanishes meanwhile is left out.
    ///
    /// # Errors
    /// [`Error::Visit`].
    pub fn read(pids: &[i32]) -> Result<Looked, Error> {
        let Some(first) = pids.first() else { return Ok(Looked::default()) };
        let namespace = match fs::File::open(format!("/proc/{first}/ns/net")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Looked::default()),
            other => other.map_err(Error::Visit)?,
        };
        // Defaults are those of the namespace; a thread that visits one must end there.
        let visit = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(read_all(pids))
        };
        std::thread::scope(|scope| {
            let visitor = std::thread::Builder::new().name("sockets".to_owned());
            let visitor = visitor.spawn_scoped(scope, visit).map_err(Error::Visit)?;
            let failed = |_| Err(io::Error::other("the visit of a namespace failed"));
            visitor.join().unwrap_or_else(failed).map_err(Error::Visit)
        })
    }

    /// Sets what the original had on the sockets of a copy, of which these are the processes.
    ///
    /// # Errors
    /// [`Error`]: the first socket or option that cannot be set.
    pub fn apply(all: &[Self], pids: &[i32]) -> Result<(), Error> {
        if all.is_empty() {
            return Ok(());
        }
        let inner = pids.iter().filter_map(|pid| Some((inner_pid(*pid)?, *pid)));
        let numbers: HashMap<i32, i32> = inner.collect();
        let mut pidfds: HashMap<i32, PidFd> = HashMap::new();
        for settings in all {
            let Self { process, descriptor, .. } = *settings;
            let missing = || Error::NoSocket { process, descriptor };
            let pidfd = match pidfds.entry(process) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let pid = numbers.get(&process).ok_or_else(missing)?;
                    place.insert(PidFd::open(*pid).map_err(|_| missing())?)
                }
            };
            settings.set(&pidfd.descriptor(descriptor).map_err(|_| missing())?)?;
        }
        Ok(())
    }

    fn set(&self, socket: &OwnedFd) -> Result<(), Error> {
        let Self { process, descriptor, .. } = *self;
        let kind = Kind::of(socket).ok_or(Error::NoSocket { process, descriptor })?;
        let failed = |name: &str, source| Error::Set {
            option: name.to_owned(),
            process,
            descriptor,
            source,
        };
        for value in &self.values {
            let Value { option: name, value: bytes } = value;
            if echo_socket::is_call(name) {
                echo_socket::call(socket, &kind, value).map_err(|source| failed(name, source))?;
                continue;
            }
            let option = SocketOption::by_name(name)
                .filter(|option| option.is_of(&kind) && bytes.len() <= LONGEST)
                .ok_or_else(|| Error::Unknown(name.chars().take(64).collect()))?;
            option.write(socket, bytes).map_err(|source| failed(name, source))?;
        }
        for membership in &self.groups {
            groups::join(socket, &kind, membership).map_err(|source| Error::Join {
                group: membership.group,
                interface: membership.interface.chars().take(16).collect(),
                process,
                descriptor,
                source,
            })?;
        }
        Ok(())
    }
}

fn read_all(pids: &[i32]) -> Looked {
    let mut defaults = Defaults::default();
    let joined = groups::joined();
    let far_ends = echo_socket::far_ends();
    // Processes share sockets that they have inherited.
    let mut seen = HashSet::new();
    let mut looked = Looked::default();
    for &pid in pids {
        let (Some(process), Ok(pidfd)) = (inner_pid(pid), PidFd::open(pid)) else {
            continue;
        };
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let events = target.to_str().and_then(unread::kind_of_events);
            let is_socket = target.as_os_str().as_encoded_bytes().starts_with(b"socket:[");
            // All instances of inotify have one name.
            if events.is_none() && (!is_socket || !seen.insert(target)) {
                continue;
            }
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(descriptor) = number else { continue };
            let Ok(socket) = pidfd.descriptor(descriptor) else { continue };
            if let Some(events) = events {
                looked.unread.extend(unread::has_events(&socket).then_some(events));
                continue;
            }
            let Some(kind) = Kind::of(&socket) else { continue };
            looked.unread.extend(unread::of_socket(&socket, &kind));
            let mut values = values(&socket, &kind, &mut defaults);
            values.extend(echo_socket::calls(&socket, &kind, &far_ends));
            let groups = groups::of_socket(&socket, &kind, &joined);
            if !values.is_empty() || !groups.is_empty() {
                looked.settings.push(SocketSettings { process, descriptor, values, groups });
            }
        }
    }
    looked
}

/// Returns what of a socket is not as in a new one.
fn values(socket: &OwnedFd, kind: &Kind, defaults: &mut Defaults) -> Vec<Value> {
    let defaults = defaults.of(kind);
    let with_defaults = OPTIONS.iter().zip(defaults).filter(|(option, _)| option.is_of(kind));
    with_defaults
        .filter_map(|(option, default)| {
            let (value, default) = (option.read(socket)?, default.as_ref()?);
            let differs = value != *default && option.is_chosen(socket, kind, &value);
            differs.then(|| Value { option: option.name.to_owned(), value })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn only_what_was_changed_is_read_and_it_can_be_set_again() {
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_multicast_ttl_v4(9).unwrap();
        let all = match SocketSettings::read(&[own(), i32::MAX]) {
            Err(error) => return println!("skipped: {error}"),
            Ok(looked) => looked.settings,
        };
        let of = |fd: i32| all.iter().find(|one| one.descriptor == fd);
        assert_eq!(of(plain.as_raw_fd()), None);
        let changed = of(socket.as_raw_fd()).unwrap().clone();
        let names: Vec<&str> = changed.values.iter().map(|value| value.option.as_str()).collect();
        assert_eq!(names, ["IP_MULTICAST_TTL"]);
        socket.set_multicast_ttl_v4(1).unwrap();
        SocketSettings::apply(std::slice::from_ref(&changed), &[own()]).unwrap();
        assert_eq!(socket.multicast_ttl_v4().unwrap(), 9);
        let mut strange = changed.clone();
        strange.values[0].option = "SO_ATTACH_FILTER".to_owned();
        let refused = SocketSettings::apply(&[strange], &[own()]);
        assert!(matches!(refused, Err(Error::Unknown(_))));
        let gone = SocketSettings { descriptor: 9999, ..changed };
        let refused = SocketSettings::apply(&[gone], &[own()]);
        assert!(matches!(refused, Err(Error::NoSocket { .. })));
    }
}
