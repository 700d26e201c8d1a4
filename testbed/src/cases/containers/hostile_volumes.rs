//! A paired source that sends files of volumes to places where they do not belong, or more of them than it may.

use serde_json::{Value, json};

use super::super::promise::{LIMIT, until};
use super::files::listing;
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::hostile_peer::{self, Answer, message};
use crate::faults::observation::journals;
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("containers-volumes-of-a-hostile-source", &["containers", "trust"], hostile)
        .limit(400)];

/// The container that is offered and never moves, and its volume.
const NAME: &str = "evil";
const VOLUME: &str = "loot";
/// The number of attempts to set up a tunnel.
const ATTEMPTS: usize = 4;

/// Builds the message with the volumes, which is not answered.
fn volumes(all: &[(&str, bool)]) -> Value {
    let volume = |(name, is_anonymous): &(&str, bool)| {
        json!({
            "name": name, "is_anonymous": is_anonymous, "labels": {}, "entries": 1, "length": 1, "disk": 1,
            "has_devices": false,
            "mounts": [{ "destination": format!("/{}", name.len()), "options": [], "mount_options": [] }],
        })
    };
    let all: Vec<Value> = all.iter().map(volume).collect();
    json!({ "send": "Volumes", "body": all, "at_once": true })
}

fn offer() -> Value {
    json!({ "offer": NAME, "migration": vec![7; 16] })
}

fn bytes(text: &str) -> Value {
    json!(text.as_bytes())
}

fn change(volume: u16, record: Value) -> Value {
    message("VolumeChange", json!({ "volume": volume, "record": record }))
}

fn entry(path: &str, kind: Value) -> Value {
    let metadata = json!({
        "mode": 0o777, "uid": 0, "gid": 0, "mtime": 1, "mtime_ns": 0, "xattrs": [],
    });
    json!({ "Entry": { "path": bytes(path), "metadata": metadata, "kind": kind } })
}

fn file(path: &str, length: u64) -> Value {
    entry(path, json!({ "File": { "length": length, "patch": false } }))
}

/// Holds a conversation with an offer of one volume, and a tunnel. Returns the answers to what follows.
fn say(d: &Host, b: &Host, then: &[Value]) -> Result<Vec<Answer>> {
    let before = [volumes(&[(VOLUME, false)]), offer(), json!({ "tunnel": true })];
    let mut then = then.to_vec();
    // Nothing is said to what is taken, so only the last one has an answer.
    if let Some((_, taken)) = then.split_last_mut() {
        taken.iter_mut().for_each(|message| message["at_once"] = json!(true));
    }
    let said = [[&before[..], &then[..]].concat()];
    for _ in 0..ATTEMPTS {
        until("b is at work on nothing", LIMIT, || Ok(journals(b).next().is_none()))?;
        let answers = hostile_peer::say_patiently(d, b, &said)?;
        let answers: Vec<Answer> = answers.into_iter().flatten().skip(1).collect();
        // Handshakes of both ends may cross, which this test does not examine.
        if !answers.iter().any(|answer| answer.text.contains("no answer through")) {
            return Ok(answers);
        }
    }
    Err(Error::Check("b does not hear d".to_owned()))
}

