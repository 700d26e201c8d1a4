//! A container with clients of a server on another host, and with a server of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::slowdown;
use crate::traffic::client_report::{BulkReport, EchoReport};

/// The time limit for a client to get its first reply, and to end.
const LIMIT: Duration = Duration::from_secs(40);
/// Messages a second of each echo client.
const RATE: u32 = 50;
/// Bytes a second of each bulk transfer.
const BULK_RATE: f64 = 2_000_000.0;
/// The clients in the container: name, and action of the probe.
const CLIENTS: [(&str, &str); 4] =
    [("tcp", "tcp-echo"), ("udp", "udp-echo"), ("up", "bulk"), ("down", "bulk")];

/// Starts a server of echo and bulk transfers on a host, outside of containers.
pub(in crate::cases) fn server(host: &Host) -> Result<HostProcess> {
    let mut server = host.command("netmig-probe").args(["serve"]).spawn()?;
    server.wait_for("ready", LIMIT)?;
    Ok(server)
}

/// Starts container `name` on `host`. Its clients use the server at `echo` and the port after it, over TCP and UDP.
/// Waits until each client has received a reply. The container's own server has the default ports.
pub(in crate::cases) fn start(
    host: &Host,
    name: &str,
    echo: SocketAddr,
    options: &[&str],
) -> Result<()> {
    let bulk = SocketAddr::new(echo.ip(), echo.port() + 1);
    let mut script = String::from("netmig-probe serve >/dev/null 2>&1 & ");
    for (client, action) in CLIENTS {
        let arguments = match client {
            "tcp" | "udp" => format!("{echo} --rate {RATE}"),
            direction => format!(
                "{bulk} --direction {direction} --rate-limit {}",
                slowdown::rate(BULK_RATE) as u64
            ),
        };
        script.push_str(&format!(
            "netmig-probe {action} {arguments} >/tmp/{client} 2>/tmp/{client}.err & "
        ));
    }
    script.push_str("while :; do sleep 1000; done");
    let run = ["run", "--detach", "--name", name];
    host.podman([&run, options, &["probe:1", "sh", "-c", &script]].concat())?;
    for (client, _) in CLIENTS {
        wait_for(host, name, &format!("/tmp/{client}.err"), "ready")?;
    }
    Ok(())
}

/// Ends the clients on the container's current host and checks that none has noticed anything but a pause. Returns the
/// longest silence in milliseconds.
pub(in crate::cases) fn stop(host: &Host, name: &str) -> Result<f64> {
    stop_losing(host, name, 0)
}

/// Like [`stop`], where at most `datagrams` datagrams may be lost.
pub(in crate::cases) fn stop_losing(host: &Host, name: &str, datagrams: u64) -> Result<f64> {
    std::thread::sleep(Duration::from_secs(1));
    host.podman(["exec", name, "sh", "-c", "kill -TERM -1"])?;
    let mut longest = 0f64;
    for (client, action) in CLIENTS {
        let text = wait_for(host, name, &format!("/tmp/{client}"), "}")?;
        let gap = if action == "bulk" {
            let seen: BulkReport = parse(client, &text)?;
            ensure!(seen.fault().is_none(), "{client}: {:?} of {seen:?}", seen.fault());
            ensure!(seen.bytes > 1_000_000, "{client}: only {} bytes", seen.bytes);
            seen.max_gap_ms
        } else {
            let seen: EchoReport = parse(client, &text)?;
            let fault = seen.fault_beyond(if client == "udp" { datagrams } else { 0 });
            ensure!(fault.is_none(), "{client}: {fault:?} of {seen:?}");
            ensure!(seen.sent > u64::from(RATE), "{client}: only {} messages", seen.sent);
            seen.max_gap_ms
        };
        longest = longest.max(gap);
    }
    Ok(longest)
}

fn parse<T: serde::de::DeserializeOwned>(client: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::Check(format!("{client} said {text:?}: {e}")))
}

/// Waits until a file of the container contains `text`. Returns the file.
pub(in crate::cases) fn wait_for(
    host: &Host,
    name: &str,
    file: &str,
    text: &str,
) -> Result<String> {
    let deadline = Instant::now() + slowdown::limit(LIMIT);
    loop {
        let found = host.podman(["exec", name, "cat", file]).unwrap_or_default();
        if found.contains(text) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{file} of {name} has no {text:?} but {found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
