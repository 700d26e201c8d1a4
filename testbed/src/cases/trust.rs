//! Pairing of hosts: tokens, authentication, and the end of a pairing.

use std::time::{Duration, Instant};

use super::subject::{Clients, serve};
use super::untouched::{Untouched, without_own_state};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("trust-unpaired-client-is-refused", &["trust"], unpaired),
    Case::new("trust-removed-peer-is-refused-at-once", &["trust"], removed),
    Case::new("trust-tokens-expire-and-work-once", &["trust"], tokens),
    Case::new("trust-another-host-is-refused-loudly", &["trust"], another_host),
    Case::new("trust-one-way-and-both-ways", &["trust"], both_ways),
];

/// The time limit for a server to write a line.
const LOGGED: Duration = Duration::from_secs(10);
/// The exit code of a refusal.
pub(super) const REFUSED: i32 = 3;
/// The words that the user of an unpaired host has to read.
pub(super) const WHAT_TO_DO: [&str; 3] = ["not paired", "agent-server invite", "agent-client join"];

/// Returns the fingerprint of a host from the log of its server.
pub(super) fn fingerprint(log: &str) -> Option<&str> {
    log.split_once("fingerprint is ")?.1.split_whitespace().next()
}

/// Attempts a migration of `web` from `a` to `b`. It must be refused with these words and leave both hosts as they
/// were.
pub(super) fn refused(lab: &Lab, words: &[&str]) -> Result<()> {
    let before = Untouched::look(lab, "a", "b", "web")?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    for word in words {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    }
    ensure!(attempt.json()?["outcome"] == "refused", "{}", attempt.stdout);
    before.check()
}

/// Runs `agent-client join`, which must be refused with these words.
fn join_refused(host: &Host, token: &str, words: &[&str]) -> Result<()> {
    let output = host.command("agent-client").args(["join", token]).output()?;
    let text = output.error_text();
    ensure!(output.status.code() == Some(REFUSED), "{}: {text}", output.status);
    for word in words {
        ensure!(text.contains(word), "no {word:?} in {text}");
    }
    let known = host.run(["agent-client", "peers"])?;
    ensure!(known.starts_with("This host may move containers nowhere"), "it knows {known}");
    Ok(())
}

/// Counts the lines of a server's log about a client, which may have used either of its addresses.
fn lines(lab: &Lab, server: &str, client: &Host, words: &[&str]) -> usize {
    let addresses = [format!("{}:", client.address()), format!("[{}]:", client.address6())];
    let log = lab.server_log(server);
    log.lines()
        .filter(|line| addresses.iter().any(|address| line.contains(address)))
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .count()
}

