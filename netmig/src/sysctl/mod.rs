//! Kernel parameters of a container's network namespace, with the changes since the container was
//! started.
//!
//! They are accessible only as files below `/proc/sys/net`, and the network namespace of the thread
//! that opens a file determines whose parameter it is (`net_ctl_header_lookup`,
//! `net/sysctl_net.c`). Parameters of the whole kernel are absent from namespaces other than the
//! first, or cannot be written there. A value that a fresh namespace of the same host has too was
//! not changed by anyone: another kernel need not know it.

mod files;
mod set_parameters;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use self::files::{in_fresh, value, values_here, write};
pub use self::set_parameters::EngineOptionError;
use crate::netns::{self, Namespace};

/// Where the files are.
const DIRECTORY: &str = "/proc/sys/net";
/// Deepest directory below it.
const DEPTH: usize = 6;
/// Most parameters of one namespace: some fifty for each interface, and five hundred others.
pub const MOST: usize = 20_000;
/// Longest name and value, in bytes. Values are numbers, except for lists of ports.
const LONGEST_NAME: usize = 200;
const LONGEST_VALUE: u64 = 64 << 10;
/// How often all are set: some set others, as `ip_forward` does with those of every interface.
const PASSES: usize = 3;
/// Most parameters that an error names.
const NAMED: usize = 5;

/// Directories with a directory for each interface, and `default` for later ones.
const OF_INTERFACES: &[&str] = &["ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh", "mpls/conf"];
/// Parameters that are set where possible, and may differ.
const OF_THE_HOST: &[&str] = &[
    // Numbers of the host's processors, of which the destination may have fewer.
    "core/rps_default_mask",
];
/// The same for interfaces: directory and file.
const OF_THE_LINK: &[(&str, &str)] = &[
    // It can be no larger than that of the interface, and the destination's network may have another one.
    ("ipv6/conf/", "/mtu"),
];

/// Why parameters could not be read or set.
#[derive(Debug, Error)]
pub enum Error {
    /// The namespace cannot be used.
    #[error("cannot read or set kernel parameters of a container's network")]
    Namespace(#[from] netns::Error),
    /// No fresh namespace could be created for comparison.
    #[error("cannot create a network namespace to compare kernel parameters with")]
    Fresh(#[source] io::Error),
    /// A parameter is too long, or there are too many.
    #[error("the kernel parameters of {0} are too many or too long to be carried")]
    TooMuch(String),
    /// The source sent something that cannot be a parameter.
    #[error("the source sent an invalid name or value of a kernel parameter: {0:?}")]
    Strange(String),
    /// The kernel refuses some changed parameters.
    #[error(
        "this kernel refuses kernel parameters that the container's network has: {}; set them back before \
         the move",
        named(.0)
    )]
    Refused(Vec<Parameter>),
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its file below `/proc/sys/net`.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether a fresh namespace of its host has another value.
    pub is_changed: bool,
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net.{} = {}", self.name.replace('/', "."), self.value.replace('\t', " "))
    }
}

fn named(parameters: &[Parameter]) -> String {
    let mut text: Vec<String> = parameters.iter().take(NAMED).map(ToString::to_string).collect();
    if parameters.len() > NAMED {
        text.push(format!("and {} more", parameters.len() - NAMED));
    }
    text.join(", ")
}

/// Values by name.
type Values = BTreeMap<String, String>;

/// The parameters of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    all: Vec<Parameter>,
}

impl Parameters {
    /// Reads the writable parameters of a namespace; takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Fresh`], [`Error::TooMuch`].
    pub fn read(namespace: &Namespace) -> Result<Self, Error> {
        let values = values_in(namespace)?;
        let fresh = in_fresh(values_here).map_err(Error::Fresh)?;
        let fresh = fresh.map_err(|_| Error::TooMuch("a fresh network namespace".to_owned()))?;
        let parameter = |(name, value): (String, String)| {
            let is_changed = default_of(&name, &fresh) != Some(&value);
            Parameter { name, value, is_changed }
        };
        Ok(Self { all: values.into_iter().map(parameter).collect() })
    }

