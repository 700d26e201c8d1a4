//! Lists of peers, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{Peer, Peers, peers};
use state::peer_address::Destination;

/// The role of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It may move containers here.
    Source,
    /// Containers may be moved there.
    Destination,
}

impl Role {
    /// Returns whether a peer has this role.
    #[must_use]
    pub fn is_of(self, peer: &Peer) -> bool {
        match self {
            Self::Source => peer.source.is_some(),
            Self::Destination => peer.destination.is_some(),
        }
    }

    /// Returns what an empty list says, and what to do about it.
    fn nobody(self) -> &'static str {
        match self {
            Self::Source => "No host may move containers here. `agent-server invite` admits one.",
            Self::Destination => {
                "This host may move containers nowhere. Run `agent-server invite` at the destination and \
                 `agent-client join` here."
            }
        }
    }
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    fingerprint: String,
    paired: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

/// Lists the peers with one role, one per line, or as a JSON array of objects.
///
/// # Errors
/// [`peers::Error`], if a peer's file cannot be used.
pub fn list(peers: &Peers, role: Role, json: bool) -> Result<String, peers::Error> {
    let all: Vec<Peer> = peers.all()?.into_iter().filter(|peer| role.is_of(peer)).collect();
    let rows: Vec<Row<'_>> = all
        .iter()
        .map(|peer| Row {
            name: peer.name.as_str(),
            fingerprint: peer.fingerprint.to_string(),
            paired: peer.paired.to_string(),
            address: match role {
                Role::Source => None,
                Role::Destination => peer.destination.as_ref().map(Destination::to_string),
            },
        })
        .collect();
    if json {
        return Ok(serde_json::json!(rows).to_string());
    }
    Ok(if rows.is_empty() { role.nobody().to_owned() } else { table(&rows) })
}

fn table(rows: &[Row<'_>]) -> String {
    let longest = |of: &dyn Fn(&Row<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let name = longest(&|row| row.name.len());
    let address = longest(&|row| row.address.as_ref().map_or(0, String::len));
    let mut text = String::new();
    for row in rows {
        let place = row.address.as_deref().unwrap_or_default();
        let gap = if address > 0 { "  " } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:name$}  {place:address$}{gap}{}  paired {}",
            row.name, row.fingerprint, row.paired
        );
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Fingerprint;
    use state::private_file;

    #[test]
    fn each_role_has_its_list() {
        let dir = tempfile::tempdir().unwrap();
        let (peers, lock) = (Peers::new(dir.path()), private_file::lock(dir.path()).unwrap());
        assert!(list(&peers, Role::Source, false).unwrap().starts_with("No host"));
        assert_eq!(list(&peers, Role::Source, true).unwrap(), "[]");
        peers.add_source(&lock, Fingerprint([1; 32]), "alpha").unwrap();
        let address = "192.0.2.2:7472".parse().unwrap();
        peers.add_destination(&lock, Fingerprint([2; 32]), "b", address).unwrap();
        let sources = list(&peers, Role::Source, false).unwrap();
        assert!(sources.starts_with("alpha  SHA256:AQEB"), "{sources}");
        assert!(!sources.contains('\n'), "{sources}");
        let destinations = list(&peers, Role::Destination, true).unwrap();
        assert!(destinations.contains(r#""address":"192.0.2.2:7472""#), "{destinations}");
    }
}
