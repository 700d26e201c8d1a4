//! A sample of every message and variant. Neighbouring fields differ, so that fields that change places are noticed.

mod description;
mod memory_pages;
mod service;

use std::net::IpAddr;

use bytes::Bytes;
use protocol::message::facts::{
    Difference, Fact, FactsOfKind, NetworkFact, NetworkFactsOfKind, Parameter,
};
use protocol::message::flow::{Alias, Protocol, TcpState, Tuple, Zone, ZoneScope};
use protocol::message::*;
use protocol::trust::Secret;
use state::id::HostId;
use state::peer_text::PeerText;

const MIGRATION: MigrationId = MigrationId([7; 16]);
const HOST: HostId = HostId([4; 16]);

/// Samples in the order of the messages' numbers.
pub(crate) fn all() -> Vec<Message> {
    let mut all = conversation();
    all.extend(streams());
    all.extend(decision());
    all.extend(anchors());
    all.extend(comparisons());
    all.extend(trials());
    all.extend(counts());
    all.extend(memory_pages::all());
    all.extend(volumes());
    all.push(service::sample());
    all.sort_by_key(Message::number);
    all
}

fn text<T: for<'a> From<&'a str>>(text: &str) -> T {
    text.into()
}

fn shown(text: &str) -> PeerText {
    text.into()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn four(last: u8) -> IpAddr {
    [10, 88, 0, last].into()
}

fn tuple(source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Tuple {
    Tuple { source, destination, source_port: ports.0, destination_port: ports.1 }
}

fn flows() -> Vec<Flow> {
    let tcp = Flow {
        protocol: Protocol::Tcp,
        original: tuple(ip("192.0.2.3"), ip("192.0.2.1"), (41_000, 8080)),
        reply: tuple(four(2), ip("192.0.2.3"), (80, 41_000)),
        status: 14,
        timeout: 432_000,
        mark: 0x0900_0000,
        zone: Zone { id: 0, scope: ZoneScope::Both },
        tcp: Some(TcpState { state: 3, scales: [7, 8], flags: [10, 11] }),
    };
    let udp = |id, scope| Flow {
        protocol: Protocol::Udp,
        original: tuple(ip("fd00::2"), ip("2001:db8::3"), (53_000, 53)),
        reply: tuple(ip("2001:db8::3"), ip("fd00::2"), (53, 53_000)),
        zone: Zone { id, scope },
        tcp: None,
        ..tcp
    };
    vec![tcp, udp(5, ZoneScope::Original), udp(6, ZoneScope::Reply)]
}

fn conversation() -> Vec<Message> {
    let introduction = Introduction {
        name: shown("a"),
        software: shown("0.1.0"),
        capabilities: [text("first"), text("second")].into(),
    };
    let codes = (1..=11).map(FailureCode::from);
    let failure = |code| Message::Failure(Failure { code, message: shown("the disk is full") });
    let mut all = vec![
        Message::Hello(Hello::from(&introduction)),
        Message::Offer(Box::new(offer())),
        Message::Verdict(Verdict {
            blockers: vec![Blocker { code: shown("cpu"), message: shown("b lacks avx") }],
            image_missing: true,
            addresses: vec![ip("192.0.2.2"), ip("2001:db8::2")],
        }),
        Message::TunnelOffer(TunnelEnd {
            transport: Transport::WireGuard { public_key: [3; 32], port: 51_820 },
            kind: shown("wireguard"),
        }),
        Message::TunnelAnswer(TunnelEnd {
            transport: Transport::Direct { hardware_address: [2, 0, 0, 0, 0, 1], mtu: 1500 },
            kind: shown("direct"),
        }),
        Message::Stage(vec![HOST]),
        Message::Staged(vec![(four(2), four(9))]),
        Message::Join(Join { secret: secret(), name: shown("a") }),
        Message::Joined(Joined { name: shown("b"), called: shown("a-2") }),
        Message::AskTurn(()),
        Message::TurnAnswer(true),
        Message::TurnAnswer(false),
        Message::Expect(MIGRATION),
        Message::Unstage(()),
        Message::Unstaged(()),
        Message::Measure(Data(vec![0; 5])),
        Message::Measured(()),
        Message::Attach(MigrationId([6; 16])),
        Message::Attached(()),
        Message::Elsewhere(300),
        Message::Numbered(Numbered { number: 300, message: Data(vec![25]) }),
        Message::Compressed(Data(vec![0x28, 0xb5, 0x2f, 0xfd, 0x00])),
    ];
    all.extend(codes.map(failure));
    all
}

fn volumes() -> Vec<Message> {
    let mount = VolumeMount {
        destination: text("/data"),
        options: vec![text("nosuid")],
        mount_options: vec![text("rbind"), text("nodev")],
    };
    let volume = Volume {
        name: text("data"),
        is_anonymous: true,
        labels: [(text("of"), text("web"))].into(),
        mounts: vec![mount],
        entries: 12,
        length: 70_000,
        disk: 65_536,
        has_devices: false,
    };
    let record = TreeRecord::Data { offset: 9, bytes: Bytes::from_static(&[7; 3]) };
    vec![
        Message::Volumes(vec![volume]),
        Message::VolumeChange(VolumeChange { volume: 1, record }),
        Message::VolumeEnd(VolumeEnd { volume: 1, digest: [8; 16] }),
        Message::VolumeApplied(1),
    ]
}

fn offer() -> Offer {
    Offer {
        migration: MIGRATION,
        id: "a7".repeat(32),
        name: text("web"),
        image: image(),
        image_shipped: true,
        runtime: text("crun"),
        forwarders: vec![Forwarder { host: HOST, readdressed: vec![(four(3), four(2))] }],
        networks: vec![Network { name: text("podman"), addresses: vec![four(2), ip("fd00::2")] }],
        any_address: true,
        direct: Some(1500),
        aliases: vec![Alias { here: four(2), address: ip("198.18.7.7") }],
        ports: vec![Port {
            protocol: Protocol::Udp,
            host_address: Some(ip("192.0.2.1")),
            host_port: 8080,
            container_port: 80,
        }],
        anchors: vec![HOST, HostId([5; 16])],
        memory: 123_456,
        disk: 65_432,
        description: description::full(),
        criu: (4, 2, 1),
        architecture: text("x86_64"),
        cpu_flags: vec![text("avx"), text("avx2")],
        without_symlinks: vec![text("/data")],
    }
}

fn image() -> ImageRef {
    ImageRef { id: "70".repeat(32), name: text("localhost/probe:1") }
}

/// The wire form is 16 bytes.
fn secret() -> Secret {
    let bytes = [9; 16];
    bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap().0
}

fn streams() -> Vec<Message> {
    let mut all = vec![
        Message::ImageBegin(image()),
        Message::ImageData(Data(vec![1, 2, 3])),
        Message::ImageEnd(()),
        Message::ImageStored(()),
        Message::TreeEnd(TreeEnd { tree: Tree::Root, digest: [6; 16] }),
        Message::TreeApplied(Tree::SharedMemory),
        Message::Chunks(vec![
            Chunk { name: text("pages-1.img"), offset: 4096, bytes: Bytes::from_static(&[1; 20]) },
            Chunk { name: text("core-7.img"), offset: 0, bytes: Bytes::new() },
        ]),
        Message::LogData(Data(b"a line\n".to_vec())),
        Message::Flows(FlowBatch {
            anchor: Some(HOST),
            flows: flows(),
            aliases: vec![Alias { here: four(1), address: ip("198.18.7.8") }],
            at_destination: vec![ip("192.0.2.2")],
        }),
    ];
    let change = |record| Message::TreeChange(TreeChange { tree: Tree::SharedMemory, record });
    all.extend(records().into_iter().map(change));
    all
}

fn records() -> Vec<TreeRecord> {
    let path = |path: &'static str| Bytes::from_static(path.as_bytes());
    let attribute =
        ExtendedAttribute { name: text("user.a"), value: Bytes::from_static(b"\x00\xff") };
    let metadata = Metadata {
        mode: 0o4755,
        uid: 1000,
        gid: 100,
        mtime: -1,
        mtime_ns: 999_999_999,
        xattrs: vec![attribute],
    };
    let kinds = [
        EntryKind::Directory { replace: true },
        EntryKind::File { length: 200, patch: true },
        EntryKind::HardLink { target: path("d/file") },
        EntryKind::Symlink { target: path("../beside") },
        EntryKind::Fifo,
        EntryKind::Device { block: true, major: 1, minor: 3 },
        EntryKind::Socket,
    ];
    let entry = |kind| TreeRecord::Entry { path: path("d/new"), metadata: metadata.clone(), kind };
    let mut all: Vec<TreeRecord> = kinds.into_iter().map(entry).collect();
    all.push(TreeRecord::Remove { path: path("d/old") });
    all.push(TreeRecord::Data { offset: 65_536, bytes: Bytes::from_static(&[2; 9]) });
    all
}

fn decision() -> Vec<Message> {
    let sum = FileSum { name: text("pages-1.img"), length: 8192, hash: [8; 16] };
    vec![
        Message::Restore(Manifest { files: vec![sum] }),
        Message::Prepared(Prepared {
            entries_us: 5,
            restore_us: 100_000,
            compare_us: 7,
            differences: vec![Difference {
                kind: text("limits"),
                object: shown("Max open files of process 7"),
                original: Some(shown("1024")),
                copy: None,
            }],
        }),
        Message::Commit(MIGRATION),
        Message::Committed(()),
        Message::Finish(()),
        Message::Finished(Finished { pid: 77, full_buffers: 3, local: vec![ip("192.0.2.2")] }),
        Message::Abort(MIGRATION),
        Message::Aborted(()),
        Message::Resume(MIGRATION),
        Message::Resumed(()),
        Message::Settled(MIGRATION),
        Message::AskSilent(MIGRATION),
        Message::Silent(vec![SilentConnection {
            own: "10.88.0.2:80".parse().unwrap(),
            far: "[2001:db8::3]:9".parse().unwrap(),
            awaits_answer: true,
        }]),
    ]
}

fn anchors() -> Vec<Message> {
    let end = TunnelEnd {
        transport: Transport::WireGuard { public_key: [5; 32], port: 51_821 },
        kind: shown("wireguard-go"),
    };
    let (id, container) = ("c7".repeat(32), vec![four(2)]);
    vec![
        Message::Anchor(AnchorTunnel { host: HOST, address: ip("192.0.2.4"), end }),
        Message::AnchorOffer(AnchorOffer {
            migration: MIGRATION,
            host: HOST,
            address: ip("192.0.2.2"),
            id: id.clone(),
            container: container.clone(),
        }),
        Message::AnchorReady(()),
        Message::Rehome(Rehome { migration: MIGRATION, host: HOST, id: id.clone(), container }),
        Message::Rehomed(300),
        Message::ForwardEnd(id.clone()),
        Message::ForwardEnded(()),
        Message::LedPast(MIGRATION),
        Message::EndFlows(EndFlows {
            id,
            flows: vec![FlowEnds {
                protocol: Protocol::Tcp,
                own: "10.88.0.2:80".parse().unwrap(),
                far: "192.0.2.3:41000".parse().unwrap(),
            }],
        }),
        Message::FlowsEnded(2),
    ]
}

fn comparisons() -> Vec<Message> {
    let socket = SocketSettings {
        process: 1,
        descriptor: 3,
        options: vec![SocketOption { name: text("TCP_SYNCNT"), value: vec![3, 0, 0, 0] }],
        groups: vec![Membership {
            interface: text("eth0"),
            group: ip("224.0.0.251"),
            is_exclusive: true,
            senders: vec![ip("192.0.2.3")],
        }],
    };
    let task = TaskSettings {
        thread: 7,
        processors: Some(vec![0, 3]),
        io_priority: Some(16_388),
        timer_slack: Some(50_000),
        coredump_filter: Some(0x33),
    };
    let cgroup = CgroupSetting { file: text("memory.high"), value: text("max") };
    let fact = Fact { object: text("nice of process 7"), value: text("5") };
    let of_kind = FactsOfKind { kind: text("scheduling"), facts: vec![fact] };
    let route = NetworkFact { is_own: true, text: text("IPv4 route 10.0.0.0/8 in table 254") };
    let network = NetworkFactsOfKind { kind: text("network-route"), facts: vec![route] };
    let parameter = Parameter { name: text("ipv4/ip_forward"), value: text("1"), is_changed: true };
    vec![
        Message::Settings(Settings {
            sockets: vec![socket],
            tasks: vec![task],
            cgroup: vec![cgroup],
        }),
        Message::Facts(Facts { kinds: vec![of_kind], is_last: true }),
        Message::NetworkState(NetworkState {
            configuration: vec![network],
            parameters: vec![parameter],
        }),
    ]
}

fn trials() -> Vec<Message> {
    let barrier = DropRule { family: 1, table: text("fw"), chain: text("guard"), rule: Some(7) };
    let tried =
        |towards, from| TriedPath { towards, from, suspects: vec![shown("a missing route")] };
    vec![
        Message::TryPaths(flows()),
        Message::PathsReady(Some(shown("no bpf"))),
        Message::PathsReady(None),
        Message::AskPaths(()),
        Message::PathsTried(vec![
            tried(Fate::Unseen, Fate::Stuck),
            tried(Fate::Forwarded, Fate::Arrived),
            tried(Fate::Arrived, Fate::Dropped(barrier)),
        ]),
        Message::EndPaths(()),
    ]
}

fn counts() -> Vec<Message> {
    let four = CountedFlow {
        original: tuple(ip("192.0.2.3"), ip("192.0.2.1"), (41_000, 5353)),
        reply: tuple(four(2), ip("192.0.2.3"), (53, 41_000)),
    };
    let six = CountedFlow {
        original: tuple(ip("fd00::2"), ip("2001:db8::3"), (53_000, 53)),
        reply: tuple(ip("2001:db8::3"), ip("fd00::2"), (53, 53_000)),
    };
    let count = FlowCount {
        original: PacketCount { came: 300, left: 2 },
        reply: PacketCount { came: 70_000, left: 1 },
    };
    vec![
        Message::CountFlows(vec![four, six]),
        Message::AskCounts(MIGRATION),
        Message::FlowCounts(Some(vec![count])),
        Message::FlowCounts(None),
        Message::CountPackets(vec![ip("10.88.0.7"), ip("fd00::7")]),
        Message::AskPassage(AskPassage {
            migration: MIGRATION,
            flows: vec![FlowEnds {
                protocol: Protocol::Udp,
                own: "10.88.0.7:53".parse().unwrap(),
                far: "192.0.2.3:41000".parse().unwrap(),
            }],
        }),
        Message::Passage(Some(vec![FlowPassage {
            towards: PacketCount { came: 300, left: 2 },
            from: PacketCount { came: 70_000, left: 1 },
        }])),
        Message::Passage(None),
    ]
}
