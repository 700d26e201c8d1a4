//! The container's network namespace: what of it is not its engine's is refused or sent along, and who could
//! change it at the last moment is looked at once more.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use checkpoint::procfs;
use engine::inspect::Container;
use netmig::bridge_port::Port;
use netmig::configuration::{Configuration, Difference, Kind, Known};
use netmig::netns::Namespace;
use netmig::sysctl::{Parameter, Parameters};
use state::blocker::Blocker;
use state::cause::Cause;

use crate::convert::NetworkState;

/// Most objects that a sentence names.
const NAMED: usize = 5;
/// The code of parameters.
const PARAMETER: &str = "network-parameter";
/// The path that keeps root in the container from writing kernel parameters.
const PARAMETERS: &str = "/proc/sys";

/// The network was changed after it had been compared.
#[derive(Debug, thiserror::Error)]
#[error("the container has changed its network while it was about to move: {}; try again", .0.join("; "))]
pub struct Changed(Vec<String>);

/// What a container's network namespace is like.
#[derive(Debug)]
pub struct OwnNetwork {
    known: Known,
    state: NetworkState,
    /// Whether the engine lets root in the container write kernel parameters.
    has_writable_parameters: bool,
}

impl OwnNetwork {
    /// Reads it.
    pub fn read(
        container: &Container,
        namespace: &Namespace,
        (interface, port): (&str, &Port),
        readonly_paths: &[String],
    ) -> Result<Self, Cause> {
        let networks = || container.networks.iter();
        let gateways = networks().flat_map(|network| network.gateways.iter());
        let known = Known {
            interface: interface.to_owned(),
            mac: networks().find_map(|network| ethernet_address(network.mac.as_deref()?)),
            mtu: port.mtu(),
            addresses: networks()
                .flat_map(|network| &network.addresses)
                .map(|(address, _)| *address)
                .collect::<Vec<IpAddr>>(),
            gateways: gateways.chain(&port.bridge().addresses).copied().collect(),
        };
        let began = Instant::now();
        let state = NetworkState {
            configuration: Configuration::read(namespace, &known)?,
            parameters: Parameters::read(namespace)?,
        };
        tracing::debug!(elapsed = ?began.elapsed(), "the container's network is read");
        let has_writable_parameters = !readonly_paths.iter().any(|path| path == PARAMETERS);
        Ok(Self { known, state, has_writable_parameters })
    }

    /// Returns what no engine makes, and the destination's will not make either: a sentence for each kind.
    pub fn blockers(&self, container: &str) -> Vec<Blocker> {
        let mut kinds: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        for fact in self.state.configuration.own() {
            kinds.entry(fact.kind).or_default().push(fact.to_string());
        }
        let blocker = |(kind, objects): (Kind, Vec<String>)| {
            Blocker::new(
                kind.code(),
                format!(
                    "the network namespace of {container} has been changed, and that does not move: {}; undo it, \
                 and make it again at the destination",
                    listed(&objects)
                ),
            )
        };
        kinds.into_iter().map(blocker).collect()
    }

    /// Returns what the destination is told.
    pub fn state(&self) -> &NetworkState {
        &self.state
    }

    /// Refuses a frozen container that has changed its network meanwhile. One that cannot is not looked at.
    pub fn check_frozen(&self, namespace: &Namespace, pids: &[i32]) -> Result<(), Cause> {
        let may_change = self.has_writable_parameters
            || pids.iter().any(|pid| procfs::may_administer_networks(*pid));
        if !may_change {
            return Ok(());
        }
        let began = Instant::now();
        let now = Configuration::read(namespace, &self.known)?;
        let differences = self.state.configuration.differences(&now);
        let mut changed: Vec<String> = differences.iter().map(Difference::to_string).collect();
        let parameters = self.state.parameters.changed_since(namespace)?;
        tracing::debug!(elapsed = ?began.elapsed(), "its network is read once more");
        let named = |parameter: &Parameter| format!("{PARAMETER}: {parameter}");
        changed.extend(parameters.iter().map(named));
        changed.truncate(NAMED);
        if changed.is_empty() { Ok(()) } else { Err(Changed(changed).into()) }
    }
}

fn listed(objects: &[String]) -> String {
    let mut text = objects.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if objects.len() > NAMED {
        text.push_str(&format!(" and {} more", objects.len() - NAMED));
    }
    text
}

/// Returns the bytes of an address such as `02:42:0a:00:00:02`.
fn ethernet_address(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<Vec<u8>, _>>().ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_has_six_bytes() {
        assert_eq!(ethernet_address("02:42:0a:00:00:ff"), Some([2, 0x42, 10, 0, 0, 255]));
        for text in ["", "02:42:0a:00:00", "02:42:0a:00:00:02:03", "02:42:0a:00:00:xx"] {
            assert_eq!(ethernet_address(text), None, "{text}");
        }
    }

    #[test]
    fn a_sentence_names_some_and_counts_the_rest() {
        let objects: Vec<String> = (0..7).map(|number| format!("rule {number}")).collect();
        assert_eq!(listed(&objects[..2]), "rule 0, rule 1");
        assert_eq!(listed(&objects), "rule 0, rule 1, rule 2, rule 3, rule 4 and 2 more");
    }
}
