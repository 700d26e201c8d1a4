//! From one mounted overlay to another with the same lower directory. Needs root.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// An overlay on a lower directory of its own copy.
struct Overlay {
    dir: tempfile::TempDir,
}

impl Overlay {
    /// `None`, and says so, where overlays cannot be mounted.
    fn new(options: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        let dir = on_disk();
        let path = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(path(name)).unwrap();
        }
        let lower = path("lower");
        fs::create_dir_all(lower.join("etc/conf.d/sub")).unwrap();
        fs::create_dir_all(lower.join("var/log")).unwrap();
        fs::create_dir_all(lower.join("opt/tree/a")).unwrap();
        for name in ["etc/keep", "etc/gone", "etc/conf.d/1", "etc/conf.d/sub/2", "opt/tree/a/b"] {
            fs::write(lower.join(name), name).unwrap();
        }
        fs::write(lower.join("var/log/app"), "line 0\n").unwrap();
        let text = format!(
            "lowerdir={},upperdir={},workdir={}{options}",
            lower.display(),
            path("upper").display(),
            path("work").display()
        );
        let merged = path("merged");
        let mounted =
            mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(text.as_str()));
        if let Err(e) = mounted {
            println!("skipped: no overlay with {text}: {e}");
            return None;
        }
        Some(Self { dir })
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    fn merged(&self) -> PathBuf {
        self.dir.path().join("merged")
    }

    fn source(&self) -> Source {
        Source::overlay(&self.upper(), &self.merged()).unwrap()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.merged(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Names and content alone: unchanged files of the two lower directories differ in time.
fn contents(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    shape(root).into_iter().map(|(path, s)| (path, (s.0, s.5))).collect()
}

#[test]
fn removals_replacements_and_appends_arrive() {
    let (Some(from), Some(to)) = (Overlay::new(""), Overlay::new("")) else { return };
    let m = from.merged();
    fs::remove_file(m.join("etc/gone")).unwrap();
    fs::remove_dir_all(m.join("etc/conf.d")).unwrap();
    fs::create_dir(m.join("etc/conf.d")).unwrap();
    fs::write(m.join("etc/conf.d/new"), "new").unwrap();
    fs::write(m.join("var/log/app"), "line 0\nline 1\n").unwrap();
    populate(&m);
    settle();
    let source = from.source();
    let (snapshot, stats) = carry(&source, None, Tasks::Running, &to.merged());
    assert!(stats.removed >= 1, "{stats:?}");
    assert_eq!(contents(&m), contents(&to.merged()));
    assert!(!to.merged().join("etc/conf.d/1").exists(), "an opaque directory hides the image's");

    let (snapshot, stats) = carry(&source, Some(snapshot), Tasks::Running, &to.merged());
    assert_eq!(stats, Stats::default());

    let log = fs::OpenOptions::new().append(true).open(m.join("var/log/app")).unwrap();
    std::io::Write::write_all(&mut &log, b"line 2\n").unwrap();
    fs::remove_file(m.join("etc/keep")).unwrap();
    fs::remove_dir_all(m.join("opt/tree")).unwrap();
    fs::remove_file(m.join("d/pipe")).unwrap();
    let (snapshot, stats) = carry(&source, Some(snapshot), Tasks::Frozen, &to.merged());
    assert_eq!(contents(&m), contents(&to.merged()));
    assert!(stats.bytes < 100, "{stats:?}");
    // A name of the image comes back, as something else.
    fs::create_dir(m.join("etc/keep")).unwrap();
    fs::write(m.join("etc/keep/in"), "in").unwrap();
    fs::write(m.join("opt/tree"), "file").unwrap();
    carry(&source, Some(snapshot), Tasks::Frozen, &to.merged());
    assert_eq!(contents(&m), contents(&to.merged()));
    // Attributes of what is in the upper directory arrive to the nanosecond.
    for name in ["big", "d/file", "d/tool", "d/e", "d/e/f", "etc/keep", "var/log/app"] {
        let (a, b) = (shape(&m), shape(&to.merged()));
        assert_eq!(a[Path::new(name)], b[Path::new(name)], "{name}");
    }
}

#[test]
fn files_that_are_in_upper_but_in_part_are_read_through_the_mount() {
    let options = ",metacopy=on,redirect_dir=on";
    let (Some(from), Some(to)) = (Overlay::new(options), Overlay::new("")) else { return };
    let m = from.merged();
    fs::set_permissions(m.join("etc/keep"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(m.join("opt/tree"), m.join("opt/renamed")).unwrap();
    settle();
    let marked = xattr::get(from.upper().join("etc/keep"), "trusted.overlay.metacopy").unwrap();
    let renamed = xattr::get(from.upper().join("opt/renamed"), "trusted.overlay.redirect").unwrap();
    assert!(marked.is_some() && renamed.is_some(), "the kernel did not do what is tested here");
    let source = from.source();
    let (snapshot, _) = carry(&source, None, Tasks::Running, &to.merged());
    assert_eq!(contents(&m), contents(&to.merged()));
    fs::write(m.join("opt/renamed/a/b"), "changed").unwrap();
    fs::write(m.join("etc/keep"), "changed too").unwrap();
    carry(&source, Some(snapshot), Tasks::Frozen, &to.merged());
    assert_eq!(contents(&m), contents(&to.merged()));
}

#[test]
fn capabilities_and_owners_arrive() {
    let (Some(from), Some(to)) = (Overlay::new(""), Overlay::new("")) else { return };
    let tool = from.merged().join("tool");
    fs::write(&tool, "x").unwrap();
    std::os::unix::fs::chown(&tool, Some(1234), Some(5_000_000)).unwrap();
    fs::set_permissions(&tool, PermissionsExt::from_mode(0o6711)).unwrap();
    // cap_net_raw=ep, as setcap writes it (struct vfs_cap_data, revision 2).
    let cap = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(&tool, "security.capability", &cap).unwrap();
    carry(&from.source(), None, Tasks::Running, &to.merged());
    let (a, b) = (shape(&from.merged()), shape(&to.merged()));
    assert_eq!(a[Path::new("tool")], b[Path::new("tool")]);
    assert_eq!(b[Path::new("tool")].6.len(), 1);
    // And are taken away again: writing clears them.
    settle();
    fs::write(&tool, "y").unwrap();
    carry(&from.source(), None, Tasks::Frozen, &to.merged());
    assert!(shape(&to.merged())[Path::new("tool")].6.is_empty());
}
