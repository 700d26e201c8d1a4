//! Socket options and thread settings are the same after a migration.

use std::collections::BTreeMap;

use super::scenarios::start;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};
use crate::scenario::socket_options::FILE;

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-socket-options", &["fidelity"], options).limit(240),
    Case::new("fidelity-settings-of-threads", &["fidelity"], threads).limit(240),
];

/// Values by socket and option.
type Values = BTreeMap<String, String>;

fn values(host: &Host) -> Result<Values> {
    // By now the program has written the values of this host.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let text = host.podman(["exec", "web", "cat", FILE])?;
    serde_json::from_str(&text).map_err(|error| Error::Check(format!("{error}: {text}")))
}

/// Returns whether a value has no meaning for this socket, or is set by the kernel.
fn is_left_out(what: &str) -> bool {
    let (socket, option) = what.split_once(' ').unwrap_or_default();
    match option {
        // The kernel changes them by itself.
        "SO_INCOMING_CPU" | "TCP_QUICKACK" => true,
        // These options matter for listeners alone.
        "TCP_MAXSEG" | "TCP_SAVE_SYN" => !socket.ends_with("listener"),
        // These options matter for datagrams alone.
        _ => option.contains("MULTICAST") && socket.starts_with("tcp"),
    }
}

fn differences(before: &Values, after: &Values) -> Vec<String> {
    let differs = |(what, value): (&String, &String)| {
        let now = after.get(what);
        (now != Some(value) && !is_left_out(what))
            .then(|| format!("{what} was {value:?} and is {now:?}"))
    };
    before.iter().filter_map(differs).collect()
}

/// Migrates there, back, and there again. The options are read on each host.
fn options(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b"], runtime)?;
        start(lab.host("a")?, "web", "options", &[])?;
        let before = values(lab.host("a")?)?;
        let timeout = before.get("tcp-client TCP_USER_TIMEOUT").map(String::as_str);
        ensure!(timeout == Some("45000"), "{before:?}");
        for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
            lab.migrate("web", from, to)?;
            let differences = differences(&before, &values(lab.host(to)?)?);
            ensure!(differences.is_empty(), "{from} to {to}:\n{}", differences.join("\n"));
        }
        context.remark(format!("{} values by {}", before.len(), runtime.name()));
    }
    Ok(())
}

fn threads(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    start(lab.host("a")?, "web", "settings", &[])?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("web", from, to)?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = lab.host(to)?.podman(["exec", "web", "cat", "/run/settings"])?;
        ensure!(now == "[0] 16391 00000001 12345", "from {from} to {to}: {now}");
    }
    Ok(())
}
