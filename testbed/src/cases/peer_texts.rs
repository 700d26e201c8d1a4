//! Texts of peers reach terminals and logs as plain text, one line each.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::flows::traces;
use crate::ensure;
use crate::error::Result;
use crate::faults::hostile_peer::{self, message};
use crate::programs::HOSTILE_PEER;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("trust-texts-of-a-destination", &["trust"], of_a_destination),
    Case::new("trust-texts-of-a-source", &["trust"], of_a_source),
];

/// The time limit for each operation.
const LIMIT: Duration = Duration::from_secs(30);
/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;
/// A forged line of agent-client.
const FORGED: &str = "agent-client: web runs there now";

/// Returns a text that clears a terminal, sets its title, forges a line, and reverses the reading direction.
fn hostile_text() -> String {
    format!("sorry\u{1b}[2J\u{1b}]0;title\u{7}\n{FORGED}\r\n\u{9b}1m\u{202e}txt\u{2066}")
}

/// Returns whether a text has no control characters and no forged line.
fn is_plain(text: &str) -> bool {
    let strange = |c: char| {
        (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c) || c == '\u{2066}'
    };
    !text.contains(strange) && !text.lines().any(|line| line.trim_start().starts_with(FORGED))
}

/// Returns all strings of a JSON value.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(all) => all.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn of_a_destination(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    lab.stop_server("b", Signal::SIGTERM)?;
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sleep", "10000"])?;
    for role in ["Refuse", "Fail"] {
        let script = json!({ "port": 7472, "role": role, "text": hostile_text() }).to_string();
        let mut peer = b.command(HOSTILE_PEER).args(["answer", &script]).spawn()?;
        peer.wait_for("listening", LIMIT)?;
        let line = ["migrate", "web", "b"];
        let told = a.command("agent-client").args(line).env("NO_COLOR", "1").limit(LIMIT);
        let told = told.output()?;
        let text = told.text() + &told.error_text();
        ensure!(told.status.code() == Some(REFUSED) && text.contains("sorry"), "{role}: {text:?}");
        ensure!(is_plain(&text), "{role}: {text:?}");
        let told = a.command("agent-client").args(line).args(["--json"]).limit(LIMIT).output()?;
        let value: Value = told.json()?;
        let texts = texts(&value);
        ensure!(texts.iter().any(|text| text.contains("sorry")), "{role}: {value}");
        ensure!(texts.iter().all(|text| is_plain(text)), "{role}: {value}");
        peer.signal(Signal::SIGKILL)?;
        peer.wait(LIMIT)?;
    }
    Ok(())
}

fn of_a_source(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sleep", "10000"])?;
    let offer = json!({ "offer": "web", "migration": vec![7; 16] });
    let kind = vec![offer.clone(), json!({ "tunnel_of_kind": hostile_text() })];
    let path = format!("../{}", hostile_text());
    let change = json!({ "tree": "Root", "record": { "Remove": { "path": path.as_bytes() } } });
    let change = json!({ "send": "TreeChange", "at_once": true, "body": change });
    let turn = message("AskTurn", Value::Null);
    let path = vec![offer, json!({ "tunnel": true }), change, message("Stage", json!([])), turn];
    for (what, said) in [("the kind of a tunnel", kind), ("a path", path)] {
        let before = lab.server_log("b").len();
        let answers = hostile_peer::say_patiently(a, b, &[said])?;
        traces::none_within(b, LIMIT)?;
        let log = lab.server_log("b").split_off(before);
        ensure!(log.contains("sorry"), "{what}: {answers:?}; b says {log}");
        // The log has colours of its own.
        let strange = ["\u{1b}[2J", "\u{1b}]", "\u{7}", "\u{9b}", "\u{202e}", "\u{2066}", "\r"];
        ensure!(!strange.iter().any(|one| log.contains(one)), "{what}: {log:?}");
        ensure!(!log.lines().any(|line| line.starts_with(FORGED)), "{what}: {log:?}");
    }
    Ok(())
}
