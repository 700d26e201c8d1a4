//! Recorded frames of every message: what was released never changes.
//!
//! `tests/conversations/v6` has one file for each message, with one or more frames as they go over the wire. Each
//! frame has to be decoded and encoded to the same bytes, and the samples here have to be encoded to what was
//! recorded. So a field that is added, removed, moved or given another type fails, whichever crate it is in.
//!
//! A new message is recorded with `NETMIG_RECORD=1 cargo test -p protocol --test conversations`. That never
//! changes a file that is there.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conversations/samples/mod.rs"]
mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use protocol::message::{EntryKind, TreeRecord};
use protocol::message::{Fate, Message, Transport, Tree, description, flow};

/// The version whose messages are recorded here.
const VERSION: u16 = 6;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/conversations/v{VERSION}"))
}

/// The file of a message's frames.
fn file(number: u8, name: &str) -> PathBuf {
    directory().join(format!("{number:02}-{name}"))
}

/// A message as it goes over the wire, with its length before it.
fn frame(message: &Message) -> Vec<u8> {
    let mut frame = vec![0; 4];
    message.encode(&mut frame).unwrap();
    let length = u32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Splits recorded bytes into frames.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
        let (frame, rest) = rest.split_at(length);
        all.push(frame);
        bytes = rest;
    }
    assert!(bytes.is_empty(), "bytes follow the last frame");
    all
}

#[test]
fn every_recorded_frame_is_still_what_it_was() {
    let is_recording = std::env::var_os("NETMIG_RECORD").is_some();
    let samples = samples::all();
    let mut expected = BTreeSet::new();
    for (number, name) in Message::ALL {
        let path = file(*number, name);
        expected.insert(path.clone());
        let wanted: Vec<u8> =
            samples.iter().filter(|one| one.number() == *number).flat_map(frame).collect();
        assert!(!wanted.is_empty(), "there is no sample of {name}");
        if is_recording && !path.exists() {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, &wanted).unwrap();
        }
        let recorded = fs::read(&path).unwrap_or_default();
        assert!(!recorded.is_empty(), "{name} has no recording {}", path.display());
        for old in frames(&recorded) {
            assert_eq!(old.first(), Some(number), "{name} has another number");
            let message = Message::decode(old).unwrap_or_else(|error| {
                panic!("{name} has changed: a recorded frame cannot be decoded: {error:?}")
            });
            let mut new = Vec::new();
            message.encode(&mut new).unwrap();
            assert_eq!(new, old, "{name} has changed: a recorded frame is encoded to other bytes");
        }
        assert_eq!(wanted, recorded, "{name} has changed: it is encoded to other bytes");
    }
    let present = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let present: BTreeSet<PathBuf> = present.collect();
    let gone: Vec<_> = present.difference(&expected).collect();
    assert!(gone.is_empty(), "recorded messages that are not known any more: {gone:?}");
}

/// Decodes the variant with this number of an enumeration.
fn variant<T: serde::de::DeserializeOwned>(number: u8) -> Result<(), String> {
    // Enough for the fields of any variant.
    let mut bytes = vec![0; 128];
    bytes[0] = number;
    let decoded = bincode::serde::decode_from_slice::<T, _>(&bytes, bincode::config::standard());
    decoded.map(drop).map_err(|error| format!("{error:?}"))
}

/// Checks that an enumeration has so many variants and no more: another variant needs another message.
fn has_variants<T: serde::de::DeserializeOwned>(number: u8) {
    let name = std::any::type_name::<T>();
    for known in 0..number {
        let decoded = variant::<T>(known);
        assert!(decoded.is_ok(), "{name} has lost the variant {known}: {decoded:?}");
    }
    let refused = variant::<T>(number).expect_err("a variant that no recording knows");
    assert!(refused.contains("variant index"), "{name}: {refused}");
}

#[test]
fn enumerations_have_the_variants_that_they_had() {
    has_variants::<flow::Protocol>(2);
    has_variants::<flow::ZoneScope>(3);
    has_variants::<Transport>(2);
    has_variants::<Tree>(2);
    has_variants::<TreeRecord>(3);
    has_variants::<EntryKind>(7);
    has_variants::<Fate>(5);
    has_variants::<description::Apparmor>(3);
    has_variants::<description::Filesystem>(7);
}
