//! Drives a paired host that violates the protocol, and inspects what its victim still has afterwards.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Result;
use crate::host::Host;
use crate::programs::HOSTILE_PEER;

/// The time in milliseconds for each answer.
const PATIENCE_MS: u64 = 1500;
/// The same in conversations that do not wait for slow answers.
const HASTE_MS: u64 = 600;
/// The same in conversations that stage a container.
const STAGED_MS: u64 = 30_000;
/// The ID of a migration that does not exist.
pub(crate) const NO_MIGRATION: [u8; 16] = [0xee; 16];

/// The answer to one message.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Answer {
    /// The name of the message.
    pub(crate) sent: String,
    /// The name of the answer; `closed` for a closed connection, `silence` if no answer came in time.
    pub(crate) answer: String,
    /// The text of the answer.
    pub(crate) text: String,
}

impl Answer {
    /// Returns whether the agent did not obey the message.
    pub(crate) fn is_refusal(&self) -> bool {
        ["Failure", "closed", "silence"].contains(&self.answer.as_str())
    }
}

/// Holds conversations with the agent-server of another host, each over a connection of its own.
pub(crate) fn say(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
) -> Result<Vec<Vec<Answer>>> {
    say_within(from, to, conversations, PATIENCE_MS)
}

/// Like [`say`], with a short wait for answers: a slow answer counts as `silence`.
pub(crate) fn say_hastily(
    from: &Host,
    to: &Host,
    conversations: &[Vec<Value>],
) -> Result<Vec<Vec<Answer>>> {
    say_within(from, to, conversations, HASTE_MS)
}

/// Like [`say`], with a wait that is long enough for a container to be staged.
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

/// Returns the identity under which a host is known to others.
pub(crate) fn identity(host: &Host) -> Result<Value> {
    host.command(HOSTILE_PEER).args(["whoami"]).run()?.json()
}

/// Builds a message.
pub(crate) fn message(name: &str, body: Value) -> Value {
    json!({ "send": name, "body": body })
}

/// Builds a tunnel end with a key that no host has.
pub(crate) fn strange_end() -> Value {
    json!({ "kind": "wireguard", "transport": { "WireGuard": { "public_key": vec![9; 32], "port": 40000 } } })
}

/// Builds conversations that give orders for a migration.
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

/// Builds every message with which a conversation must not begin. Those that concern a migration name `migration`.
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
        message("CountFlows", json!([])),
        id("AskCounts"),
        message("FlowCounts", Value::Null),
        message("CountPackets", json!([])),
        message("Passage", Value::Null),
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

/// Returns the ID of the migration under way on a host, by its journal.
pub(crate) fn migration(host: &Host) -> Option<Value> {
    let entries = std::fs::read_dir(host.path("/var/lib/netmig/journal")).ok()?;
    let mut names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find_map(|name| number(&name))
}

/// Parses the name of a journal, which is the migration's ID.
pub(crate) fn number(name: &str) -> Option<Value> {
    let byte = |at: usize| u8::from_str_radix(name.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..32).step_by(2).map(byte).collect();
    bytes.filter(|_| name.len() == 32).map(Value::from)
}

/// Lists the tunnels of a host with their keys, ports, peers and allowed addresses.
pub(crate) fn tunnels(host: &Host) -> Result<BTreeSet<String>> {
    let dump = host.run(["wg", "show", "all", "dump"])?;
    let mut all = BTreeSet::new();
    for line in dump.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            // An interface: name, private key, public key, port, mark.
            [name, _, public, port, _] => all.insert(format!("{name} {public} {port}")),
            // A peer: name, public key, preshared key, address, allowed addresses.
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