    /// Takes parameters that another host has read.
    ///
    /// # Errors
    /// [`Error::Strange`] and [`Error::TooMuch`] for what no host reads.
    pub fn of_peer(all: Vec<Parameter>) -> Result<Self, Error> {
        if all.len() > MOST {
            return Err(Error::TooMuch("the source".to_owned()));
        }
        for Parameter { name, value, .. } in &all {
            if !is_name(name) || value.len() as u64 > LONGEST_VALUE || value.contains('\0') {
                return Err(Error::Strange(name.chars().take(64).collect()));
            }
        }
        Ok(Self { all })
    }

    /// Returns all parameters.
    #[must_use]
    pub fn into_all(self) -> Vec<Parameter> {
        self.all
    }

    /// Returns the parameters that have changed since.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::TooMuch`].
    pub fn changed_since(&self, namespace: &Namespace) -> Result<Vec<Parameter>, Error> {
        let mut now = values_in(namespace)?;
        let mut changed: Vec<Parameter> = Vec::new();
        for parameter in &self.all {
            match now.remove(&parameter.name) {
                Some(value) if value == parameter.value => {}
                // It has gone with its interface, which is compared elsewhere.
                None if interface_of(&parameter.name).is_some() => {}
                value => {
                    let value = value.unwrap_or_default();
                    changed.push(Parameter { value, ..parameter.clone() });
                }
            }
        }
        let new = now.into_iter().filter(|(name, _)| interface_of(name).is_none());
        changed.extend(new.map(|(name, value)| Parameter { name, value, is_changed: true }));
        Ok(changed)
    }

    /// Sets those that differ in a namespace; returns their number.
    ///
    /// # Errors
    /// [`Error::Refused`] if a changed parameter cannot be set; [`Error::Namespace`].
    pub fn apply(&self, namespace: &Namespace) -> Result<usize, Error> {
        namespace.run(|| {
            let mut set = 0;
            for pass in 0..PASSES {
                let others: Vec<&Parameter> =
                    self.all.iter().filter(|one| one.differs_here()).collect();
                if others.is_empty() {
                    break;
                }
                if pass == 0 {
                    set = others.len();
                }
                for other in others {
                    // The value tells whether the kernel accepted it.
                    let _ = write(&other.path(), &other.value);
                }
            }
            let refused = |one: &&Parameter| one.is_needed() && one.differs_here();
            let refused: Vec<Parameter> = self.all.iter().filter(refused).cloned().collect();
            if refused.is_empty() { Ok(set) } else { Err(Error::Refused(refused)) }
        })?
    }
}

impl Parameter {
    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Returns whether the calling thread's namespace has another value, or none.
    fn differs_here(&self) -> bool {
        !matches!(value(&self.path()), Ok(Some(value)) if value == self.value)
    }

    /// Returns whether a copy without it would differ from the original. An interface that is
    /// absent is reported elsewhere.
    fn is_needed(&self) -> bool {
        let is_there = |interface: PathBuf| Path::new(DIRECTORY).join(interface).is_dir();
        let name = self.name.as_str();
        let is_of_the_link =
            |(directory, file): &(&str, &str)| name.starts_with(directory) && name.ends_with(file);
        self.is_changed
            && !OF_THE_HOST.contains(&name)
            && !OF_THE_LINK.iter().any(is_of_the_link)
            && interface_of(name).is_none_or(is_there)
    }
}

/// Returns the directory of a parameter that belongs to an interface.
fn interface_of(name: &str) -> Option<PathBuf> {
    OF_INTERFACES.iter().find_map(|directory| {
        let rest = name.strip_prefix(directory)?.strip_prefix('/')?;
        let (interface, _) = rest.split_once('/')?;
        Some(Path::new(directory).join(interface))
    })
}

/// Returns the value of a fresh namespace; for an interface that it does not have, that of later
/// interfaces.
fn default_of<'a>(name: &str, fresh: &'a Values) -> Option<&'a String> {
    let of_default = || {
        let interface = interface_of(name)?;
        let (directory, file) = (interface.parent()?, Path::new(name).file_name()?);
        fresh.get(directory.join("default").join(file).to_str()?)
    };
    fresh.get(name).or_else(of_default)
}

/// Returns whether this is a path below the directory and nowhere else.
fn is_name(name: &str) -> bool {
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.len() <= LONGEST_NAME
        && !name.contains('\0')
        && name.split('/').count() <= DEPTH + 1
        && name.split('/').all(is_plain)
}

