//! The configuration of a container's network namespace, beyond what its engine's record says:
//! links, addresses, routes, policy rules, neighbour entries, packet filters, queueing disciplines,
//! IPsec.
//!
//! It is read in the same way from the original and from the staged copy, so that the two can be
//! compared. What may differ is not read, or is made comparable where it is read, with a comment
//! that gives the reason: indexes of interfaces, what the kernel adds by itself, and what each
//! host's network has of its own ([`Known`]). [`Parameters`](crate::sysctl::Parameters) are read
//! separately, since they can be set.

mod addresses;
mod filters;
mod links;
mod routes;
mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::netlink::{Protocol, SocketError};
use crate::netns::{self, Namespace};

/// Most facts of one namespace.
pub const MOST_FACTS: usize = 10_000;

/// Why a namespace's configuration could not be read.
#[derive(Debug, Error)]
pub enum Error {
    /// The network namespace cannot be used.
    #[error("cannot read the network of a container")]
    Namespace(#[from] netns::Error),
    /// The kernel refused to list something.
    #[error("cannot read the {what} of {container}")]
    Read {
        /// What was to be listed.
        what: &'static str,
        /// What the network namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Netfilter refused to list its tables.
    #[error("cannot read the nftables tables of {container}")]
    Tables {
        /// What the network namespace belongs to.
        container: String,
        /// Netfilter's answer.
        #[source]
        source: SocketError,
    },
    /// There are more facts than can be compared.
    #[error(
        "the network of {0} has more than {MOST_FACTS} routes, addresses and the like, too many to compare"
    )]
    TooMuch(String),
}

/// The subject of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// An interface and its properties.
    Link,
    /// An address.
    Address,
    /// A route, or a next hop that routes share.
    Route,
    /// A policy rule.
    Rule,
    /// A permanent neighbour entry, or a proxy entry.
    Neighbour,
    /// A table of nftables, iptables, ip6tables or arptables.
    Filter,
    /// A queueing discipline with its classes and filters.
    Queueing,
    /// A policy or security association of IPsec.
    Ipsec,
}

impl Kind {
    /// All kinds, in their order.
    pub const ALL: &[Self] = &[
        Self::Link,
        Self::Address,
        Self::Route,
        Self::Rule,
        Self::Neighbour,
        Self::Filter,
        Self::Queueing,
        Self::Ipsec,
    ];

    /// Returns the kind with this name.
    #[must_use]
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.code() == code)
    }

    /// Returns the kind's stable name, by which other hosts know it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Link => "network-link",
            Self::Address => "network-address",
            Self::Route => "network-route",
            Self::Rule => "network-rule",
            Self::Neighbour => "network-neighbour",
            Self::Filter => "network-filter",
            Self::Queueing => "network-qdisc",
            Self::Ipsec => "network-ipsec",
        }
    }
}

/// An object of a namespace's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fact {
    /// Its subject.
    pub kind: Kind,
    /// Whether no engine creates such an object: it was made in the container, or by hand.
    pub is_own: bool,
    /// The object with all of its properties, for people.
    pub text: String,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What each host has of its own in a container's network, and is therefore not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Name of the container's interface.
    pub interface: String,
    /// The interface's Ethernet address in the engine's record.
    pub mac: Option<[u8; 6]>,
    /// MTU of the host's end, in bytes.
    pub mtu: u32,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its gateways.
    pub gateways: Vec<IpAddr>,
}

impl Known {
    /// Returns the name of an address that is the same on every host.
    fn name_of(&self, address: IpAddr) -> String {
        match address {
            own if self.addresses.contains(&own) => "its address".to_owned(),
            gateway if self.gateways.contains(&gateway) => "its gateway".to_owned(),
            other => other.to_string(),
        }
    }
}

/// The configuration of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    facts: BTreeSet<Fact>,
}

/// A fact that only one of two namespaces has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The fact.
    pub fact: Fact,
    /// Whether the first one has it, so that the second one has lost it.
    pub is_lost: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_lost { "missing" } else { "new" };
        write!(f, "{}: {} is {state}", self.fact.kind.code(), self.fact)
    }
}

