//! Tests of the messages' numbers and of what is refused.

use super::*;

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn messages_come_back_as_they_were_sent() {
    let id = MigrationId([7; 16]);
    let bytes = encoded(&Message::Commit(id));
    assert_eq!(bytes[0], 20);
    assert!(matches!(Message::decode(&bytes), Ok(Message::Commit(back)) if back == id));
}

#[test]
fn unknown_numbers_are_refused() {
    for number in [0, 68, 84, 92, 200, 255] {
        let refused = Message::decode(&[number, 0, 0]);
        assert!(matches!(refused, Err(CodecError::UnknownKind(n)) if n == number));
    }
    assert!(matches!(Message::decode(&[]), Err(CodecError::UnknownKind(0))));
}

#[test]
fn every_number_and_every_name_is_used_once() {
    let mut numbers: Vec<u8> = Message::ALL.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    let known =
        (1..=67).chain([80]).chain(85..=91).chain(95..=98).chain(110..=112).chain(123..=125);
    assert_eq!(numbers, known.chain([130]).collect::<Vec<u8>>());
    let names: std::collections::BTreeSet<&str> =
        Message::ALL.iter().map(|(_, name)| *name).collect();
    assert_eq!(names.len(), numbers.len());
}

#[test]
fn truncated_and_padded_messages_are_refused() {
    let mut bytes = encoded(&Message::Commit(MigrationId([7; 16])));
    assert!(Message::decode(&bytes[..bytes.len() - 1]).is_err());
    bytes.push(0);
    assert!(matches!(Message::decode(&bytes), Err(CodecError::TrailingBytes("Commit"))));
}

#[test]
fn a_claimed_length_is_not_believed() {
    // ImageData whose byte count claims 2^60: refused before anything is allocated.
    let mut bytes = vec![8, 253];
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(matches!(Message::decode(&bytes), Err(CodecError::Malformed { .. })));
}