/// Whatever a source sends of volumes, nothing beside them is touched, and nothing is left of it.
fn hostile(context: &Context) -> Result<()> {
    let lab = context.lab(&["b", "d"])?;
    let (b, d) = (lab.host("b")?, lab.host("d")?);
    lab.serve("b")?;
    d.podman(["run", "--detach", "--name", NAME, "probe:1", "sleep", "10000"])?;
    // What is somebody else's: a volume, and a file of the host.
    b.podman(["volume", "create", "precious"])?;
    let root = "/var/lib/containers/storage/volumes";
    let precious = format!("{root}/precious/_data");
    b.write(format!("{precious}/file"), "of others\n")?;
    b.write("/etc/precious", "of the host\n")?;
    let look = || -> Result<String> {
        Ok(format!("{:?} {}", listing(b, &precious)?, b.run(["cat", "/etc/precious"])?))
    };
    let before = look()?;

    let link = |target: &str| json!({ "Symlink": { "target": bytes(target) } });
    let hard = |target: &str| json!({ "HardLink": { "target": bytes(target) } });
    let data = |offset: u64| json!({ "Data": { "offset": offset, "bytes": vec![7; 4] } });
    let up = "../../../precious/_data/file";
    let device = json!({ "Device": { "block": true, "major": 8, "minor": 0 } });
    let huge = 1_u64 << 40;
    // Each ends with what has to be refused; what comes before is taken.
    let said: [(&str, Vec<Value>); 16] = [
        ("a path outside", vec![change(0, file(up, 4))]),
        ("an absolute path", vec![change(0, file("/etc/precious", 4))]),
        ("a path of dots", vec![change(0, file("a/../../b", 4))]),
        ("removal outside", vec![change(0, json!({ "Remove": { "path": bytes(up) } }))]),
        ("removal of the root", vec![change(0, json!({ "Remove": { "path": bytes("") } }))]),
        (
            "a file through a link",
            vec![change(0, entry("out", link("/etc"))), change(0, file("out/precious", 4))],
        ),
        (
            "a file through a link upwards",
            vec![
                change(0, entry("out", link("../../../precious/_data"))),
                change(0, file("out/file", 4)),
            ],
        ),
        ("a link to a file outside", vec![change(0, entry("hard", hard(up)))]),
        (
            "a link through a link",
            vec![
                change(0, entry("out", link("/etc"))),
                change(0, entry("hard", hard("out/precious"))),
            ],
        ),
        ("a device", vec![change(0, entry("sda", device))]),
        ("content without a file", vec![change(0, data(0))]),
        ("content behind the end", vec![change(0, file("f", 4)), change(0, data(4096))]),
        ("a huge file", vec![change(0, file("f", huge))]),
        ("a volume that was not offered", vec![change(1, file("f", 4))]),
        (
            "the end of such a volume",
            vec![message("VolumeEnd", json!({ "volume": 9, "digest": vec![0; 16] }))],
        ),
        (
            "another digest",
            vec![
                change(0, file("f", 4)),
                message("VolumeEnd", json!({ "volume": 0, "digest": vec![0; 16] })),
            ],
        ),
    ];
    let mut problems = Vec::new();
    for (what, then) in &said {
        let answers = say(d, b, then)?;
        let names: Vec<&str> = answers.iter().map(|answer| answer.answer.as_str()).collect();
        if names != ["Failure"] {
            problems.push(format!("{what}: {answers:?}"));
        }
        if look()? != before {
            problems.push(format!("{what}: something else has changed: {}", look()?));
        }
    }
    // As part of the offer.
    for (what, first) in [
        ("a name that is a path", volumes(&[("../precious", false)])),
        ("a name that is an option", volumes(&[("--all", false)])),
        ("somebody's volume", volumes(&[("precious", false)])),
        ("somebody's volume as one without name", volumes(&[("precious", true)])),
        ("one volume twice", volumes(&[(VOLUME, false), (VOLUME, false)])),
    ] {
        until("b is at work on nothing", LIMIT, || Ok(journals(b).next().is_none()))?;
        let answers = hostile_peer::say_patiently(d, b, &[vec![first, offer()]])?;
        let is_refused = answers
            .iter()
            .flatten()
            .any(|answer| answer.answer == "Failure" || answer.text.contains("blockers: [Blocker"));
        if !is_refused || look()? != before {
            problems.push(format!("{what}: {answers:?}"));
        }
    }
    until("b is at work on nothing", LIMIT, || Ok(journals(b).next().is_none()))?;
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    let left = b.run(["ls", "--almost-all", root])?;
    ensure!(left.trim() == "precious", "left of it: {left}");
    let listed = b.podman(["volume", "ls", "--quiet"])?;
    ensure!(listed.trim() == "precious", "volumes are left: {listed}");
    Ok(())
}
