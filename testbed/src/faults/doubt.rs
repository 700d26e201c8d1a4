//! A move in doubt: how a person learns of it, and what a person orders.

use std::time::Duration;

use super::NAME;
use crate::cases::terminal::Terminal;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;

/// The longest time until a program prompts the operator.
const PROMPT_LIMIT: Duration = Duration::from_secs(60);
/// What the source says of a copy that was heard and is gone.
const LOST: [&str; 2] = ["ran on this host, and is gone", "before all of its memory had arrived"];
/// What it says when the original runs again, and when there is none that could.
const RUNS_AGAIN: &str = "runs on this host again";
const NOTHING_LEFT: &str = "nothing is left of that migration";

/// Returns whether an agent on the source has reported that the migration is in doubt.
pub(super) fn in_doubt(host: &Host, client: &HostProcess) -> bool {
    has_said(host, client, &["in doubt"])
}

/// Returns whether the source has reported that the copy is lost.
pub(super) fn is_lost(host: &Host, client: &HostProcess) -> bool {
    has_said(host, client, &LOST)
}

fn has_said(host: &Host, client: &HostProcess, words: &[&str]) -> bool {
    let log = host.read("/run/netmig/recover.log").unwrap_or_default();
    let said = client.stderr();
    words.iter().any(|words| said.contains(words) || log.contains(words))
}

/// Rolls back as an operator who knows that the destination will not come back.
pub(super) fn roll_back(host: &Host) -> Result<()> {
    order(host, RUNS_AGAIN)
}

/// Asks the source what has become of the move. If the copy is lost, gives the container up as an operator who knows that the
/// original has ended with its host. Returns whether that was so.
pub(super) fn give_up_if_lost(host: &Host) -> Result<bool> {
    let recovery = host.command("agent-client").args(["recover"]).limit(PROMPT_LIMIT).output()?;
    let said = recovery.text() + &recovery.error_text();
    if !LOST.iter().any(|words| said.contains(words)) {
        return Ok(false);
    }
    order(host, NOTHING_LEFT)?;
    Ok(true)
}

fn order(host: &Host, outcome: &str) -> Result<()> {
    let words = ["recover", "--rollback-anyway", NAME];
    let mut terminal = Terminal::start(host.command("agent-client").args(words))?;
    terminal.expect("two of it will run", PROMPT_LIMIT)?;
    terminal.send(&format!("{NAME}\r"))?;
    terminal.expect(outcome, PROMPT_LIMIT)?;
    match terminal.finish(PROMPT_LIMIT)? {
        Some(0) => Ok(()),
        code => Err(Error::Check(format!("exit code {code:?}: {}", terminal.screen()))),
    }
}
