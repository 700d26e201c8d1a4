//! Source and destination together.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use bytes::Bytes;

use super::*;

/// Carries everything that is there now.
fn pump(follower: &mut Follower, writer: &mut Writer) -> u64 {
    follower.poll(&mut |chunk| writer.write(&chunk)).unwrap()
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn chunk(name: &str, offset: u64, bytes: &'static [u8]) -> Chunk {
    Chunk { name: name.into(), offset, bytes: Bytes::from_static(bytes) }
}

#[test]
fn a_growing_directory_arrives_whole() {
    growing_directory(|dir| Follower::new(dir).unwrap());
}

/// Where the kernel watches nothing for us.
#[test]
fn a_growing_directory_that_is_searched_arrives_whole() {
    growing_directory(|dir| Follower::with(None, dir).unwrap());
}

fn growing_directory(follow: impl Fn(&Path) -> Follower) {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut follower = follow(from.path());
    let mut writer = Writer::new(to.path(), Limits::default()).unwrap();
    // What podman left there at the import.
    fs::write(to.path().join("inventory.img"), "old").unwrap();
    let pages: Vec<u8> = (0..3 * CHUNK + 17).map(|i| (i % 251) as u8).collect();
    append(&from.path().join("pages-1.img"), &pages[..CHUNK + 5]);
    append(&from.path().join("empty.img"), b"");
    assert_eq!(pump(&mut follower, &mut writer), CHUNK as u64 + 5);
    append(&from.path().join("core-1.img"), b"core");
    append(&from.path().join("pages-1.img"), &pages[CHUNK + 5..]);
    pump(&mut follower, &mut writer);
    assert_eq!(pump(&mut follower, &mut writer), 0);
    // A file that is replaced, one that is changed in place, one that vanishes.
    fs::remove_file(from.path().join("core-1.img")).unwrap();
    append(&from.path().join("core-1.img"), b"another core");
    fs::write(from.path().join("inventory.img"), "first").unwrap();
    append(&from.path().join("gone.img"), b"");
    pump(&mut follower, &mut writer);
    fs::write(from.path().join("inventory.img"), "FIRST").unwrap();
    fs::remove_file(from.path().join("gone.img")).unwrap();
    let manifest = follower.finish(&mut |chunk| writer.write(&chunk)).unwrap();
    let stats = writer.finish(&manifest).unwrap();
    assert_eq!(stats.files, 4);
    assert_eq!(fs::read(to.path().join("pages-1.img")).unwrap(), pages);
    assert_eq!(fs::read(to.path().join("core-1.img")).unwrap(), b"another core");
    assert_eq!(fs::read(to.path().join("inventory.img")).unwrap(), b"FIRST");
    assert_eq!(fs::read(to.path().join("empty.img")).unwrap(), b"");
    assert!(!to.path().join("gone.img").exists());
}

#[test]
fn hostile_pieces_are_refused_and_nothing_leaves_the_directory() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(top.path().join("secret"), "s").unwrap();
    std::os::unix::fs::symlink("../secret", dir.join("link.img")).unwrap();
    let limits = Limits { files: 3, bytes: 100 };
    let new = || Writer::new(&dir, limits).unwrap();
    for name in ["../secret", "/etc/x", "", ".", "..", "a/b", ".x", "a\0"] {
        assert!(matches!(new().write(&chunk(name, 0, b"x")), Err(Error::BadName(_))), "{name}");
    }
    let mut writer = new();
    // A gap, an overlap, a file that never began.
    assert!(matches!(writer.write(&chunk("a", 1, b"x")), Err(Error::OutOfOrder { .. })));
    writer.write(&chunk("a", 0, b"xyz")).unwrap();
    assert!(matches!(writer.write(&chunk("a", 2, b"x")), Err(Error::OutOfOrder { .. })));
    assert!(matches!(writer.write(&chunk("a", 4, b"x")), Err(Error::OutOfOrder { .. })));
    writer.write(&chunk("a", 3, b"!")).unwrap();
    // A link is replaced, not followed.
    writer.write(&chunk("link.img", 0, b"evil")).unwrap();
    assert_eq!(fs::read(top.path().join("secret")).unwrap(), b"s");
    writer.write(&chunk("c", 0, b"")).unwrap();
    assert!(matches!(writer.write(&chunk("d", 0, b"")), Err(Error::TooLarge { .. })));
    assert!(matches!(writer.write(&chunk("a", 4, &[0; 100])), Err(Error::TooLarge { .. })));
    // Starting over for ever is bounded too.
    let mut writer = new();
    let ended = (0..1000).find_map(|_| writer.write(&chunk("a", 0, &[0; 90])).err());
    assert!(matches!(ended, Some(Error::TooLarge { .. })));
    let large = Chunk { name: "a".into(), offset: 0, bytes: Bytes::from(vec![0; CHUNK + 1]) };
    let mut writer = Writer::new(&dir, Limits::default()).unwrap();
    assert!(matches!(writer.write(&large), Err(Error::TooLarge { .. })));
}

