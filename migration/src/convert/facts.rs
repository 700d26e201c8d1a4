//! Fingerprints: what the kernel tells of a container.

use checkpoint::facts::{ContainerFacts, Difference, Fact, Kind, MOST_DIFFERENCES};
use protocol::message::Facts;
use protocol::message::facts::{self as wire, FactsOfKind};
use state::peer_text::PeerText;

use super::{Refused, Wire};

/// What the encoding of a fact adds to its texts, in bytes.
const OVERHEAD: usize = 16;

/// Divides a fingerprint into messages of about `bytes` bytes each, at least one.
#[must_use]
pub fn parts(fingerprint: ContainerFacts, bytes: usize) -> Vec<Facts> {
    let mut parts = vec![Facts::default()];
    let mut room = bytes;
    for (Fact { kind, object }, value) in fingerprint.into_facts() {
        let size = object.len() + value.len() + OVERHEAD;
        if size > room {
            parts.push(Facts::default());
            room = bytes;
        }
        room = room.saturating_sub(size);
        let Some(part) = parts.last_mut() else { continue };
        // Facts come in the order of their kinds.
        if part.kinds.last().is_none_or(|last| last.kind != kind.name()) {
            part.kinds.push(FactsOfKind { kind: kind.name().to_owned(), facts: Vec::new() });
        }
        if let Some(last) = part.kinds.last_mut() {
            last.facts.push(wire::Fact { object, value });
        }
    }
    if let Some(last) = parts.last_mut() {
        last.is_last = true;
    }
    parts
}

/// Adds a part to what was received of a fingerprint.
///
/// # Errors
/// [`Refused::UnknownKind`], and [`Refused::ContainerFacts`] for more facts than a container has.
pub fn join(fingerprint: &mut ContainerFacts, part: Facts) -> Result<(), Refused> {
    for FactsOfKind { kind, facts } in part.kinds {
        let kind = kind_of(&kind)?;
        let fact = |wire::Fact { object, value }| (Fact { kind, object }, value);
        fingerprint.join(facts.into_iter().map(fact))?;
    }
    Ok(())
}

impl Wire for Difference {
    type Form = wire::Difference;

    fn into_wire(self) -> wire::Difference {
        let Self { fact: Fact { kind, object }, original, copy } = self;
        wire::Difference {
            kind: kind.name().to_owned(),
            object: object.into(),
            original: original.map(PeerText::from),
            copy: copy.map(PeerText::from),
        }
    }

    fn from_wire(form: wire::Difference) -> Result<Self, Refused> {
        let wire::Difference { kind, object, original, copy } = form;
        let (original, copy) =
            (original.map(|one| one.to_string()), copy.map(|one| one.to_string()));
        Ok(Self {
            fact: Fact { kind: kind_of(&kind)?, object: object.to_string() },
            original,
            copy,
        })
    }
}

/// Takes the differences that a destination has found.
///
/// # Errors
/// [`Refused`], if there are more than a destination names, or one is of an unknown kind.
pub fn differences(form: Vec<wire::Difference>) -> Result<Vec<Difference>, Refused> {
    if form.len() > MOST_DIFFERENCES {
        return Err(Refused::TooMany { what: "differences", limit: MOST_DIFFERENCES });
    }
    Vec::from_wire(form)
}

fn kind_of(name: &str) -> Result<Kind, Refused> {
    Kind::of_name(name).ok_or_else(|| Refused::UnknownKind(name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    fn fact(kind: Kind, object: String) -> Fact {
        Fact { kind, object }
    }

    fn joined(parts: Vec<Facts>) -> Result<ContainerFacts, Refused> {
        let mut fingerprint = ContainerFacts::default();
        parts.into_iter().try_for_each(|part| join(&mut fingerprint, part))?;
        Ok(fingerprint)
    }

    #[test]
    fn a_fingerprint_comes_back_from_its_parts() {
        let mut whole = ContainerFacts::default();
        for kind in Kind::ALL {
            let facts = (0..50).map(|n| (fact(*kind, format!("object {n}")), "x".repeat(100)));
            whole.join(facts).unwrap();
        }
        let parts = parts(whole.clone(), 1000);
        assert!(parts.len() > 10, "{}", parts.len());
        let last = parts.iter().filter(|part| part.is_last).count();
        assert!(last == 1 && parts.last().unwrap().is_last);
        assert_eq!(joined(parts).unwrap(), whole);
        assert_eq!(super::parts(ContainerFacts::default(), 1000).len(), 1);
    }

    #[test]
    fn facts_of_an_unknown_kind_are_refused() {
        let kinds = vec![FactsOfKind { kind: "weather".to_owned(), facts: Vec::new() }];
        let refused = joined(vec![Facts { kinds, is_last: true }]).unwrap_err();
        assert!(matches!(refused, Refused::UnknownKind(kind) if kind == "weather"));
    }

    #[test]
    fn differences_come_back_and_are_bounded() {
        let difference = Difference {
            fact: fact(Kind::Limits, "Max open files of process 7".to_owned()),
            original: Some("1024".to_owned()),
            copy: None,
        };
        comes_back(&difference);
        let many = vec![difference.into_wire(); MOST_DIFFERENCES + 1];
        assert!(differences(many[1..].to_vec()).is_ok());
        assert!(matches!(differences(many), Err(Refused::TooMany { .. })));
    }
}
