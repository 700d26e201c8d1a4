//! Feeds the fuzz targets' stored corpora and encoded samples to the targets' functions, on a stable toolchain.
//!
//! The corpus of a target is the archive `fuzz/corpus/TARGET.tar`. With `NETMIG_WRITE_SAMPLES=1` in its environment the
//! test also writes the samples to `fuzz/corpus/TARGET/`, the directory from which libFuzzer starts. Otherwise it writes
//! nothing. `fuzz/README.md` tells how to fuzz.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use checkpoint::images::{Chunk, Follower};
use checkpoint::tree::{Kind, Meta, Record, Source, Tasks};
use engine::description::{Description, Filesystem, Mount, Storage};
use migration::convert::Wire;
use protocol::message::MigrationId;
use protocol::trust::{Secret, Token, Trust};
use state::id::HostId;
use state::journal::{Process, Record as Step};

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

const TARGETS: [Target; 7] = [
    ("message", fuzz::message, messages),
    ("tree", fuzz::tree, trees),
    ("images", fuzz::images, images),
    ("netlink", fuzz::netlink, netlink),
    ("journal", fuzz::journal, journals),
    ("podman", fuzz::podman, podman),
    ("token", fuzz::token, tokens),
];

/// Returns the directory with the corpora.
fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// Reads the inputs in the archive of a target.
fn stored(target: &str) -> Vec<Vec<u8>> {
    let file = fs::File::open(corpora().join(target).with_extension("tar")).unwrap();
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.header().entry_type().is_file());
    files
        .map(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        })
        .collect()
}

#[test]
fn the_corpus_is_survived() {
    if std::env::var_os("NETMIG_WRITE_SAMPLES").is_some() {
        write_the_samples();
    }
    for (name, target, samples) in TARGETS {
        let samples = samples();
        assert!(!samples.is_empty(), "no sample for {name}");
        samples.iter().for_each(|bytes| target(bytes));
        let stored = stored(name);
        assert!(stored.len() > 10, "the corpus of {name} has only {} inputs", stored.len());
        stored.iter().for_each(|bytes| target(bytes));
    }
}

#[test]
fn every_cut_and_flip_of_a_sample_is_survived() {
    for (_, target, samples) in TARGETS {
        for sample in samples().iter().filter(|sample| sample.len() < 400) {
            for at in 0..sample.len() {
                target(&sample[..at]);
                let mut flipped = sample.clone();
                flipped[at] ^= 0xff;
                target(&flipped);
            }
        }
    }
}

fn write_the_samples() {
    for (name, _, samples) in TARGETS {
        let directory = corpora().join(name);
        fs::create_dir_all(&directory).unwrap();
        for (number, bytes) in samples().iter().enumerate() {
            fs::write(directory.join(format!("sample-{number:02}")), bytes).unwrap();
        }
    }
}

/// The wire form of a value, as it stands in a message.
fn encoded<T: Wire<Form: serde::Serialize>>(value: T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value.into_wire(), bincode::config::standard()).unwrap()
}

fn metadata() -> (Vec<u8>, Vec<u8>) {
    let config = br#"{"id":"a7","name":"web","privileged":false,"createNetNS":true,
        "networkMode":"bridge","namedVolumes":[{"volumeName":"v"}],"runtime":"crun",
        "rootfsImageID":"70","rootfsImageName":"localhost/probe:1","timezone":"local"}"#;
    let spec = br#"{"root":{"path":"/g/overlay/3f/merged"},"process":{"capabilities":
        {"bounding":["CAP_CHOWN"]}},"mounts":[{"destination":"/dev/shm","type":"bind",
        "source":"/g/overlay-containers/a7/userdata/shm","options":["bind"]}],
        "hooks":{"prestart":[{"path":"/h"}]},"annotations":{"run.oci.handler":"x"},
        "linux":{"cgroupsPath":"/libpod-a7","namespaces":[{"type":"network","path":"/n"}],
        "devices":[{"path":"/dev/fuse","type":"c","major":10,"minor":229}],"resources":{"devices":
        [{"allow":false,"access":"rwm"}],"memory":{"limit":5}},"maskedPaths":["/proc/kcore"],
        "seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}"#;
    (config.to_vec(), spec.to_vec())
}

