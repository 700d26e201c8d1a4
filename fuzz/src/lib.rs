//! One function for each decoder that reads what somebody else wrote: it takes any bytes, and
//! panics when the decoder did something that it must not.
//!
//! The targets in `fuzz_targets/` feed them from libFuzzer, and `migration/tests/corpus.rs` feeds
//! the stored corpus through them on a stable toolchain.

use std::fs;
use std::path::Path;

use bincode::serde::decode_from_slice;
use checkpoint::images::{self, Chunk, Manifest, Writer};
use checkpoint::tree::{self, Applier, Record};
use engine::description::Description;
use engine::needs::Needs;
use migration::convert::Wire;
use protocol::message::{FRAME_LIMIT, Message};
use protocol::trust::Token;
use serde::de::DeserializeOwned;
use state::journal;

/// Bytes that a test's tree or images may take.
const ROOM: u64 = 1 << 20;
/// Steps that one input may consist of.
const STEPS: usize = 64;

/// A message of the wire protocol. What was understood survives being sent on.
pub fn message(bytes: &[u8]) {
    let Ok(message) = Message::decode_frame(bytes, FRAME_LIMIT) else { return };
    let encode = |message: &Message| {
        let mut out = Vec::new();
        message.encode(&mut out).expect("what was decoded can be encoded");
        out
    };
    let once = encode(&message);
    let again = Message::decode(&once).expect("what was encoded can be decoded");
    assert_eq!(once, encode(&again), "a message changes on its way");
}

/// Changes of a container's files. Nothing beside the tree is touched.
pub fn tree(bytes: &[u8]) {
    in_a_yard(|root| {
        fs::create_dir(root.join("d")).expect("making a directory");
        fs::write(root.join("d/file"), [7; 100]).expect("making a file");
        std::os::unix::fs::symlink("../beside", root.join("link")).expect("making a link");
        let limits = tree::Limits { entries: 32, bytes: ROOM, devices: false };
        let mut applier = Applier::new(root, limits).expect("the tree can be opened");
        for record in sequence::<Record>(bytes) {
            if applier.apply(record).is_err() {
                return;
            }
        }
        let _ = applier.finish();
    });
}

/// Checkpoint images. Nothing beside the directory is touched, and nothing but files is in it.
pub fn images(bytes: &[u8]) {
    in_a_yard(|root| {
        std::os::unix::fs::symlink("../beside", root.join("link.img")).expect("making a link");
        let limits = images::Limits { files: 8, bytes: ROOM };
        let mut writer = Writer::new(root, limits).expect("the directory can be opened");
        let mut rest = bytes;
        for _ in 0..STEPS {
            let Some((chunk, left)) = next::<Chunk>(rest) else { break };
            if writer.write(&chunk).is_err() {
                return;
            }
            rest = left;
        }
        let Some((manifest, _)) = next::<Manifest>(rest) else { return };
        let Ok(stats) = writer.finish(&manifest) else { return };
        assert_eq!(stats.files, manifest.files.len() as u64, "files that nobody named");
        for sum in &manifest.files {
            let there = fs::symlink_metadata(root.join(&sum.name)).expect("a file of the list");
            assert!(there.is_file() && there.len() == sum.length, "{sum:?} is {there:?}");
        }
    });
}

/// What the kernel says of flows and of queued packets.
pub fn netlink(bytes: &[u8]) {
    let read = |payload: &[u8]| {
        let _ = netmig::hold::packet_id(payload);
        if let Ok(Some(flow)) = netmig::flow::parse(payload) {
            let inverse = flow.original.inverse().inverse();
            assert_eq!(inverse, flow.original);
            let _ = flow.to_string();
        }
    };
    read(bytes);
    netmig::netlink::walk(bytes, read);
}

/// A journal. A line that was being written changes nothing of what stood before it.
pub fn journal(bytes: &[u8]) {
    let Ok(records) = journal::parse(bytes) else { return };
    let mut torn = bytes.to_vec();
    if torn.ends_with(b"\n") {
        torn.extend_from_slice(b"{\"record\":\"comm");
    }
    assert_eq!(journal::parse(&torn).as_ref(), Ok(&records));
}

/// A join token. What was understood is written in the same way again.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(token) = text.parse::<Token>() else { return };
    let again: Token = token.to_string().parse().expect("a token comes back");
    assert_eq!(again.to_string(), token.to_string());
}

/// podman's answers and files, and a peer's description of a container.
pub fn podman(bytes: &[u8]) {
    let _ = engine::understood(bytes);
    if let Some((description, _)) = next::<Description>(bytes)
        && description.validate().is_ok()
    {
        let _ = Needs::of(&description);
    }
}

/// Reads one value from its wire form at the beginning of `bytes`.
fn next<T: Wire<Form: DeserializeOwned>>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
    let (form, read) = decode_from_slice(bytes, config).ok()?;
    Some((T::from_wire(form).ok()?, bytes.get(read..)?))
}

fn sequence<T: Wire<Form: DeserializeOwned>>(mut bytes: &[u8]) -> Vec<T> {
    let mut all = Vec::new();
    while all.len() < STEPS
        && let Some((value, rest)) = next(bytes)
    {
        all.push(value);
        bytes = rest;
    }
    all
}

/// Runs `work` on an empty directory, beside which lies a file that nobody may touch.
fn in_a_yard(work: impl FnOnce(&Path)) {
    let yard = tempfile::tempdir().expect("making a directory");
    let (root, beside) = (yard.path().join("root"), yard.path().join("beside"));
    fs::create_dir(&root).expect("making a directory");
    fs::write(&beside, "beside").expect("making a file");
    work(&root);
    assert_eq!(fs::read(&beside).expect("the file beside"), b"beside");
    let meta = fs::metadata(&beside).expect("the file beside");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 1, "a link to the file beside");
    let names = fs::read_dir(yard.path()).expect("reading the yard").count();
    assert_eq!(names, 2, "something was made beside the tree");
}
