//! Source and destination together, on plain directories and on overlays.

mod hostile;
mod overlay;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::*;

/// What a test compares of an entry: kind and mode, owner, time, content, attributes, names.
type Shape = (u32, u32, u32, i64, i64, Vec<u8>, Vec<(String, Vec<u8>)>, u64);

/// All entries below `root`, the root itself included.
fn shape(root: &Path) -> BTreeMap<PathBuf, Shape> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() {
            fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let xattrs = xattr::list(&path)
            .unwrap()
            .filter_map(|n| Some((n.to_str()?.to_owned(), n)))
            .filter(|(text, _)| transfer_record::is_carried(text))
            .map(|(text, n)| (text, xattr::get(&path, n).unwrap().unwrap()))
            .collect();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let links = if meta.is_dir() { 1 } else { meta.nlink() };
        let shape = (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            content,
            xattrs,
            links,
        );
        found.insert(path.strip_prefix(root).unwrap().to_path_buf(), shape);
    }
    found
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (shape(a), shape(b));
    for (path, shape) in &a {
        assert_eq!(Some(shape), b.get(path), "{}", path.display());
    }
    assert_eq!(a.len(), b.len(), "{:?}", b.keys().find(|k| !a.contains_key(*k)));
}

/// Runs a pass and applies it.
fn carry(source: &Source, old: Option<Snapshot>, tasks: Tasks, to: &Path) -> (Snapshot, Stats) {
    let limits = Limits { devices: true, ..Limits::default() };
    let mut applier = Applier::new(to, limits).unwrap();
    let sink = &mut |record| applier.apply(record);
    let (snapshot, stats) = match old {
        None => source.first_pass(tasks, sink).unwrap(),
        Some(old) => source.changes_since(old, tasks, sink).unwrap(),
    };
    let applied = applier.finish().unwrap();
    assert_eq!(stats, applied);
    (snapshot, stats)
}

/// A directory on the disk that the build is on: `/tmp` may be in memory.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
}

/// Lets the clock tick on, so that nothing is too fresh to be sure of.
fn settle() {
    std::thread::sleep(Duration::from_millis(30));
}