#[test]
fn what_differs_from_the_list_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = || {
        let mut writer = Writer::new(dir.path(), Limits::default()).unwrap();
        writer.write(&chunk("a", 0, b"hello")).unwrap();
        writer
    };
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("a"), "hello").unwrap();
    let good = Follower::new(source.path()).unwrap().finish(&mut |_| Ok(())).unwrap();
    assert_eq!(writer().finish(&good).unwrap(), Stats { files: 1, bytes: 5 });
    let problem = |manifest: &Manifest| match writer().finish(manifest) {
        Err(Error::Differs { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let mut bad = good.clone();
    bad.files[0].hash[3] ^= 1;
    assert_eq!(problem(&bad), "hash");
    bad = good.clone();
    bad.files[0].length = 4;
    assert_eq!(problem(&bad), "length");
    bad = good.clone();
    bad.files.push(good.files[0].clone());
    assert_eq!(problem(&bad), "named twice or out of order");
    bad.files[1].name = "../a".into();
    bad.files.swap(0, 1);
    assert_eq!(problem(&bad), "missing");
    assert_eq!(problem(&Manifest::default()), "not in the list");
}

#[test]
fn anything_but_files_in_the_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("x.img");
    let mut follower = Follower::new(dir.path()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    assert!(matches!(follower.poll(&mut |_| Ok(())), Err(Error::NotAFile { .. })));
    assert!(matches!(Follower::new(dir.path()), Err(Error::NotAFile { .. })));
    fs::remove_file(link).unwrap();
    let mut follower = Follower::new(dir.path()).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    assert!(matches!(follower.poll(&mut |_| Ok(())), Err(Error::NotAFile { .. })));
}

#[test]
fn more_files_than_the_kernel_tells_of_arrive() {
    const LIMIT: &str = "/proc/sys/fs/inotify/max_queued_events";
    let limit: usize = fs::read_to_string(LIMIT).unwrap().trim().parse().unwrap();
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut follower = Follower::new(from.path()).unwrap();
    let limits = Limits { files: 1 << 20, ..Limits::default() };
    let mut writer = Writer::new(to.path(), limits).unwrap();
    append(&from.path().join("early.img"), b"as it was");
    append(&from.path().join("gone.img"), b"");
    pump(&mut follower, &mut writer);
    // Each is made and closed, which are two events; those of what comes last are lost.
    let count = limit / 2 + 10;
    (0..count).for_each(|n| append(&from.path().join(format!("{n}.img")), b"small"));
    fs::write(from.path().join("early.img"), "as it is").unwrap();
    fs::remove_file(from.path().join("gone.img")).unwrap();
    pump(&mut follower, &mut writer);
    append(&from.path().join("0.img"), b", and more");
    let manifest = follower.finish(&mut |chunk| writer.write(&chunk)).unwrap();
    assert_eq!(writer.finish(&manifest).unwrap().files, count as u64 + 1);
    for (name, text) in [("early.img", "as it is"), ("0.img", "small, and more")] {
        assert_eq!(fs::read_to_string(to.path().join(name)).unwrap(), text);
    }
    assert_eq!(fs::read(to.path().join(format!("{}.img", count - 1))).unwrap(), b"small");
}
