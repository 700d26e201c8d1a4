//! What a peer may send and what must not come of it.

use super::*;
use bytes::Bytes;

fn meta() -> Meta {
    Meta {
        mode: 0o644,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        mtime: 1,
        mtime_ns: 2,
        xattrs: Vec::new(),
    }
}

fn entry(path: &str, kind: Kind) -> Record {
    Record::Entry { path: Bytes::copy_from_slice(path.as_bytes()), meta: meta(), kind }
}

fn file(path: &str, length: u64) -> Record {
    entry(path, Kind::File { length, patch: false })
}

fn data(offset: u64, bytes: &[u8]) -> Record {
    Record::Data { offset, bytes: Bytes::copy_from_slice(bytes) }
}

fn remove(path: &str) -> Record {
    Record::Remove { path: Bytes::copy_from_slice(path.as_bytes()) }
}

fn symlink_to(path: &str, target: &str) -> Record {
    entry(path, Kind::Symlink { target: Bytes::copy_from_slice(target.as_bytes()) })
}

/// A directory beside a file that nobody may touch, and an applier for it.
struct Yard {
    top: tempfile::TempDir,
}

impl Yard {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        fs::write(top.path().join("secret"), "s").unwrap();
        Self { top }
    }

    fn root(&self) -> PathBuf {
        self.top.path().join("root")
    }

    /// Applies records and says how it ended.
    fn run(&self, limits: Limits, records: Vec<Record>) -> Result<Stats, Error> {
        let mut applier = Applier::new(&self.root(), limits)?;
        records.into_iter().try_for_each(|record| applier.apply(record))?;
        applier.finish()
    }

    fn untouched(&self) {
        assert_eq!(fs::read(self.top.path().join("secret")).unwrap(), b"s");
        let names: Vec<_> =
            fs::read_dir(self.top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

#[test]
fn nothing_leaves_the_tree() {
    for path in ["../x", "/tmp/x", "a/../../x", "", ".", "..", "a//b", "a/", "\0"] {
        let yard = Yard::new();
        for record in [file(path, 0), remove(path), symlink_to(path, "/x")] {
            let result = yard.run(Limits::default(), vec![record]);
            assert!(
                matches!(result, Err(Error::BadPath(_) | Error::Refused { .. })),
                "{path:?}: {result:?}"
            );
        }
        yard.untouched();
    }
}

#[test]
fn links_are_never_followed() {
    let yard = Yard::new();
    let run = |records| yard.run(Limits::default(), records);
    // A link that the same stream makes, and one that was there.
    for target in ["..", "../secret", "/", "."] {
        let records = vec![symlink_to("l", target), file("l/secret", 1), data(0, b"x")];
        assert!(run(records).is_err(), "{target}");
        assert!(run(vec![symlink_to("l", target), remove("l/secret")]).is_ok());
        assert!(run(vec![symlink_to("l", target), symlink_to("l/new", "x")]).is_err());
    }
    yard.untouched();
    // The link itself is replaced.
    symlink("../secret", yard.root().join("there")).unwrap();
    run(vec![file("there", 1), data(0, b"x")]).unwrap();
    symlink("../secret", yard.root().join("patched")).unwrap();
    let patch = entry("patched", Kind::File { length: 1, patch: true });
    assert!(run(vec![patch, data(0, b"x")]).is_err());
    yard.untouched();
    assert!(fs::symlink_metadata(yard.root().join("there")).unwrap().is_file());
}

#[test]
fn hard_links_lead_to_files_of_the_tree() {
    let yard = Yard::new();
    symlink("../secret", yard.root().join("l")).unwrap();
    fs::create_dir(yard.root().join("d")).unwrap();
    for target in ["../secret", "/etc/passwd", "l", "d", "absent", "h", "", "l/x"] {
        let kind = Kind::HardLink { target: Bytes::copy_from_slice(target.as_bytes()) };
        let result = yard.run(Limits::default(), vec![entry("h", kind)]);
        assert!(result.is_err(), "{target}");
    }
    yard.untouched();
}

#[test]
fn devices_doubles_and_odd_metadata_are_refused() {
    let yard = Yard::new();
    let refused = |records: Vec<Record>| {
        let result = yard.run(Limits::default(), records);
        assert!(matches!(result, Err(Error::Refused { .. })), "{result:?}");
    };
    refused(vec![entry("null", Kind::Device { block: false, major: 1, minor: 3 })]);
    refused(vec![file("a", 0), file("a", 0)]);
    refused(vec![data(0, b"x")]);
    refused(vec![entry("", Kind::Directory { replace: true })]);
    refused(vec![symlink_to("s", "")]);
    refused(vec![symlink_to("s", &"x".repeat(5000))]);
    let with = |change: &dyn Fn(&mut Meta)| {
        let mut meta = meta();
        change(&mut meta);
        vec![Record::Entry { path: Bytes::from_static(b"m"), meta, kind: Kind::Fifo }]
    };
    let xattr = |name: &str, size| Xattr { name: name.into(), value: vec![0; size].into() };
    refused(with(&|m| m.mode = 0o100_644));
    refused(with(&|m| m.uid = u32::MAX));
    refused(with(&|m| m.mtime_ns = 1_000_000_000));
    refused(with(&|m| m.xattrs = vec![xattr("trusted.overlay.opaque", 1)]));
    refused(with(&|m| m.xattrs = vec![xattr("security.selinux", 1)]));
    refused(with(&|m| m.xattrs = vec![xattr("user.a", 65_537)]));
    refused(with(&|m| m.xattrs = vec![xattr("user.a", 1); 129]));
    let allowed = Limits { devices: true, ..Limits::default() };
    let whiteout = entry("w", Kind::Device { block: false, major: 0, minor: 0 });
    assert!(matches!(yard.run(allowed, vec![whiteout]), Err(Error::Refused { .. })));
}

#[test]
fn content_stays_within_its_file_and_the_limits() {
    let yard = Yard::new();
    let limits = Limits { entries: 3, bytes: 100, devices: false };
    let run = |records| yard.run(limits, records);
    assert!(matches!(run(vec![file("a", 101)]), Err(Error::TooMuch { .. })));
    assert!(matches!(run(vec![file("a", 5), data(3, b"xyz")]), Err(Error::Refused { .. })));
    assert!(run(vec![file("a", 5), data(2, b"x"), data(1, b"x")]).is_err());
    assert!(run(vec![file("a", 5), data(u64::MAX, b"x")]).is_err());
    assert!(run(vec![file("a", 5), data(0, b"")]).is_err());
    let again = (0..40).map(|_| data(0, b"xxx"));
    assert!(run([file("a", 5)].into_iter().chain(again).collect()).is_err());
    let many = ["a", "b", "c", "d"].map(|path| file(path, 0)).to_vec();
    assert!(matches!(run(many), Err(Error::TooMuch { what: "files", .. })));
    let removals = vec![remove("a"); 4];
    assert!(matches!(run(removals), Err(Error::TooMuch { what: "files", .. })));
    let large = Record::Data { offset: 0, bytes: vec![1; CHUNK + 1].into() };
    let result = yard.run(Limits::default(), vec![file("a", 10_000_000), large]);
    assert!(matches!(result, Err(Error::Refused { .. })));
}

#[test]
fn kinds_replace_each_other() {
    let yard = Yard::new();
    let run = |records| yard.run(Limits::default(), records).unwrap();
    fs::create_dir_all(yard.root().join("x/deep/er")).unwrap();
    run(vec![file("x", 2), data(0, b"hi")]);
    assert_eq!(fs::read(yard.root().join("x")).unwrap(), b"hi");
    run(vec![entry("x", Kind::Directory { replace: false }), file("x/y", 0)]);
    // The mode of the test's metadata has no x for the owner; root alone sees through it.
    run(vec![entry("x", Kind::Directory { replace: true })]);
    assert_eq!(fs::read_dir(yard.root().join("x")).unwrap().count(), 0);
    run(vec![symlink_to("x", "gone")]);
    assert!(fs::symlink_metadata(yard.root().join("x")).unwrap().is_symlink());
    run(vec![remove("x"), remove("x"), remove("x/y/z")]);
    assert!(fs::symlink_metadata(yard.root().join("x")).is_err());
}
