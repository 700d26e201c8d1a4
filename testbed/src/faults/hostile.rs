//! A paired host that does not keep to the protocol, and what a host must still have afterwards.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::build::HOSTILE_PEER;
use crate::error::Result;
use crate::host::Host;

/// How long it waits for each answer, in milliseconds.
const PATIENCE_MS: u64 = 1500;
/// The same of one in haste.
const HASTE_MS: u64 = 600;
/// How long staging may take.
const STAGED_MS: u64 = 30_000;
/// A number of a migration that there is none of.
pub(crate) const NO_MIGRATION: [u8; 16] = [0xee; 16];

/// What came back for one message.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Answer {
    /// The message's name.
    pub(crate) sent: String,
    /// The answer's name; `closed`, or `silence` if none came in time.
    pub(crate) answer: String,
    /// What it says.
    pub(crate) text: String,
}

impl Answer {
    /// Whether the far end did not do what it was told.
    pub(crate) fn is_refusal(&self) -> bool {
        ["Failure", "closed", "silence"].contains(&self.answer.as_str())
    }
}

/// Has a host hold conversations with the agent-server of another one, one connection each.
pub(crate) fn say(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
) -> Result<Vec<Vec<Answer>>> {
    say_within(from, to, conversations, PATIENCE_MS)
}

/// The same by one that does not wait long for answers: what it tells may be a silence more.
pub(crate) fn say_hastily(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
) -> Result<Vec<Vec<Answer>>> {
    say_within(from, to, conversations, HASTE_MS)
}

/// The same by one that waits until a container is staged.
pub(crate) fn say_patiently(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
) -> Result<Vec<Vec<Answer>>> {
    say_within(from, to, conversations, STAGED_MS)
}

fn say_within(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
    patience_ms: u64,
) -> Result<Vec<Vec<Answer>>> {
    let script = json!({
        "to": format!("{}:7472", to.address()),
        "patience_ms": patience_ms,
        "conversations": conversations,
    });
    from.command(HOSTILE_PEER).args(["say"]).input(script.to_string()).run()?.json()
}

/// What another host is known as.
pub(crate) fn identity(host: &Host) -> Result<Value> {
    host.command(HOSTILE_PEER).args(["whoami"]).run()?.json()
}

/// A message with its body.
pub(crate) fn message(name: &str, body: Value) -> Value {
    json!({ "send": name, "body": body })
}

/// The end of a tunnel whose key nobody has.
pub(crate) fn strange_end() -> Value {
    json!({ "kind": "wireguard", "transport": { "WireGuard": { "public_key": vec![9; 32], "port": 40000 } } })
}

/// Orders for a migration that is another host's; each is a conversation.
pub(crate) fn orders(migration: &Value) -> Vec<Vec<Value>> {
    let resume = || message("Resume", migration.clone());
    let order = |name: &str| message(name, migration.clone());
    vec![
        vec![order("LedPast")],
        vec![order("Commit")],
        vec![order("Abort")],
        vec![resume(), order("LedPast")],
        vec![resume(), message("Finish", Value::Null)],
        vec![resume(), order("Abort")],
        vec![resume(), order("Commit")],
    ]
}

/// Every message that is none to begin with, as the first one; those of another's migration name it.
pub(crate) fn first_messages(migration: &Value) -> Vec<Value> {
    let id = |name: &str| message(name, migration.clone());
    let nothing = |name: &str| message(name, Value::Null);
    let data = |name: &str| message(name, json!([1, 2, 3]));
    let image = json!({ "id": "0".repeat(64), "name": "probe:1" });
    let end = json!({ "tree": "Root", "digest": vec![0; 16] });
    let removal = json!({ "tree": "Root", "record": { "Remove": { "path": [0x78] } } });
    let anchor = json!({ "host": vec![1; 16], "address": "192.0.2.1", "end": strange_end() });
    let flows = json!({ "anchor": null, "flows": [], "aliases": [], "at_destination": [] });
    let verdict = json!({ "blockers": [], "image_missing": false, "addresses": [] });
    let prepared = json!({ "entries_us": 1, "restore_us": 1, "compare_us": 1, "differences": [] });
    let facts = json!({ "kinds": [], "is_last": true });
    vec![
        message("Verdict", verdict),
        message("TunnelOffer", strange_end()),
        message("TunnelAnswer", strange_end()),
        message("ImageBegin", image),
        data("ImageData"),
        nothing("ImageEnd"),
        nothing("ImageStored"),
        message("Stage", json!([])),
        message("Staged", json!([])),
        message("TreeChange", removal),
        message("TreeEnd", end),
        message("TreeApplied", json!("Root")),
        message("Chunks", json!([])),
        message("Flows", flows),
        message("Settings", json!({ "sockets": [], "tasks": [], "cgroup": [] })),
        message("Facts", facts),
        message("NetworkState", json!({ "configuration": [], "parameters": [] })),
        id("AskSilent"),
        message("Silent", json!([])),
        message("TryPaths", json!([])),
        nothing("PathsReady"),
        nothing("AskPaths"),
        message("PathsTried", json!([])),
        nothing("EndPaths"),
        message("Prepared", prepared),
        id("Commit"),
        nothing("Committed"),
        nothing("Finish"),
        message("Finished", json!({ "pid": 1, "full_buffers": 0, "local": [] })),
        id("Abort"),
        nothing("Aborted"),
        nothing("Resumed"),
        data("LogData"),
        message("Anchor", anchor),
        nothing("AnchorReady"),
        message("Rehomed", json!(3)),
        nothing("AskTurn"),
        message("TurnAnswer", json!(true)),
        nothing("ForwardEnded"),
        message("FlowsEnded", json!(3)),
        id("LedPast"),
    ]
}

/// The number of the migration under way on a host, by its journal.
pub(crate) fn migration(host: &Host) -> Option<Value> {
    let entries = std::fs::read_dir(host.path("/var/lib/netmig/journal")).ok()?;
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find_map(|name| number(&name))
}

/// The number of a migration by the name of its journal.
pub(crate) fn number(name: &str) -> Option<Value> {
    let byte = |at: usize| u8::from_str_radix(name.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..32).step_by(2).map(byte).collect();
    bytes.filter(|_| name.len() == 32).map(Value::from)
}

/// The tunnels of a host: interface, own key, and the other end's key and address.
pub(crate) fn tunnels(host: &Host) -> Result<BTreeSet<String>> {
    let dump = host.run(["wg", "show", "all", "dump"])?;
    let mut all = BTreeSet::new();
    for line in dump.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            // Of an interface: name, private key, public key, port, mark.
            [name, _, public, port, _] => all.insert(format!("{name} {public} {port}")),
            // Of a peer: name, public key, preshared key, address, allowed addresses.
            [name, public, _, address, allowed, ..] => {
                let mut allowed: Vec<&str> = allowed.split(',').collect();
                allowed.sort_unstable();
                all.insert(format!("{name} to {public} {address} {}", allowed.join(",")))
            }
            _ => false,
        };
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_message_is_another_one() {
        let all = first_messages(&json!(NO_MIGRATION));
        let names: BTreeSet<&str> = all.iter().filter_map(|one| one["send"].as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(!names.contains("Offer") && !names.contains("Expect"));
    }

    #[test]
    fn what_a_far_end_does_is_no_refusal() {
        let answer = |answer: &str| Answer {
            sent: "Commit".to_owned(),
            answer: answer.to_owned(),
            text: String::new(),
        };
        assert!(answer("closed").is_refusal() && answer("Failure").is_refusal());
        assert!(!answer("Committed").is_refusal() && !answer("Resumed").is_refusal());
    }
}
