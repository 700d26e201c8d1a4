//! Migrations that are refused with one clear message, while everything stays as before.

use std::time::Duration;

use super::subject::{Clients, serve};
use super::untouched::Untouched;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::{Attempt, Lab};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("refusal-by-the-source", &["refusal"], by_the_source),
    Case::new("refusal-of-a-far-end-that-is-none", &["refusal"], no_far_end),
    Case::new("refusal-by-the-destination", &["refusal"], by_the_destination),
    Case::new("refusal-of-more-connections-than-criu-takes", &["refusal"], too_many_connections),
    Case::new("refusal-of-bad-usage", &["refusal"], bad_usage),
];

/// The exit code of a wrong command line.
const USAGE: i32 = 2;
/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;

/// A server that listens on a port (first argument), answers every connection with bytes (second argument, in hex),
/// and reads until the client has closed it.
const FAR_END: &str = r#"
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print("listening", flush=True)
while True:
    connection = server.accept()[0]
    try:
        connection.sendall(bytes.fromhex(sys.argv[2]))
        while connection.recv(4096):
            pass
    except OSError:
        pass
    connection.close()
"#;

/// A container under traffic on host `a`, which must not notice anything.
struct Fixture<'a> {
    lab: &'a Lab,
    clients: Clients,
}

impl<'a> Fixture<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let (a, c) = (lab.host("a")?, lab.host("c")?);
        serve(a, "web", 7000, &[], c)?;
        a.podman(["create", "--name", "stopped", "probe:1"])?;
        Ok(Self { lab, clients: Clients::gentle(c, a.port(7000))? })
    }

    /// Attempts a migration that must be refused with these words in its message.
    fn refused(
        &self,
        words: &[&str],
        container: &str,
        destination: &str,
        arguments: &[&str],
    ) -> Result<()> {
        let before = Untouched::look(self.lab, "a", "b", "web")?;
        let attempt = self.lab.attempt(container, "a", destination, arguments)?;
        explains(&attempt, words)?;
        before.check()
    }

    fn over(self, context: &Context) -> Result<()> {
        context.remark(self.clients.stop()?.gaps());
        Ok(())
    }
}

/// Checks that one message names the reason, that the JSON has it, too, and that the exit code is right.
fn explains(attempt: &Attempt, words: &[&str]) -> Result<()> {
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {attempt:?}", attempt.code);
    let messages: Vec<&str> =
        attempt.stderr.lines().filter(|line| line.starts_with("agent-client: ")).collect();
    ensure!(messages.len() == 1, "{} messages: {}", messages.len(), attempt.stderr);
    let json = attempt.json()?;
    ensure!(json["outcome"] == "refused", "{json}");
    for word in words {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
        ensure!(json["error"].to_string().contains(word), "no {word:?} in {json}");
    }
    Ok(())
}

fn by_the_source(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    lab.serve("b")?;
    let fixture = Fixture::start(&lab)?;
    fixture.refused(&["nope", "podman ps"], "nope", "b", &[])?;
    fixture.refused(&["stopped"], "stopped", "b", &[])?;
    fixture.over(context)
}

/// Starts a server on a host that is not an agent.
fn far_end(host: &Host, port: u16, answer: &str) -> Result<HostProcess> {
    let port = port.to_string();
    let mut process = host.command("python3").args(["-c", FAR_END, &port, answer]).spawn()?;
    process.wait_for("listening", Duration::from_secs(10))?;
    Ok(process)
}

fn no_far_end(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let b = lab.host("b")?;
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let _others = [
        far_end(b, 8000, &hex("HTTP/1.1 400 Bad Request\r\n\r\n"))?,
        far_end(b, 8001, &format!("{}0001", hex("NETMIG")))?,
        far_end(b, 8002, "")?,
    ];
    let fixture = Fixture::start(&lab)?;
    let refused =
        |words: &[&str], destination: &str| fixture.refused(words, "web", destination, &[]);
    refused(&["cannot resolve no-such-host"], "no-such-host")?;
    refused(&["cannot connect to 192.0.2.200:7472"], "192.0.2.200")?;
    refused(&["cannot connect to", ":9", "Connection refused"], "b:9")?;
    refused(&["does not speak netmig's protocol"], "b:8000")?;
    // An agent of the first version did not use TLS.
    refused(&["does not speak netmig's protocol"], "b:8001")?;
    refused(&[":8002 did not", "within"], "b:8002")?;
    fixture.over(context)
}