fn description() -> Description {
    let mount = Mount {
        destination: "/x".into(),
        filesystem: Filesystem::Host("/srv".into()),
        options: vec!["rbind".into()],
    };
    Description {
        id: "a7".repeat(32),
        name: "web".into(),
        labels: [("a".into(), "b".into())].into(),
        storage: Storage { mounts: vec![mount], ..Storage::default() },
        ..Description::default()
    }
}

/// The recorded frames of every message, without their lengths.
fn messages() -> Vec<Vec<u8>> {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/conversations/v6");
    let mut files: Vec<PathBuf> =
        fs::read_dir(recorded).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().flat_map(|path| frames(&fs::read(path).unwrap())).collect()
}

fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        all.push(frame.to_vec());
        bytes = rest;
    }
    all
}

fn trees() -> Vec<Vec<u8>> {
    let made = tempfile::tempdir().unwrap();
    fs::create_dir(made.path().join("sub")).unwrap();
    fs::write(made.path().join("sub/file"), [9; 200]).unwrap();
    fs::hard_link(made.path().join("sub/file"), made.path().join("other")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", made.path().join("link")).unwrap();
    let mut honest = Vec::new();
    let mut sink = |record: Record| {
        honest.extend(encoded(record));
        Ok(())
    };
    Source::plain(made.path()).unwrap().first_pass(Tasks::Frozen, &mut sink).unwrap();
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1, mtime_ns: 2, xattrs: Vec::new() };
    let path = |text: &str| text.as_bytes().to_vec().into();
    let entry = |name: &str, kind| Record::Entry { path: path(name), meta: meta.clone(), kind };
    let kinds = [
        Kind::Directory { replace: true },
        Kind::File { length: 10, patch: false },
        Kind::File { length: 200, patch: true },
        Kind::HardLink { target: path("d/file") },
        Kind::HardLink { target: path("../beside") },
        Kind::Symlink { target: path("../beside") },
        Kind::Fifo,
        Kind::Socket,
        Kind::Device { block: false, major: 1, minor: 3 },
    ];
    let names = ["new", "d/file", "link", "link/x", "../beside", "d"];
    let pairs = kinds.iter().flat_map(|kind| names.iter().map(move |name| (kind, name)));
    let data = Record::Data { offset: 0, bytes: vec![1; 10].into() };
    let hostile = pairs.map(|(kind, name)| {
        let removed = Record::Remove { path: path(name) };
        [encoded(entry(name, kind.clone())), encoded(data.clone()), encoded(removed)].concat()
    });
    hostile.chain([honest.clone()]).collect()
}

fn images() -> Vec<Vec<u8>> {
    let made = tempfile::tempdir().unwrap();
    fs::write(made.path().join("pages-1.img"), [5; 300]).unwrap();
    fs::write(made.path().join("link.img"), b"").unwrap();
    let mut follower = Follower::new(made.path()).unwrap();
    let mut honest = Vec::new();
    let mut sink = |chunk: Chunk| {
        honest.extend(encoded(chunk));
        Ok(())
    };
    follower.poll(&mut sink).unwrap();
    let manifest = follower.finish(&mut sink).unwrap();
    honest.extend(encoded(manifest));
    let name = |name: &str| Chunk { name: name.into(), offset: 0, bytes: vec![1].into() };
    let hostile = ["../beside", "/etc/x", "link.img", ".", "a/b"].map(|n| encoded(name(n)));
    hostile.into_iter().chain([honest]).collect()
}

/// A netlink attribute.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A conntrack entry as the kernel describes it (`linux/netfilter/nfnetlink_conntrack.h`).
fn entry() -> Vec<u8> {
    let tuple = |kind: u16, from: [u8; 4], to: [u8; 4], ports: (u16, u16)| {
        let ip = [attribute(1, &from), attribute(2, &to)].concat();
        let (from, to) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
        let proto = [attribute(1, &[6]), attribute(2, &from), attribute(3, &to)].concat();
        attribute(
            kind | 0x8000,
            &[attribute(1 | 0x8000, &ip), attribute(2 | 0x8000, &proto)].concat(),
        )
    };
    let tcp = [attribute(1, &[3]), attribute(2, &[7]), attribute(4, &[8, 8])].concat();
    [
        vec![2, 0, 0, 0],
        tuple(1, [192, 0, 2, 3], [10, 88, 0, 2], (41000, 80)),
        tuple(2, [10, 88, 0, 2], [192, 0, 2, 3], (80, 41000)),
        attribute(3, &14u32.to_be_bytes()),
        attribute(4 | 0x8000, &attribute(1 | 0x8000, &tcp)),
        attribute(7, &300u32.to_be_bytes()),
        attribute(8, &0x0900_0000_u32.to_be_bytes()),
        attribute(18, &1u16.to_be_bytes()),
    ]
    .concat()
}