fn values_in(namespace: &Namespace) -> Result<Values, Error> {
    namespace.run(values_here)?.map_err(|_| Error::TooMuch(namespace.name().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str, value: &str, is_changed: bool) -> Parameter {
        Parameter { name: name.to_owned(), value: value.to_owned(), is_changed }
    }

    /// Does something in a fresh namespace; needs root, and prints that it was skipped without.
    fn with(work: impl FnOnce(&Namespace) + Send) {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        in_fresh(|| work(&Namespace::current().unwrap())).unwrap();
    }

    #[test]
    fn a_name_leads_below_the_directory_and_nowhere_else() {
        assert!(is_name("ipv4/conf/eth0.7/rp_filter"));
        for name in
            ["", "/etc/x", "ipv4//x", "../kernel/core_pattern", "a/../../b", "a/./b", "a\0b"]
        {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(!is_name(&"a/".repeat(50)) && !is_name(&"a".repeat(300)));
    }

    #[test]
    fn an_interfaces_parameter_is_compared_with_those_of_interfaces_to_come() {
        let fresh: Values =
            [("ipv4/conf/default/x", "1"), ("ipv4/conf/lo/x", "2"), ("core/y", "3")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let of = |name| default_of(name, &fresh).map(String::as_str);
        assert_eq!(of("ipv4/conf/eth0/x"), Some("1"));
        assert_eq!(of("ipv4/conf/lo/x"), Some("2"));
        assert_eq!(of("core/y"), Some("3"));
        assert_eq!(of("core/z"), None);
    }

    #[test]
    fn what_was_changed_is_told_and_set_elsewhere() {
        with(|source| {
            write(Path::new("/proc/sys/net/ipv4/ip_forward"), "1").unwrap();
            write(Path::new("/proc/sys/net/ipv4/conf/lo/forwarding"), "0").unwrap();
            let read = Parameters::read(source).unwrap();
            let changed: Vec<&str> =
                read.all.iter().filter(|one| one.is_changed).map(|one| &*one.name).collect();
            assert!(changed.contains(&"ipv4/ip_forward"), "{changed:?}");
            assert!(!changed.contains(&"ipv4/conf/lo/forwarding"), "{changed:?}");
            assert!(read.changed_since(source).unwrap().is_empty());
            with(|copy| {
                assert!(read.apply(copy).unwrap() > 0);
                assert!(read.changed_since(copy).unwrap().is_empty());
                assert_eq!(read.apply(copy).unwrap(), 0);
            });
            write(Path::new("/proc/sys/net/core/somaxconn"), "77").unwrap();
            let told: Vec<String> =
                read.changed_since(source).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(told, ["net.core.somaxconn = 77"]);
        });
    }

    #[test]
    fn what_no_host_reads_is_not_taken_from_one() {
        let of_peer = |one: Parameter| Parameters::of_peer(vec![one]);
        of_peer(parameter("ipv4/ip_forward", "1", true)).unwrap();
        for strange in [
            parameter("../kernel/core_pattern", "|/x", true),
            parameter("ipv4/ip_forward", "1\0", true),
            parameter("ipv4/ip_forward", &"1".repeat(1 << 17), true),
        ] {
            assert!(matches!(of_peer(strange), Err(Error::Strange(_))));
        }
        let many = vec![parameter("ipv4/ip_forward", "1", false); MOST + 1];
        assert!(matches!(Parameters::of_peer(many), Err(Error::TooMuch(_))));
    }

    #[test]
    fn only_what_was_changed_has_to_be_taken() {
        with(|copy| {
            let all = |one| Parameters { all: vec![one] };
            let unknown = |is_changed| all(parameter("ipv4/tcp_of_the_future", "1", is_changed));
            assert_eq!(unknown(false).apply(copy).unwrap(), 1);
            let refused = unknown(true).apply(copy).unwrap_err();
            assert!(refused.to_string().contains("net.ipv4.tcp_of_the_future = 1"), "{refused}");
            let gone = all(parameter("ipv4/conf/eth7/rp_filter", "1", true));
            gone.apply(copy).unwrap();
            let read_only = all(parameter("ipv4/tcp_mem", "1 2 3", true));
            assert!(matches!(read_only.apply(copy), Err(Error::Refused(_))));
        });
    }
}
