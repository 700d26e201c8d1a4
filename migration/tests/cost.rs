//! How long it takes to tell another host of a container with 10,000 sockets: prints it, and asserts no time.
//!
//! `cargo test --release -p migration --test cost -- --ignored --nocapture --test-threads=1`

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use checkpoint::facts::{ContainerFacts, Fact, Kind};
use migration::convert::{self, FlowBatch, Wire};
use netmig::flow::{Flow, Protocol, TcpState, Tuple, Zone};
use protocol::message::{self as wire, Message};

/// Sockets of the container.
const SOCKETS: u16 = 10_000;
/// How often everything is done; the shortest time counts.
const TIMES: usize = 301;
/// Bytes of one message of facts, and flows of one message of flows, as the source sends them.
const PART: usize = 1 << 20;
const FLOWS: usize = protocol::wire::FLOWS_PER_FRAME;

fn fingerprint() -> ContainerFacts {
    let descriptor = |number| {
        let object = format!("{number} of process 7");
        (Fact { kind: Kind::Descriptor, object }, "socket flags=4002 pos=0".to_owned())
    };
    let limit = |number| {
        let object = format!("limit {} of process {}", number % 60, number / 60);
        (Fact { kind: Kind::Limits, object }, "1024 524288".to_owned())
    };
    let mut fingerprint = ContainerFacts::default();
    fingerprint.join((0..SOCKETS).map(descriptor).chain((0..600).map(limit))).unwrap();
    fingerprint
}

fn flow(number: u16) -> Flow {
    let original = Tuple {
        source: [192, 0, 2, (number % 250) as u8].into(),
        destination: [10, 88, 0, 2].into(),
        source_port: number,
        destination_port: 80,
    };
    Flow {
        protocol: Protocol::Tcp,
        original,
        reply: original.inverse(),
        status: 14,
        timeout: 300,
        mark: 0,
        zone: Zone::default(),
        tcp: Some(TcpState { state: 3, scales: [7, 7], flags: [8, 8] }),
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

/// The shortest of several times.
#[derive(Default)]
struct Shortest(Option<Duration>);

impl Shortest {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        let took = began.elapsed();
        self.0 = Some(self.0.map_or(took, |shortest| shortest.min(took)));
        done
    }
}

#[test]
#[ignore = "it measures"]
fn facts() {
    let (original, copy) = (fingerprint(), fingerprint());
    let (mut encode, mut decode, mut compare) =
        (Shortest::default(), Shortest::default(), Shortest::default());
    let mut size = 0;
    for _ in 0..TIMES {
        let sent = original.clone();
        let frames: Vec<Vec<u8>> = encode.of(|| {
            let parts = convert::parts(sent, PART).into_iter();
            parts.map(|part| encoded(&Message::Facts(part))).collect()
        });
        size = frames.iter().map(Vec::len).sum();
        let received = decode.of(|| {
            let mut received = ContainerFacts::default();
            for frame in &frames {
                let Message::Facts(part) = Message::decode(frame).unwrap() else { panic!() };
                convert::join(&mut received, part).unwrap();
            }
            received
        });
        assert!(compare.of(|| received.differences(&copy)).is_empty());
    }
    let (encode, decode, compare) = (encode.0.unwrap(), decode.0.unwrap(), compare.0.unwrap());
    println!("facts: {size} bytes, encode {encode:?}, decode {decode:?}, compare {compare:?}");
}

#[test]
#[ignore = "it measures"]
fn flows() {
    let all: Vec<Flow> = (0..SOCKETS).map(flow).collect();
    let (mut encode, mut decode) = (Shortest::default(), Shortest::default());
    let mut size = 0;
    for _ in 0..TIMES {
        let frames: Vec<Vec<u8>> = encode.of(|| {
            let batch = |flows: &[Flow]| wire::FlowBatch {
                anchor: None,
                flows: flows.iter().cloned().map(Flow::into_wire).collect(),
                aliases: Vec::new(),
                at_destination: Vec::new(),
            };
            let batches = all.chunks(FLOWS).map(batch);
            batches.map(|batch| encoded(&Message::Flows(batch))).collect()
        });
        size = frames.iter().map(Vec::len).sum();
        let received: Vec<Vec<Flow>> = decode.of(|| {
            let batch = |frame: &Vec<u8>| match Message::decode(frame).unwrap() {
                Message::Flows(batch) => FlowBatch::from_wire(batch).unwrap().flows,
                other => panic!("{}", other.name()),
            };
            frames.iter().map(batch).collect()
        });
        assert_eq!(received.concat(), all);
    }
    let (encode, decode) = (encode.0.unwrap(), decode.0.unwrap());
    println!("flows: {size} bytes, encode {encode:?}, decode {decode:?}");
}