fn netlink() -> Vec<Vec<u8>> {
    let packet = [vec![2, 0, 0x6d, 1], attribute(1, &[0, 0, 0, 9, 8, 0, 1])].concat();
    let framed = |kind: u16, payload: &[u8]| {
        let length = (payload.len() as u32 + 16).to_ne_bytes();
        [&length[..], &kind.to_ne_bytes(), &[2, 0], &[1, 0, 0, 0, 0, 0, 0, 0], payload].concat()
    };
    let datagram = [framed(0x100, &entry()), framed(0x300, &packet), framed(2, &[0; 20])].concat();
    vec![entry(), packet, datagram]
}

fn journals() -> Vec<Vec<u8>> {
    let arrival = Step::Arrival {
        migration: MigrationId([3; 16]),
        container: "c".repeat(64),
        name: "web".into(),
        addresses: vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        peer: HostId([9; 16]),
        source: "a".into(),
        began: 1_700_000_000,
    };
    let process = Process {
        pid: 7,
        namespace: "/run/netns/n".into(),
        interface: "eth0".into(),
        started: 9,
        monitor: 6,
    };
    let interruption =
        Step::Interruption { cgroup: "/sys/fs/cgroup/x".into(), port: "v0".into(), process };
    let file = |steps: &[Step]| {
        let lines = steps.iter().map(|step| serde_json::to_string(step).unwrap() + "\n");
        format!("netmig journal 2\n{}", lines.collect::<String>()).into_bytes()
    };
    vec![
        file(&[]),
        file(&[arrival.clone(), Step::Activated, Step::HandedOver { pid: 7, local: Vec::new() }]),
        file(&[arrival, Step::Activated, Step::Lost]),
        file(&[interruption.clone(), Step::Committed { at: 1_700_000_001 }, Step::Acknowledged]),
        file(&[interruption, Step::Committed { at: 1_700_000_001 }, Step::Withdrawn]),
    ]
}

fn tokens() -> Vec<Vec<u8>> {
    let state = tempfile::tempdir().unwrap();
    let fingerprint = Trust::open(state.path()).unwrap().identity.fingerprint();
    let token = |address: &str| {
        let address = address.parse().unwrap();
        let secret = Secret::random().unwrap();
        Token { address, fingerprint, secret }.to_string().into_bytes()
    };
    vec![token("192.0.2.2"), token("[2001:db8::2]:7000"), token("host.example:65535")]
}

fn podman() -> Vec<Vec<u8>> {
    let (config, spec) = metadata();
    let sample = include_bytes!("../../engine/src/podman/inspect/sample.json");
    let list = br#"[{"Id":"a7","Names":["web"],"Image":"i","Ports":[{"host_ip":"","container_port":
        80,"host_port":8080,"range":2,"protocol":"tcp"}],"Networks":["podman"],"Status":"Up"}]"#;
    let networks = br#"[{"name":"n6","driver":"bridge","network_interface":"podman1",
        "containers":{"a7":{"interfaces":{"eth0":{}}}}}]"#;
    let info = br#"{"host":{"ociRuntime":{"name":"crun","path":"/usr/bin/crun"},"conmon":{"path":
        "/c"},"cgroupManager":"cgroupfs","cgroupVersion":"v2","networkBackend":"netavark",
        "databaseBackend":"sqlite","security":{"rootless":false}},"store":{"graphDriverName":
        "overlay","graphRoot":"/g","runRoot":"/r"},"version":{"Version":"5.8.6"}}"#;
    let both = [config, vec![0], spec.clone()].concat();
    let described = encoded(description());
    [both, spec, described, sample.to_vec(), list.to_vec(), networks.to_vec(), info.to_vec()].into()
}
