//! The configuration of network namespaces.

use netmig::configuration::{Configuration, Fact, Kind, MOST_FACTS};
use netmig::sysctl::{Parameter, Parameters};
use protocol::message::facts::{self as wire, NetworkFactsOfKind};

use super::{Refused, Wire, plain_fields, same_fields};

/// The configuration of a container's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkState {
    /// What has to be equal.
    pub configuration: Configuration,
    /// Kernel parameters, which the destination sets.
    pub parameters: Parameters,
}

plain_fields! {
    Parameter => wire::Parameter { name, value, is_changed }
}

same_fields! {
    NetworkState => wire::NetworkState { configuration, parameters }
}

impl Wire for Configuration {
    type Form = Vec<NetworkFactsOfKind>;

    fn into_wire(self) -> Self::Form {
        let mut kinds: Self::Form = Vec::new();
        // Facts come in the order of their kinds.
        for Fact { kind, is_own, text } in self.into_facts() {
            if kinds.last().is_none_or(|last| last.kind != kind.code()) {
                kinds.push(NetworkFactsOfKind { kind: kind.code().to_owned(), facts: Vec::new() });
            }
            if let Some(last) = kinds.last_mut() {
                last.facts.push(wire::NetworkFact { is_own, text });
            }
        }
        kinds
    }

    fn from_wire(form: Self::Form) -> Result<Self, Refused> {
        if form.iter().map(|of_kind| of_kind.facts.len()).sum::<usize>() > MOST_FACTS {
            return Err(Refused::TooMany { what: "facts about a network", limit: MOST_FACTS });
        }
        let mut all = Vec::new();
        for NetworkFactsOfKind { kind, facts } in form {
            let kind = Kind::of_code(&kind).ok_or_else(|| Refused::UnknownKind(kind.into()))?;
            let fact = |wire::NetworkFact { is_own, text }| Fact { kind, is_own, text };
            all.extend(facts.into_iter().map(fact));
        }
        Ok(all.into_iter().collect())
    }
}

impl Wire for Parameters {
    type Form = Vec<wire::Parameter>;

    fn into_wire(self) -> Self::Form {
        self.into_all().into_wire()
    }

    fn from_wire(form: Self::Form) -> Result<Self, Refused> {
        Ok(Self::of_peer(Vec::from_wire(form)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn parameter(name: &str) -> Parameter {
        Parameter { name: name.to_owned(), value: "1".to_owned(), is_changed: true }
    }

    #[test]
    fn a_configuration_comes_back() {
        let kinds = Kind::ALL.iter();
        let both = kinds.flat_map(|kind| [(*kind, true), (*kind, false)]);
        let fact = |(kind, is_own)| Fact { kind, is_own, text: format!("{kind:?} of 10.0.0.0/8") };
        let configuration: Configuration = both.map(fact).collect();
        let parameters = Parameters::of_peer(vec![parameter("ipv4/ip_forward")]).unwrap();
        comes_back(&NetworkState { configuration, parameters });
        comes_back(&NetworkState::default());
    }

    #[test]
    fn what_no_source_sends_is_refused() {
        let strange = vec![parameter("../kernel/core_pattern").into_wire()];
        assert!(matches!(Parameters::from_wire(strange), Err(Refused::Parameters(_))));
        let of_kind = |kind: &str, facts| NetworkFactsOfKind { kind: kind.to_owned(), facts };
        let unknown = Configuration::from_wire(vec![of_kind("weather", Vec::new())]);
        assert!(matches!(unknown, Err(Refused::UnknownKind(_))));
        let fact = wire::NetworkFact { is_own: false, text: String::new() };
        let many = of_kind("network-route", vec![fact; MOST_FACTS + 1]);
        assert!(matches!(Configuration::from_wire(vec![many]), Err(Refused::TooMany { .. })));
    }
}
