//! Which addresses stand for others in this host's tunnels, from its notes and its flows.
//!
//! The host whose addresses they are chooses them, and tells its peers: in the offer, and with the flows. What
//! hosts chose without knowing of each other may be the same. Then a move is refused.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netmig::flow::{Alias, Aliases, Conntrack, TunnelNat, is_alias};

use crate::moved_containers;
use crate::port_forward;
use state::blocker::Blocker;
use state::cause::{Cause, chain};
use state::directories::Directories;
use state::id::HostId;

/// Code of the reason against a migration.
const CODE: &str = "alias-taken";

/// An address stands for two others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "in the tunnels of this host {alias} stands for {here}, and for {other} of container {container} \
     (alias-taken); try again when the flows of one of them have ended"
)]
pub struct AliasTaken {
    /// The address in tunnels.
    pub alias: IpAddr,
    /// For what it is meant to stand.
    pub here: IpAddr,
    /// For what it stands.
    pub other: IpAddr,
    /// The container for which that is exchanged.
    pub container: String,
}

/// A far end tells of an address that no host chooses to stand for another.
#[derive(Debug, thiserror::Error)]
#[error("the source says that {0} stands for another address, which is of no range for that")]
pub struct NoAliasAtAll(IpAddr);

/// Returns what stands for which address of this host, according to flows and notes.
///
/// # Errors
/// A note or the conntrack table cannot be read.
pub fn known(directories: &Directories, HostId(this): HostId) -> Result<Aliases, Cause> {
    let aliases = Aliases::new(this);
    for note in moved_containers::all(directories)? {
        aliases.learn_nat(&note.exchange);
    }
    for note in port_forward::all(directories)? {
        note.readdressed.iter().for_each(|(by, _)| aliases.avoid(*by));
        let stand_ins = note.away().map(|away| &away.stand_ins[..]).unwrap_or_default();
        for address in stand_ins.iter().copied().filter(|address| is_alias(*address)) {
            aliases.learn(Alias { here: this_host(address.is_ipv4()), address });
        }
    }
    for counted in Conntrack::open()?.marked()? {
        for tuple in [counted.flow.original, counted.flow.reply] {
            aliases.avoid(tuple.source);
            aliases.avoid(tuple.destination);
        }
    }
    Ok(aliases)
}

/// Returns what means the host itself, where it has no address of a family.
pub(crate) fn this_host(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// What is exchanged for other containers than one: each alias with that for which it stands.
#[derive(Debug, Default)]
pub struct OfOthers {
    own: BTreeMap<IpAddr, Meaning>,
    /// Those that third hosts chose.
    passing: BTreeMap<IpAddr, Meaning>,
}

/// An address, and the name of the container for which it is exchanged.
type Meaning = (IpAddr, String);

impl OfOthers {
    /// Reads the notes of all containers but the one with this ID.
    ///
    /// # Errors
    /// A note cannot be read.
    pub fn read(directories: &Directories, id: &str) -> Result<Self, Cause> {
        let mut others = Self::default();
        for note in moved_containers::all(directories)?.into_iter().filter(|note| note.id != id) {
            let meaning = |one: &Alias| (one.address, (one.here, note.name.clone()));
            others.own.extend(note.exchange.own().map(meaning));
            others.passing.extend(note.exchange.others().map(meaning));
        }
        Ok(others)
    }

    /// Checks what this host is to exchange.
    ///
    /// # Errors
    /// [`AliasTaken`].
    pub fn check(&self, exchange: &TunnelNat) -> Result<(), AliasTaken> {
        let mut seen = BTreeMap::new();
        for Alias { here, address } in exchange.own().chain(exchange.others()) {
            let twice = seen.insert(*address, *here).map(|other| (other, "this one".to_owned()));
            let noted = [self.own.get(address), self.passing.get(address)];
            let mut taken = noted.into_iter().flatten().cloned().chain(twice);
            if let Some((other, container)) = taken.find(|(other, _)| other != here) {
                return Err(AliasTaken { alias: *address, here: *here, other, container });
            }
        }
        Ok(())
    }

    /// Checks what stands for addresses of a source. In the tunnels of this host it stands for them, too, and
    /// so for nothing of this host's.
    ///
    /// # Errors
    /// [`AliasTaken`], [`NoAliasAtAll`].
    pub fn check_far(&self, stand_ins: &[Alias]) -> Result<(), Cause> {
        for Alias { here, address } in stand_ins {
            if !is_alias(*address) || address.is_ipv4() != here.is_ipv4() {
                return Err(NoAliasAtAll(*address).into());
            }
            if let Some((other, container)) = self.own.get(address).cloned() {
                return Err(AliasTaken { alias: *address, here: *here, other, container }.into());
            }
        }
        Ok(())
    }
}

/// Returns such an error as a reason against a migration, on the host with this name.
#[must_use]
pub fn blocker(host: &str, taken: &(dyn Error + 'static)) -> Blocker {
    Blocker::new(CODE, format!("{host}: {}", chain(taken)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moved_containers::MovedContainer;

    fn stand_in(here: &str, address: &str) -> Alias {
        Alias { here: here.parse().unwrap(), address: address.parse().unwrap() }
    }

    fn container(stand_ins: &[Alias]) -> TunnelNat {
        TunnelNat { container: stand_ins.to_vec(), ..TunnelNat::default() }
    }

    #[tokio::test]
    async fn one_alias_never_stands_for_two_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let (state, run) = (dir.path().join("s"), dir.path().join("r"));
        let directories = Directories { state, run };
        directories.create().unwrap();
        let noted = container(&[stand_in("10.88.0.2", "198.18.0.1")]);
        MovedContainer::new(&"c".repeat(64), "web", &[], noted.clone())
            .note(&directories)
            .await
            .unwrap();
        let others = OfOthers::read(&directories, &"d".repeat(64)).unwrap();
        others.check(&noted).unwrap();
        others.check(&container(&[stand_in("10.88.0.3", "198.18.0.2")])).unwrap();
        let taken = others.check(&container(&[stand_in("10.88.0.3", "198.18.0.1")])).unwrap_err();
        for word in ["198.18.0.1", "10.88.0.3", "10.88.0.2", "web", "alias-taken"] {
            assert!(taken.to_string().contains(word), "{taken}");
        }
        assert_eq!(blocker("a", &taken).code, "alias-taken");
        let both = [stand_in("10.88.0.3", "198.18.0.2"), stand_in("10.88.0.4", "198.18.0.2")];
        assert!(others.check(&container(&both)).is_err(), "within one container");
        assert!(others.check_far(&[stand_in("10.88.0.2", "198.18.0.1")]).is_err(), "a source's");
        others.check_far(&[stand_in("10.88.0.2", "198.18.0.2")]).unwrap();
        for hostile in [stand_in("10.88.0.2", "192.0.2.1"), stand_in("10.88.0.2", "fd00::1")] {
            assert!(others.check_far(&[hostile]).is_err());
        }
        let own = OfOthers::read(&directories, &"c".repeat(64)).unwrap();
        own.check_far(&[stand_in("10.88.0.9", "198.18.0.1")]).unwrap();
    }
}