impl Configuration {
    /// Reads the configuration of a namespace; takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Read`] or [`Error::Tables`] when something cannot be listed,
    /// [`Error::TooMuch`].
    pub fn read(namespace: &Namespace, known: &Known) -> Result<Self, Error> {
        let mut read = Self::default();
        let mut socket = namespace.netlink(Protocol::Route)?;
        let read_failed =
            |what, source| Error::Read { what, container: namespace.name().to_owned(), source };
        let failed = |what| move |error: SocketError| read_failed(what, error.into());
        let links = links::read(&mut socket, known, &mut read).map_err(failed("interfaces"))?;
        addresses::read(&mut socket, known, &links, &mut read).map_err(failed("addresses"))?;
        addresses::neighbours(&mut socket, &links, &mut read).map_err(failed("neighbours"))?;
        routes::read(&mut socket, known, &links, &mut read).map_err(failed("routes"))?;
        rules::read(&mut socket, &mut read).map_err(failed("routing rules"))?;
        links::queueing(&mut socket, &links, &mut read).map_err(failed("queueing disciplines"))?;
        match namespace.netlink(Protocol::Xfrm) {
            Ok(mut socket) => filters::ipsec(&mut socket, &mut read).map_err(failed("IPsec"))?,
            // A kernel without IPsec.
            Err(netns::Error::Socket { source, .. })
                if source.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {}
            Err(error) => return Err(error.into()),
        }
        let tables = namespace.run(filters::tables)?;
        let tables = tables
            .map_err(|source| Error::Tables { container: namespace.name().to_owned(), source })?;
        read.facts.extend(tables);
        read.facts.extend(
            namespace
                .run(filters::legacy_tables)?
                .map_err(|source| read_failed("iptables", source))?,
        );
        if read.facts.len() > MOST_FACTS {
            return Err(Error::TooMuch(namespace.name().to_owned()));
        }
        Ok(read)
    }

    /// Returns all facts, in the order of their kinds.
    pub fn into_facts(self) -> impl Iterator<Item = Fact> {
        self.facts.into_iter()
    }

    /// Returns what no engine has created, and no engine will create at the destination.
    pub fn own(&self) -> impl Iterator<Item = &Fact> {
        self.facts.iter().filter(|fact| fact.is_own)
    }

    /// Returns how another configuration differs from this one.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let lost = self.facts.difference(&other.facts).map(|fact| (fact, true));
        let new = other.facts.difference(&self.facts).map(|fact| (fact, false));
        lost.chain(new).map(|(fact, is_lost)| Difference { fact: fact.clone(), is_lost }).collect()
    }

    /// Adds a fact that an engine may have created.
    fn add(&mut self, kind: Kind, text: String) {
        self.facts.insert(Fact { kind, is_own: false, text });
    }

    /// Adds a fact that no engine creates.
    fn add_own(&mut self, kind: Kind, text: String) {
        self.facts.insert(Fact { kind, is_own: true, text });
    }
}

impl FromIterator<Fact> for Configuration {
    fn from_iter<T: IntoIterator<Item = Fact>>(facts: T) -> Self {
        Self { facts: facts.into_iter().collect() }
    }
}

/// The names of interfaces by their indexes.
type Links = Vec<(u32, String)>;

/// Returns the name of an interface.
fn name(links: &Links, index: u32) -> String {
    let found = links.iter().find(|(number, _)| *number == index);
    found.map_or_else(|| format!("interface {index}"), |(_, name)| name.clone())
}

/// Formats bytes of unknown meaning.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(facts: &[(Kind, &str)]) -> Configuration {
        let mut all = Configuration::default();
        facts.iter().for_each(|(kind, text)| all.add(*kind, (*text).to_owned()));
        all
    }

    #[test]
    fn what_one_side_alone_has_is_named() {
        let one = of(&[(Kind::Route, "10.0.0.0/8 via its gateway"), (Kind::Link, "lo, up")]);
        let other = of(&[(Kind::Link, "lo, up"), (Kind::Rule, "7: from all lookup 7")]);
        let told: Vec<String> = one.differences(&other).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "network-route: 10.0.0.0/8 via its gateway is missing",
                "network-rule: 7: from all lookup 7 is new"
            ]
        );
        assert!(one.differences(&one).is_empty());
    }

    #[test]
    fn kinds_are_found_by_their_names() {
        assert!(Kind::ALL.iter().all(|kind| Kind::of_code(kind.code()) == Some(*kind)));
        assert_eq!(Kind::of_code("weather"), None);
    }

    #[test]
    fn addresses_that_hosts_have_their_own_of_are_called_the_same() {
        let known = |own: &str, gateway: &str| Known {
            addresses: vec![own.parse().unwrap()],
            gateways: vec![gateway.parse().unwrap()],
            ..Known::default()
        };
        let (a, b) = (known("10.1.0.2", "10.1.0.1"), known("10.2.0.9", "10.2.0.1"));
        assert_eq!(a.name_of([10, 1, 0, 1].into()), b.name_of([10, 2, 0, 1].into()));
        assert_eq!(a.name_of([10, 1, 0, 2].into()), b.name_of([10, 2, 0, 9].into()));
        assert_eq!(a.name_of([10, 2, 0, 9].into()), "10.2.0.9");
    }

    /// Needs root; prints that it was skipped without.
    #[test]
    fn a_fresh_namespace_has_nothing_of_its_own() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let fresh = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Namespace::current().unwrap()
        });
        let fresh = fresh.join().unwrap();
        let read = Configuration::read(&fresh, &Known::default()).unwrap();
        let own: Vec<&Fact> = read.own().collect();
        assert!(own.is_empty(), "{own:?}");
        assert_eq!(read, Configuration::read(&fresh, &Known::default()).unwrap());
    }
}
