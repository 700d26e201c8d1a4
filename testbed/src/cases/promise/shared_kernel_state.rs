//! Packet marks, peer numbers and rules in a kernel that other software uses as well.

use crate::cases::subject::{Clients, serve};
use crate::cases::untouched::Untouched;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::{Attempt, Lab};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-marks-of-others-are-refused", &["promise"], marks_of_others),
    Case::new("promise-a-refused-move-allots-no-number", &["promise"], no_number),
];

/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;
/// The routing rule of Tailscale, with its preference, mark and mask.
const TAILSCALE: [&str; 6] = ["pref", "5210", "fwmark", "0x80000/0xff0000", "lookup", "main"];

/// Adds Tailscale's rule on a host, in the family of `option` (`-4` or `-6`).
fn tailscale(host: &Host, option: &str) -> Result<()> {
    host.run([&["ip", option, "rule", "add"][..], &TAILSCALE].concat()).map(drop)
}

/// Checks that a refusal names the rule of this host and the remedy.
fn names_the_clash(attempt: &Attempt, host: &str) -> Result<()> {
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {attempt:?}", attempt.code);
    let json = attempt.json()?.to_string();
    let of_host = format!("marks --bits 8-15` on {host}");
    for word in ["fwmark-clash", "preference 5210", "0x80000/0xff0000", &of_host] {
        ensure!(json.contains(word), "no {word:?} in {json}");
    }
    Ok(())
}

fn tries(lab: &Lab, refused_by: &str) -> Result<()> {
    let before = Untouched::look(lab, "a", "b", "web")?;
    names_the_clash(&lab.attempt("web", "a", "b", &[])?, refused_by)?;
    before.check()
}

/// A migration is refused while another rule uses the same bits on either host. With other bits connections are kept.
fn marks_of_others(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;

    tailscale(a, "-4")?;
    tries(&lab, "a")?;
    let other = ["agent-server", "marks", "--bits", "17-24"];
    ensure!(!a.command(other[0]).args(&other[1..]).output()?.status.success(), "bits of others");
    // The server on this host is not restarted.
    let told = a.run(["agent-server", "marks", "--bits", "8-15"])?;
    ensure!(told.contains("8-15"), "{told}");
    tailscale(b, "-6")?;
    tries(&lab, "b")?;
    b.run(["agent-server", "marks", "--bits", "8-15"])?;

    let there = lab.attempt("web", "a", "b", &["--forward"])?.success()?;
    ensure!(there.flows.tcp > 0 && there.flows.udp > 0, "{there:?}");
    let rules = a.run(["ip", "rule"])?;
    ensure!(rules.contains("0x100/0xff00"), "{rules}");
    let rest = ["agent-server", "marks", "--bits", "24-31"];
    let refused = a.command(rest[0]).args(&rest[1..]).output()?;
    ensure!(!refused.status.success(), "changed while connections are led");
    ensure!(refused.error_text().contains("netmig1"), "{}", refused.error_text());
    // New connections are steered by marks, too.
    Clients::gentle(c, a.port(7000))?.stop()?;
    let home = lab.migrate("web", "b", "a")?;
    ensure!(home.warnings.is_empty(), "{:?}", home.warnings);
    context.remark(format!(
        "interruption {:.0} ms, {}",
        there.interruption_ms,
        clients.stop()?.gaps()
    ));
    Ok(())
}

/// A refused migration leaves no state: neither host has a number for the other.
fn no_number(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    b.podman(["create", "--name", "web", "probe:1"])?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {attempt:?}", attempt.code);
    for host in [a, b] {
        let there = host.command("test").args(["-e", "/var/lib/netmig/peers.json"]).output()?;
        ensure!(!there.status.success(), "{} has numbered the other host", host.name());
    }
    b.podman(["rm", "web"])?;
    lab.attempt("web", "a", "b", &[])?.success()?;
    for host in [a, b] {
        host.run(["test", "-e", "/var/lib/netmig/peers.json"])?;
    }
    Ok(())
}