/// Waits for this number of lines with these words. The server may write them after its answer.
pub(super) fn logged(
    lab: &Lab,
    server: &str,
    client: &Host,
    words: &[&str],
    count: usize,
) -> Result<()> {
    let deadline = Instant::now() + slowdown::limit(LOGGED);
    loop {
        let found = lines(lab, server, client, words);
        if found == count {
            return Ok(());
        }
        let log = || lab.server_log(server);
        ensure!(found < count, "{found} lines with {words:?} instead of {count} in {}", log());
        ensure!(Instant::now() < deadline, "{found} of {count} lines with {words:?} in {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn unpaired(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve_with("b", &[])?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    refused(&lab, &WHAT_TO_DO)?;
    logged(&lab, "b", a, &["ended the handshake"], 1)?;
    // TLS without a client certificate, as a scanner uses it.
    let scan = ["openssl", "s_client", "-connect", "b:7472", "-tls1_3", "-ign_eof"];
    let before = lab.host("b")?.snapshot()?;
    let output = c.command(scan[0]).args(&scan[1..]).input("HELLO\n").output()?;
    let text = output.text() + &output.error_text();
    ensure!(text.contains("certificate required"), "openssl says {text}");
    logged(&lab, "b", c, &["refused", "no certificates"], 1)?;
    before.await_return(lab.host("b")?, Duration::from_secs(10), without_own_state)?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn removed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve_with("b", &[])?;
    lab.pair("a", "b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let sources = b.run(["agent-server", "peers", "--json"])?;
    let listed: serde_json::Value = serde_json::from_str(&sources).unwrap_or_default();
    let print = listed[0]["fingerprint"].as_str().unwrap_or_default().to_owned();
    ensure!(listed[0]["name"] == "a" && print.starts_with("SHA256:"), "peers are {sources}");
    let said = b.run(["agent-server", "peers", "remove", "a"])?;
    ensure!(said.contains("may not move containers here"), "it says {said}");
    // The server has been running all the time.
    refused(&lab, &[&WHAT_TO_DO[..], &[&print, "refuses it"]].concat())?;
    logged(&lab, "b", a, &["was refused", "not paired", &print], 1)?;
    let again = b.command("agent-server").args(["peers", "remove", "a"]).output()?;
    ensure!(again.error_text().contains("no peer a"), "{again:?}");
    // The source forgets the pairing instead.
    let token = b.run(["agent-server", "invite"])?;
    a.run(["agent-client", "join", &token])?;
    a.run(["agent-client", "peers", "remove", "b"])?;
    refused(&lab, &WHAT_TO_DO)?;
    let token = b.run(["agent-server", "invite"])?;
    a.run(["agent-client", "join", &token])?;
    lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

fn tokens(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve_with("b", &[])?;
    let expired = b.run(["agent-server", "invite", "--expires", "1s"])?;
    let once = b.run(["agent-server", "invite", "--once"])?;
    let lost = b.run(["agent-server", "invite"])?;
    let stored = b.run(["sh", "-c", "cat /var/lib/netmig/invitations/*"])?;
    ensure!(stored.contains("used_by"), "invitations are {stored}");
    let modes =
        b.run(["sh", "-c", "stat -c %a /var/lib/netmig/*.pem /var/lib/netmig/invitations/*"])?;
    ensure!(modes.lines().all(|mode| mode == "600"), "modes are {modes}");
    c.run(["agent-client", "join", &once])?;
    std::thread::sleep(Duration::from_millis(1500));

    let before = (a.snapshot()?, b.snapshot()?);
    join_refused(a, &expired, &["expired at", "agent-server invite"])?;
    logged(&lab, "b", a, &["not paired", "expired at"], 1)?;
    join_refused(a, &once, &["has been used", "agent-server invite"])?;
    logged(&lab, "b", a, &["not paired", "has been used"], 1)?;
    usage(a, &once[..once.len() - 7])?;
    for (host, before) in [(a, before.0), (b, before.1)] {
        before.await_return(host, Duration::from_secs(10), without_own_state)?;
    }
    b.run(["sh", "-c", "rm /var/lib/netmig/invitations/*"])?;
    join_refused(a, &lost, &["no such token"])?;
    let sources = b.run(["agent-server", "peers"])?;
    ensure!(sources.lines().count() == 1 && sources.starts_with("c "), "peers are {sources}");
    Ok(())
}

/// A truncated token is a usage error.
fn usage(host: &Host, token: &str) -> Result<()> {
    let output = host.command("agent-client").args(["join", token]).output()?;
    let text = output.error_text();
    ensure!(output.status.code() == Some(2), "{}: {text}", output.status);
    ensure!(text.contains("damaged; copy it again"), "it says {text}");
    Ok(())
}

/// Host c answers in place of b, for a token and for an existing pairing.
fn another_host(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve_with("b", &[])?;
    lab.serve_with("c", &[])?;
    let logs = (lab.server_log("b"), lab.server_log("c"));
    let prints = (fingerprint(&logs.0), fingerprint(&logs.1));
    let (Some(of_b), Some(of_c)) = prints else {
        return Err(crate::Error::Check(format!("no fingerprint in {logs:?}")));
    };
    let before = (a.snapshot()?, c.snapshot()?);
    let token = b.run(["agent-server", "invite", "--address", "c"])?;
    join_refused(a, &token, &["REFUSED", of_b, of_c, "Nothing was sent"])?;
    logged(&lab, "c", a, &["ended the handshake"], 1)?;
    // A server that has just started asks podman about itself.
    let view = |snapshot| without_own_state(snapshot).without("processes", "podman");
    for (host, before) in [(a, before.0), (c, before.1)] {
        before.await_return(host, Duration::from_secs(10), view)?;
    }
    // b is paired, and c takes its address.
    lab.pair("a", "b")?;
    lab.pair("a", "c")?;
    serve(a, "web", 7000, &[], c)?;
    a.run(["sed", "-i", "s/192.0.2.2/192.0.2.3/", "/var/lib/netmig/peers/b.toml"])?;
    refused(&lab, &["REFUSED", of_b, of_c, "Nothing was sent"])
}

fn both_ways(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve_with("a", &[])?;
    lab.serve_with("b", &[])?;
    lab.pair("b", "a")?;
    serve(a, "web", 7000, &[], c)?;
    // b may move containers to a. a knows b, and that is not enough for the other way.
    refused(&lab, &WHAT_TO_DO)?;
    let address = format!("s/^paired.*/&\\ndestination = \"{}:7472\"/", b.address());
    a.run(["sed", "-i", &address, "/var/lib/netmig/peers/b.toml"])?;
    refused(&lab, &["b does not let this host move containers there", "agent-server invite"])?;
    logged(&lab, "b", a, &["may receive containers from this host, but not move any"], 1)?;
    lab.pair("a", "b")?;
    let files = a.run(["ls", "/var/lib/netmig/peers"])?;
    ensure!(files == "b.toml", "one host has the files {files}");
    let clients = Clients::gentle(c, a.port(7000))?;
    lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}