/// A tree with one of each.
fn populate(root: &Path) {
    fs::create_dir_all(root.join("d/e/f")).unwrap();
    fs::write(root.join("d/file"), "content").unwrap();
    fs::write(root.join("d/empty"), "").unwrap();
    fs::write(root.join("d/tool"), "x").unwrap();
    fs::set_permissions(root.join("d/tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("d/file"), root.join("d/e/other name")).unwrap();
    symlink("/etc/passwd", root.join("d/abs")).unwrap();
    symlink("../..//nowhere", root.join("d/e/up")).unwrap();
    nix::unistd::mkfifo(&root.join("d/pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640))
        .unwrap();
    let big: Vec<u8> = (0..1_500_000).map(|i| (i % 249) as u8).collect();
    fs::write(root.join("big"), big).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 50 << 20).unwrap();
    fs::set_permissions(root.join("d/e"), PermissionsExt::from_mode(0o1777)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_007, 123_456_789);
    fs::File::open(root.join("d/file")).unwrap().set_modified(old).unwrap();
    fs::File::open(root.join("d/e/f")).unwrap().set_modified(old).unwrap();
    let _ = xattr::set(root.join("d/file"), "user.netmig", b"v\0w");
    let odd = std::ffi::OsStr::from_bytes(b"not \xff utf-8");
    fs::write(root.join(odd), "odd").unwrap();
}

#[test]
fn a_plain_tree_arrives_and_follows() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (from.path(), to.path());
    populate(from);
    settle();
    let source = Source::plain(from).unwrap();
    let (snapshot, stats) = carry(&source, None, Tasks::Running, to);
    assert_same(from, to);
    assert!(stats.bytes < 2_000_000, "holes are not sent: {stats:?}");
    let blocks = fs::metadata(to.join("sparse")).unwrap().blocks();
    assert!(blocks < 1000, "{blocks}");

    let (snapshot, stats) = carry(&source, Some(snapshot), Tasks::Running, to);
    assert_eq!(stats, Stats::default(), "nothing changed");

    fs::write(from.join("d/new"), "new").unwrap();
    fs::remove_file(from.join("d/empty")).unwrap();
    fs::remove_dir_all(from.join("d/e")).unwrap();
    fs::write(from.join("d/e"), "was a directory").unwrap();
    fs::rename(from.join("d/tool"), from.join("moved")).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(from.join("big"))
        .unwrap()
        .write_all_at(b"changed", 700_000)
        .unwrap();
    fs::set_permissions(from.join("sparse"), PermissionsExt::from_mode(0o600)).unwrap();
    let (snapshot, stats) = carry(&source, Some(snapshot), Tasks::Frozen, to);
    assert_same(from, to);
    assert!(stats.bytes < 3 * BLOCK as u64, "one block of the large file: {stats:?}");
    let (_, stats) = carry(&source, Some(snapshot), Tasks::Frozen, to);
    assert_eq!(stats, Stats::default());
}

#[test]
fn what_changes_within_a_tick_of_the_clock_is_not_missed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (from.path(), to.path());
    let source = Source::plain(from).unwrap();
    let mut snapshot = None;
    for round in 0..200u32 {
        // Same size, written right before and right after the pass.
        fs::write(from.join("f"), round.to_be_bytes()).unwrap();
        let (new, _) = carry(&source, snapshot.take(), Tasks::Running, to);
        fs::write(from.join("f"), (!round).to_be_bytes()).unwrap();
        let (new, _) = carry(&source, Some(new), Tasks::Frozen, to);
        assert_eq!(fs::read(to.join("f")).unwrap(), (!round).to_be_bytes());
        snapshot = Some(new);
    }
}

/// A shared mapping that stays dirty writes without any system call.
#[test]
fn writes_through_shared_mappings_are_seen() {
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = on_disk();
    for dir in [shm.path(), disk.path()] {
        let to = tempfile::tempdir().unwrap();
        let path = dir.join("mapped");
        fs::write(&path, vec![0; 4096]).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let length = std::num::NonZeroUsize::new(4096).unwrap();
        use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let map = unsafe { mmap(None, length, flags, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
        // SAFETY: within the mapping, which is writable.
        let poke = |byte: u8| unsafe { map.cast::<u8>().as_ptr().add(17).write_volatile(byte) };
        poke(1);
        settle();
        let source = Source::plain(dir).unwrap();
        let (snapshot, _) = carry(&source, None, Tasks::Running, to.path());
        settle();
        poke(2);
        let (snapshot, _) = carry(&source, Some(snapshot), Tasks::Running, to.path());
        assert_eq!(fs::read(to.path().join("mapped")).unwrap()[17], 2, "{}", dir.display());
        settle();
        poke(3);
        carry(&source, Some(snapshot), Tasks::Frozen, to.path());
        assert_eq!(fs::read(to.path().join("mapped")).unwrap()[17], 3, "{}", dir.display());
        // SAFETY: the mapping is not used any more.
        unsafe { munmap(map, 4096) }.unwrap();
    }
}

#[test]
fn hard_links_stay_one_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (from.path(), to.path());
    fs::write(from.join("b"), "one").unwrap();
    fs::hard_link(from.join("b"), from.join("c")).unwrap();
    settle();
    let source = Source::plain(from).unwrap();
    let (snapshot, _) = carry(&source, None, Tasks::Running, to);
    // A name in front, one that goes, and new content.
    fs::hard_link(from.join("b"), from.join("a")).unwrap();
    fs::remove_file(from.join("b")).unwrap();
    fs::write(from.join("c"), "three").unwrap();
    settle();
    let (snapshot, _) = carry(&source, Some(snapshot), Tasks::Running, to);
    assert_same(from, to);
    fs::write(from.join("c"), "four!").unwrap();
    carry(&source, Some(snapshot), Tasks::Frozen, to);
    assert_same(from, to);
    let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("c"));
}

#[test]
fn an_unchanged_tree_costs_one_look_at_each_file() {
    let from = on_disk();
    for d in 0..20 {
        let dir = from.path().join(d.to_string());
        fs::create_dir(&dir).unwrap();
        for f in 0..100 {
            fs::write(dir.join(f.to_string()), [1; 100]).unwrap();
        }
    }
    settle();
    let source = Source::plain(from.path()).unwrap();
    let (mut snapshot, stats) = source.first_pass(Tasks::Running, &mut |_| Ok(())).unwrap();
    assert_eq!(stats.entries, 2021);
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let (next, stats) = source.changes_since(snapshot, Tasks::Frozen, &mut |_| Ok(())).unwrap();
        best = best.min(start.elapsed());
        assert_eq!(stats, Stats::default());
        snapshot = next;
    }
    println!("2,000 unchanged files: {best:?}");
    assert!(best < Duration::from_millis(200), "{best:?}");
}