fn by_the_destination(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    lab.serve("a")?;
    lab.serve("b")?;
    let fixture = Fixture::start(&lab)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    fixture.refused(&["this host itself"], "web", "a", &[])?;

    b.podman(["create", "--name", "web", "probe:1"])?;
    fixture.refused(&["container named web", "name-taken"], "web", "b", &[])?;
    b.podman(["rm", "web"])?;

    b.podman(["run", "--detach", "--name", "other", "--publish", "7000:7000", "probe:1"])?;
    fixture.refused(&["tcp port 7000", "port-taken"], "web", "b", &[])?;
    b.podman(["rm", "--force", "--time", "0", "other"])?;

    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let address = a.podman(["inspect", "--format", format, "web"])?;
    b.podman(["run", "--detach", "--name", "other", "--ip", &address, "probe:1"])?;
    let words = [&address, "container other on b", "network podman", "address-taken"];
    fixture.refused(&words, "web", "b", &[])?;
    b.podman(["rm", "--force", "--time", "0", "other"])?;

    // An image without its name would suffice, since images are found by their IDs.
    b.podman(["image", "rm", "--force", "probe:1"])?;
    let require = ["--image", "require"];
    fixture.refused(&["no image", "probe:1", "image-missing"], "web", "b", &require)?;
    fixture.over(context)
}

/// CRIU opens a file for each connection, and the limit is too low for that here.
fn too_many_connections(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    lab.serve("b")?;
    let fixture = Fixture::start(&lab)?;
    let server = lab.host("a")?.port(7000);
    let many = lab.host("c")?.probe().tcp_echo(server).rate(1.0).idle(199).start()?;
    // Without this capability CRIU cannot lift the limit.
    let limited = |limit| {
        let words = ["prlimit", limit, "setpriv", "--bounding-set=-sys_resource", "agent-client"];
        lab.attempt_by(&words, "web", "a", "b", &[])
    };
    let before = Untouched::look(&lab, "a", "b", "web")?;
    let attempt = limited("--nofile=400:400")?;
    explains(&attempt, &["web has 201 open TCP connections", "can have 144", "open-files"])?;
    before.check()?;
    // CRIU raises its soft limit to the hard limit.
    limited("--nofile=150:1000")?.success()?;
    let seen = many.stop()?;
    ensure!(seen.fault().is_none(), "{seen:?}");
    fixture.over(context)
}

fn bad_usage(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let fixture = Fixture::start(&lab)?;
    let before = Untouched::look(&lab, "a", "b", "web")?;
    let long = "a".repeat(4096);
    let names = ["../x", "$(id)", "", "-x", "a b", "web;id", &long];
    let places = ["", "b:0", "b:65536", "b:x", ":7472", "$(id)", "../x", "[::1", &long];
    let lines = names.iter().map(|name| (*name, "b")).chain(places.iter().map(|to| ("web", *to)));
    for (container, destination) in lines {
        let attempt = lab.attempt(container, "a", destination, &[])?;
        let what = format!("{container:.20} to {destination:.20}");
        ensure!(attempt.code == Some(USAGE), "{what}: {attempt:?}");
        ensure!(attempt.stderr.contains("error: "), "{what}: {}", attempt.stderr);
        ensure!(!attempt.stderr.contains("uid="), "{what} was run: {}", attempt.stderr);
    }
    for option in [["--image", "never"], ["--max-interruption", "0"], ["--max-interruption", "x"]] {
        let attempt = lab.attempt("web", "a", "b", &option)?;
        ensure!(attempt.code == Some(USAGE), "{option:?}: {attempt:?}");
    }
    before.check()?;
    fixture.over(context)
}
