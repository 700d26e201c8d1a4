//! Tests of the texts in messages that people read.

use state::peer_text::{LONGEST, PeerText, is_plain};

use super::facts::Difference;
use super::{Blocker, Failure, FailureCode, Hello, Introduction, Message, Prepared, Verdict};

/// What a terminal, a log or a reader would take for something else.
const HOSTILE: &str =
    "no\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}1m\r\nmoved\u{202e}txt\u{2066}\u{200b}\u{2028}\0";

fn decoded(message: &Message) -> Message {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    Message::decode(&bytes).unwrap()
}

/// Returns the text as a peer would write it, without being made plain on its way out.
fn raw() -> PeerText {
    PeerText::raw(HOSTILE.to_owned())
}

fn all_plain(text: &str) -> bool {
    text.chars().all(is_plain)
}

#[test]
fn what_a_terminal_executes_is_not_decoded() {
    let failure = Failure { code: FailureCode::Step, message: raw() };
    let Message::Failure(failure) = decoded(&Message::Failure(failure)) else { panic!() };
    assert!(all_plain(&failure.message), "{:?}", failure.message);
    assert!(failure.message.starts_with("no\u{fffd}[2J") && failure.message.contains("  moved"));
    let hello = Introduction {
        name: raw(),
        software: raw(),
        capabilities: std::collections::BTreeSet::new(),
    };
    let Message::Hello(hello) = decoded(&Message::Hello(Hello::from(&hello))) else { panic!() };
    let hello = Introduction::try_from(hello).unwrap();
    assert!(all_plain(&hello.name) && all_plain(&hello.software));
    let blockers = vec![Blocker { code: raw(), message: raw() }];
    let verdict = Verdict { blockers, image_missing: false, addresses: Vec::new() };
    let Message::Verdict(verdict) = decoded(&Message::Verdict(verdict)) else { panic!() };
    assert!(all_plain(&verdict.blockers[0].code) && all_plain(&verdict.blockers[0].message));
    let Message::PathsReady(Some(reason)) = decoded(&Message::PathsReady(Some(raw()))) else {
        panic!()
    };
    assert!(all_plain(&reason));
}

#[test]
fn differences_are_made_plain_when_they_are_decoded() {
    let difference = Difference {
        kind: "mount".to_owned(),
        object: raw(),
        original: Some(raw()),
        copy: Some(raw()),
    };
    let prepared =
        Prepared { entries_us: 0, restore_us: 0, compare_us: 0, differences: vec![difference] };
    let Message::Prepared(prepared) = decoded(&Message::Prepared(prepared)) else { panic!() };
    let Difference { object, original, copy, .. } = &prepared.differences[0];
    assert!(
        [Some(object), original.as_ref(), copy.as_ref()]
            .into_iter()
            .flatten()
            .all(|text| all_plain(text))
    );
}

#[test]
fn texts_of_ordinary_people_stay_as_they_are() {
    for text in ["web: port 80 is taken (a; b)", "Überlänge – ñandú 容器 контейнер", "שלום", ""]
    {
        assert_eq!(PeerText::from(text), text);
    }
    assert_eq!(PeerText::from("ä".repeat(LONGEST + 9)).chars().count(), LONGEST);
}

/// Holds that no new message forgets it: fields that are strings are listed here, with the reason why each is none that
/// people read before it has been checked. Descriptions are left out: `Description::validate` checks them.
#[test]
fn messages_have_no_other_texts() {
    let sources = [
        include_str!("../message.rs"),
        include_str!("facts.rs"),
        include_str!("failure.rs"),
        include_str!("flow.rs"),
        include_str!("hello.rs"),
        include_str!("image.rs"),
        include_str!("offer.rs"),
        include_str!("pairing.rs"),
        include_str!("path_trial.rs"),
        include_str!("service.rs"),
        include_str!("settings.rs"),
        include_str!("tree.rs"),
        include_str!("tunnel.rs"),
        include_str!("volume.rs"),
    ];
    let is_field = |line: &&str| {
        !line.trim_start().starts_with("//")
            && line.trim_end().ends_with(',')
            && line.contains("String")
    };
    let fields = sources.iter().flat_map(|source| {
        let body = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        body.lines().filter(is_field)
    });
    let fields: Vec<&str> = fields.map(str::trim).collect();
    let known = [
        // Looked up as an ID.
        "38 => ForwardEnd(String),",
        // A kind of facts: looked up by its name.
        "pub kind: String,",
        // Facts: compared, and shown only as differences.
        "pub object: String,",
        "pub value: String,",
        // A kind of differences, likewise.
        "pub kind: String,",
        // Facts about a network: compared; errors and the log make them plain.
        "pub kind: String,",
        "pub text: String,",
        // A kernel parameter: `Parameters::of_peer` checks it.
        "pub name: String,",
        "pub value: String,",
        // An order to end flows: looked up as an ID.
        "pub id: String,",
        // The fields of an introduction by their names, and its capabilities, which are checked.
        "pub fields: BTreeMap<String, ByteBuf>,",
        "pub capabilities: BTreeSet<String>,",
        // Names of images: `images::Writer` checks them.
        "pub name: String,",
        "pub name: String,",
        // An image: checked with the offer.
        "pub id: String,",
        "pub name: String,",
        // A network, likewise.
        "pub name: String,",
        // The offer: `admission::well_formed` checks it.
        "pub id: String,",
        "pub name: String,",
        "pub runtime: String,",
        "pub architecture: String,",
        "pub cpu_flags: Vec<String>,",
        "pub without_symlinks: Vec<String>,",
        // A rule that drops packets: the conversion checks the names.
        "pub table: String,",
        "pub chain: String,",
        // Units: the conversion checks the names, admission compares the command lines.
        "pub unit: String,",
        "pub start: Vec<Vec<String>>,",
        "pub path: String,",
        "pub content: String,",
        // Options of sockets, memberships and settings of cgroups: looked up in tables.
        "pub name: String,",
        "pub interface: String,",
        "pub file: String,",
        "pub value: String,",
        // Extended attributes: looked up in a table.
        "pub name: String,",
        // Orders to anchors: looked up as IDs.
        "pub id: String,",
        "pub id: String,",
        // Volumes and their mounts: admission and `Description::validate` check them.
        "pub name: String,",
        "pub labels: BTreeMap<String, String>,",
        "pub destination: String,",
        "pub options: Vec<String>,",
        "pub mount_options: Vec<String>,",
    ];
    assert_eq!(fields, known);
}
