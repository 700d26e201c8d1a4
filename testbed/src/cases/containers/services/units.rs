//! Which units go along, and which do not.

use super::super::super::promise::{LIMIT, until};
use super::super::super::untouched::Untouched;
use super::{PATIENT, SOURCE, STARTS, UNIT, install, is_active, lab_with_units, moved, quadlet};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::{Lab, LabBuilder};
use crate::runner::{Case, Context};

pub(in super::super) const CASES: &[Case] = &[
    Case::new("containers-services-are-refused-by-name", &["containers"], refused).limit(400),
    Case::new("containers-services-are-carried", &["containers"], carried).limit(400),
];

/// Units that run a container otherwise than Quadlet does, each with the word by which they are refused.
const OTHERS: [(&str, &str); 2] = [
    (
        "[Service]\nType=simple\nExecStart=/usr/bin/podman run --rm --replace --name web \
         --publish 7000:7000/tcp --publish 7000:7000/udp probe:1 netmig-probe serve\n",
        "Type=simple",
    ),
    (
        "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/podman run --detach --rm --replace --name web \
         --sdnotify=conmon --publish 7000:7000/tcp --publish 7000:7000/udp probe:1 netmig-probe serve\n",
        "Delegate=yes",
    ),
];

/// Checks that a move is refused by a code and a word, and changes nothing.
fn is_refused(lab: &Lab, options: &[&str], code: &str, word: &str) -> Result<()> {
    let before = Untouched::look(lab, "a", "b", "web")?;
    let attempt = lab.attempt("web", "a", "b", options)?;
    ensure!(attempt.code == Some(3), "exit code {:?}: {}", attempt.code, attempt.stderr);
    let json = attempt.json()?.to_string();
    ensure!(json.contains(&format!("\"{code}\"")), "no {code} in {json}");
    for word in [UNIT, word] {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    }
    before.check()
}

fn refused(context: &Context) -> Result<()> {
    let lab = lab_with_units(context)?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    is_refused(&lab, &["--unit", "refuse"], "service-unit", "--unit")?;
    b.write(SOURCE, quadlet("Restart=always").replace("probe serve", "probe serve --slow"))?;
    b.run(["systemctl", "daemon-reload"])?;
    is_refused(&lab, &[], "unit-differs", "--slow")?;
    install(b, "Type=oneshot")?;
    is_refused(&lab, &[], "unit-unsuitable", "Type=oneshot")?;
    b.run(["rm", SOURCE])?;
    b.run(["systemctl", "daemon-reload"])?;
    is_refused(&lab, &[], "unit-missing", "--unit carry")?;
    is_refused(&lab, &["--unit", "carry"], "not-allowed-units", "--units")?;
    install(b, "Restart=always")?;
    b.run(["systemctl", "start", UNIT])?;
    until("the unit is active on b", LIMIT, || Ok(is_active(b).is_ok()))?;
    is_refused(&lab, &[], "unit-active", "stop it there")?;
    b.run(["systemctl", "stop", UNIT])?;

    a.run(["systemctl", "stop", UNIT])?;
    a.run(["rm", SOURCE])?;
    for (unit, word) in OTHERS {
        a.write(format!("/etc/systemd/system/{UNIT}"), unit)?;
        a.run(["systemctl", "daemon-reload"])?;
        a.run(["systemctl", "start", UNIT])?;
        c.probe().wait_for_echo(a.port(7000), STARTS)?;
        is_refused(&lab, &[], "service-unit", word)?;
        a.podman(["rm", "--all", "--force", "--time", "0"])?;
        a.run(["systemctl", "stop", UNIT])?;
    }
    Ok(())
}

/// A destination that has no such unit gets its files, if it allows that, and keeps them with the container.
fn carried(context: &Context) -> Result<()> {
    let lab = context.start(&LabBuilder::new(&["a", "b", "c"]).systemd())?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    a.write(format!("{SOURCE}.d/10-label.conf"), "[Container]\nLabel=of=test\n")?;
    install(a, "Restart=always")?;
    for host in [a, b] {
        lab.serve(host.name())?;
    }
    a.run(["systemctl", "start", UNIT])?;
    c.probe().wait_for_echo(a.port(7000), STARTS)?;
    b.run(["agent-server", "peers", "allow", "a", "--units"])?;
    moved(&lab, a, b, &["--unit", "carry"])?;
    same_files(a, b)?;
    b.run(["systemctl", "restart", UNIT])?;
    c.probe().wait_for_echo(b.port(7000), STARTS)?;
    is_active(b)?;
    // It is a unit that is found from now on, also where it comes from.
    moved(&lab, b, a, &[])?;
    b.run(["rm", "-r", SOURCE, &format!("{SOURCE}.d")])?;
    b.run(["systemctl", "daemon-reload"])?;
    let words = [&PATIENT[..], &["--unit", "carry"]].concat();
    lab.attempt("web", "a", "b", &words)?.success()?;
    same_files(a, b)
}

fn same_files(a: &Host, b: &Host) -> Result<()> {
    for path in [SOURCE.to_owned(), format!("{SOURCE}.d/10-label.conf")] {
        ensure!(a.read(&path)? == b.read(&path)?, "{path} differs");
    }
    Ok(())
}
