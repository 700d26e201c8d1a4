//! Common programs, migrated while clients use them.

use std::time::Duration;

use super::subject::numbered_lines;
use crate::ensure;
use crate::error::Result;
use crate::programs::PROBE;
use crate::runner::{Case, Context};
use crate::traffic::client_report::CountReport;

pub(super) const CASES: &[Case] = &[
    Case::new("applications-redis-counts-on", &["applications"], redis),
    Case::new("applications-nginx-finishes-a-download", &["applications"], nginx).exclusive(),
    Case::new("applications-python-with-children-goes-on", &["applications"], python),
];

/// The time limit for a program to get ready or to finish.
const LIMIT: Duration = Duration::from_secs(30);

fn redis(context: &Context) -> Result<()> {
    const KEYS: u32 = 1000;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    a.podman(["run", "--detach", "--name", "db", "--publish", "6379:6379", "redis:1"])?;
    let (ask, server) = (["-h", "a"], a.port(6379).to_string());
    let ping = "for i in $(seq 50); do redis-cli -h a ping && exit; sleep 0.1; done; exit 1";
    c.run(["sh", "-c", ping])?;
    let fill: String = (0..KEYS).map(|key| format!("set key{key} value{key}\n")).collect();
    c.command("redis-cli").args(ask).input(fill).run()?;
    let counter = ["count", &server, "--key", "visits", "--until-stdin-closes"];
    let mut client = c.command(PROBE).args(counter).spawn()?;
    client.wait_for("ready", LIMIT)?;
    let migration = lab.migrate("db", "a", "b")?;
    std::thread::sleep(Duration::from_secs(1));
    client.close_stdin();
    let seen: CountReport = client.wait(LIMIT)?.success()?.json()?;
    ensure!(seen.error.is_none() && seen.wrong == 0, "{seen:?}");
    ensure!(seen.increments > 500, "{seen:?}");
    let now = |key: &str| c.run(["redis-cli", "-h", "b", "get", key]);
    let visits = now("visits")?;
    ensure!(visits == seen.increments.to_string(), "{visits} visits, but {seen:?}");
    ensure!(now("key999")? == "value999", "key999 is {}", now("key999")?);
    let size = b.podman(["exec", "db", "redis-cli", "dbsize"])?;
    ensure!(size == (KEYS + 1).to_string(), "the database has {size} keys");
    context.remark(format!(
        "{} increments, interruption {:.0} ms, gap {:.0} ms",
        seen.increments, migration.interruption_ms, seen.max_gap_ms
    ));
    Ok(())
}

fn nginx(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let serve = "dd if=/dev/urandom of=/srv/file bs=1M count=40 2>/dev/null; \
                 exec nginx -c /etc/nginx.conf";
    let start = ["run", "--detach", "--name", "www", "--publish", "80:80", "nginx:1", "sh", "-c"];
    a.podman(start.into_iter().chain([serve]))?;
    let answers = "curl --silent --fail --head --retry 20 --retry-connrefused --retry-delay 1 \
                   http://a/file";
    c.run(answers.split_whitespace())?;
    let sum = a.podman(["exec", "www", "md5sum", "/srv/file"])?;
    let download = "curl --silent --show-error --fail --limit-rate 10M --output /tmp/file \
                    http://a/file";
    let mut words = download.split_whitespace();
    let curl = words.next().unwrap_or_default();
    let mut transfer = c.command(curl).args(words).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let migration = lab.migrate("www", "a", "b")?;
    ensure!(transfer.is_running(), "the download was over before the move");
    transfer.wait(LIMIT)?.success()?;
    let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let received = c.run(["md5sum", "/tmp/file"])?;
    ensure!(first(&sum) == first(&received), "sent {sum}, received {received}");
    let moved = b.podman(["exec", "www", "md5sum", "/srv/file"])?;
    ensure!(sum == moved, "the file was {sum} and is {moved}");
    let again = "curl --silent --fail http://b/file | md5sum";
    ensure!(
        first(&c.run(["sh", "-c", again])?) == first(&sum),
        "another file from the destination"
    );
    context.remark(format!("interruption {:.0} ms", migration.interruption_ms));
    Ok(())
}

/// A program that passes numbers through two children by pipes and appends them to a file. A thread echoes.
const PYTHON: &str = r#"
import socket, subprocess, sys, threading, time
relay = "import sys\nfor line in sys.stdin:\n    print(line.strip(), 'relayed', flush=True)"
first = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
second = subprocess.Popen([sys.executable, "-u", "-c", relay], stdin=first.stdout,
                          stdout=subprocess.PIPE)
def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
def accept(listener):
    while True:
        threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()
listener = socket.create_server(("", 7000))
threading.Thread(target=accept, args=(listener,), daemon=True).start()
number = 0
with open("/root/sequence", "ab", buffering=0) as sequence:
    while True:
        first.stdin.write(b"%d\n" % number)
        first.stdin.flush()
        sequence.write(second.stdout.readline())
        number += 1
        time.sleep(0.002)
"#;

fn python(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let start = ["run", "--detach", "--name", "py", "--publish", "7000:7000", "python:1"];
    a.podman(start.into_iter().chain(["python3", "-c", PYTHON]))?;
    c.probe().wait_for_echo(a.port(7000), LIMIT)?;
    let client = c.probe().tcp_echo(a.port(7000)).rate(200.0).start()?;
    let sequence = |host: &crate::host::Host| host.podman(["exec", "py", "cat", "/root/sequence"]);
    let processes = |host: &crate::host::Host| {
        host.podman(["top", "py", "pid", "ppid", "comm"]).map(|text| {
            let mut all: Vec<String> = text
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .collect();
            all.sort();
            all
        })
    };
    let (before, were) = (numbered_lines(&sequence(a)?)?, processes(a)?);
    let migration = lab.migrate("py", "a", "b")?;
    let seen = client.stop()?;
    ensure!(seen.fault().is_none(), "{:?} of {seen:?}", seen.fault());
    let (text, are) = (sequence(b)?, processes(b)?);
    let after = numbered_lines(&text)?;
    ensure!(before > 0 && after > before + 200, "{before} lines, later {after}");
    ensure!(text.lines().all(|line| line.ends_with(" relayed")), "a line was cut: {text}");
    ensure!(were == are && were.len() >= 4, "the processes were {were:?} and are {are:?}");
    context.remark(format!(
        "{after} lines, interruption {:.0} ms, gap {:.0} ms",
        migration.interruption_ms, seen.max_gap_ms
    ));
    Ok(())
}
