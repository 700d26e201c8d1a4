//! One pass over a tree.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};

use super::entry::{self, Marks};
use super::{Node, Stamp, Tasks, What};
use crate::tree::beneath;
use crate::tree::relative_path::DEPTH;
use crate::tree::transfer_record::Xattr;
use crate::tree::{Error, Kind, Record, Stats, io_error};

/// Two changes within one tick of the clock bear the same time (10 ms at 100 Hz; kernels from
/// 6.13 on do better on some file systems).
const TICK: Duration = Duration::from_millis(20);

/// The directory in which an entry is looked up.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) names: BorrowedFd<'a>,
    /// `names` belongs to an upper directory.
    pub(super) upper: bool,
    /// `names` is a directory with whiteouts that are marked files.
    pub(super) marked_whiteouts: bool,
    pub(super) depth: usize,
}

/// What is known of an entry when its turn comes.
pub(super) struct Seen {
    pub(super) stat: FileStat,
    /// Whether a change after this look could go unseen.
    pub(super) unsure: bool,
    /// The same file at the last pass.
    pub(super) old: Option<Node>,
    /// It has not changed since.
    pub(super) same: bool,
}

/// The state of a pass.
pub(super) struct Walk<'a> {
    shown: &'a Path,
    /// The root of the mounted overlay.
    pub(super) merged: Option<BorrowedFd<'a>>,
    pub(super) compare_content: bool,
    pub(super) tasks: Tasks,
    pub(super) sink: &'a mut dyn FnMut(Record) -> Result<(), Error>,
    pub(super) stats: Stats,
    /// Path of the entry at hand, below the root.
    pub(super) path: Vec<u8>,
    /// First path of each file with several names.
    pub(super) links: HashMap<(u64, u64), Bytes>,
    pub(super) buffer: BytesMut,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        shown: &'a Path,
        merged: Option<BorrowedFd<'a>>,
        compare_content: bool,
        tasks: Tasks,
        sink: &'a mut dyn FnMut(Record) -> Result<(), Error>,
    ) -> Self {
        Self {
            shown,
            merged,
            compare_content,
            tasks,
            sink,
            stats: Stats::default(),
            path: Vec::new(),
            links: HashMap::new(),
            buffer: BytesMut::new(),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats
    }

    /// Walks the whole tree.
    pub(super) fn root(&mut self, names: BorrowedFd<'_>, old: Option<Node>) -> Result<Node, Error> {
        let stat = fstat(names).map_err(self.fail("look at"))?;
        let (stamp, unsure) = (Stamp::of(&stat), self.is_unsure(&stat));
        let (xattrs, marks) = entry::xattrs(names, OsStr::new(""), &self.at())?;
        let (known, same) = match old {
            Some(Node { stamp: before, unsure, what: What::Directory(known, _) }) => {
                (known, before == stamp && !unsure)
            }
            _ => (BTreeMap::new(), false),
        };
        if !same {
            self.emit(&stat, xattrs, Kind::Directory { replace: false })?;
        }
        let upper = self.merged.is_some();
        let marked_whiteouts = marks.marked_whiteouts;
        let place = Place { names, upper, marked_whiteouts, depth: 0 };
        let entries = self.directory(place, known, same)?;
        Ok(Node { stamp, unsure, what: What::Directory(entries, marks) })
    }

    /// Walks the entries of a directory. `same`: its own stamp is as it was, so it has the same
    /// names as before and need not be read.
    fn directory(
        &mut self,
        place: Place<'_>,
        mut known: BTreeMap<OsString, Node>,
        same: bool,
    ) -> Result<BTreeMap<OsString, Node>, Error> {
        if same {
            // Most of a large tree, most of the time: nothing moves but what changed.
            let mut changed = Vec::new();
            for (name, node) in &known {
                if !self.is_unchanged(place.names, name, node)? {
                    changed.push(name.clone());
                }
            }
            for name in changed {
                let old = known.remove(&name);
                if let Some(node) = self.named(place, &name, old)? {
                    known.insert(name, node);
                }
            }
            return Ok(known);
        }
        let mut entries = BTreeMap::new();
        for name in self.names(place.names)? {
            let old = known.remove(&name);
            if let Some(node) = self.named(place, &name, old)? {
                entries.insert(name, node);
            }
        }
        for (name, node) in known {
            // A whiteout that is gone: its directory was replaced, and told so.
            if !matches!(node.what, What::Whiteout) {
                let length = self.enter(&name);
                self.remove_current()?;
                self.path.truncate(length);
            }
        }
        Ok(entries)
    }

    /// Whether one look is enough to know that nothing is to be done. Directories have entries,
    /// and files with several names have to be known by the first.
    fn is_unchanged(&self, dir: BorrowedFd<'_>, name: &OsStr, node: &Node) -> Result<bool, Error> {
        let content = self.compare_content && matches!(node.what, What::File(_));
        if node.unsure || content || matches!(node.what, What::Directory(..)) {
            return Ok(false);
        }
        let stat = self.stat(dir, name)?;
        Ok(stat.is_some_and(|stat| stat.st_nlink == 1 && Stamp::of(&stat) == node.stamp))
    }

    /// [`Walk::entry`] with the path set.
    fn named(
        &mut self,
        place: Place<'_>,
        name: &OsStr,
        old: Option<Node>,
    ) -> Result<Option<Node>, Error> {
        let length = self.enter(name);
        let node = self.entry(place, name, old)?;
        self.path.truncate(length);
        Ok(node)
    }

    /// Adds a name to the path and returns what to cut it to afterwards.
    fn enter(&mut self, name: &OsStr) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
        length
    }

    /// Looks at one entry, sends it if it changed, goes below. `None` when it is gone or of a
    /// kind that is not carried.
    fn entry(
        &mut self,
        place: Place<'_>,
        name: &OsStr,
        old: Option<Node>,
    ) -> Result<Option<Node>, Error> {
        let Some(stat) = self.stat(place.names, name)? else {
            if old.is_some() {
                self.remove_current()?;
            }
            return Ok(None);
        };
        let stamp = Stamp::of(&stat);
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let same = old.as_ref().is_some_and(|old| old.stamp == stamp && !old.unsure);
        let unsure = self.is_unsure(&stat);
        if place.upper && kind == SFlag::S_IFCHR && stat.st_rdev == 0 {
            return self.whiteout(stamp, old.as_ref()).map(Some);
        }
        // What had this name was another file: nothing of it counts.
        let (old, replaced) = match old {
            Some(old) if old.stamp.same_file(&stamp) && !matches!(old.what, What::Whiteout) => {
                (Some(old), false)
            }
            Some(Node { what: What::Whiteout, .. }) | None => (None, false),
            Some(_) => (None, true),
        };
        let seen = Seen { stat, unsure, old, same };
        let what = match kind {
            SFlag::S_IFDIR => return self.subdirectory(place, name, seen, replaced),
            SFlag::S_IFREG => return self.file(place, name, seen),
            SFlag::S_IFLNK => {
                if !same {
                    let Ok(target) = readlinkat(place.names, name) else { return Ok(None) };
                    let target = Bytes::from(target.into_vec());
                    self.emit(&stat, Vec::new(), Kind::Symlink { target })?;
                }
                What::Other
            }
            SFlag::S_IFIFO | SFlag::S_IFSOCK | SFlag::S_IFCHR | SFlag::S_IFBLK => {
                if !same {
                    let kind = match kind {
                        SFlag::S_IFIFO => Kind::Fifo,
                        SFlag::S_IFSOCK => Kind::Socket,
                        kind => Kind::Device {
                            block: kind == SFlag::S_IFBLK,
                            major: u32::try_from(major(stat.st_rdev)).unwrap_or(u32::MAX),
                            minor: u32::try_from(minor(stat.st_rdev)).unwrap_or(u32::MAX),
                        },
                    };
                    self.emit(&stat, Vec::new(), kind)?;
                }
                What::Other
            }
            _ => return Ok(None),
        };
        Ok(Some(Node { stamp, unsure, what }))
    }

    /// Overlayfs gives all whiteouts one inode, whose stamp changes with each new link.
    pub(super) fn whiteout(&mut self, stamp: Stamp, old: Option<&Node>) -> Result<Node, Error> {
        if !matches!(old, Some(Node { what: What::Whiteout, .. })) {
            self.remove_current()?;
        }
        Ok(Node { stamp, unsure: false, what: What::Whiteout })
    }

    fn subdirectory(
        &mut self,
        place: Place<'_>,
        name: &OsStr,
        seen: Seen,
        replaced: bool,
    ) -> Result<Option<Node>, Error> {
        let Seen { stat, unsure, old, same } = seen;
        if place.depth >= DEPTH {
            return Err(Error::TooMuch { what: "depth of directories", limit: DEPTH as u64 });
        }
        let opened = entry::open_directory(place.names, name).map_err(self.fail("open"))?;
        let Some(mut names) = opened else { return Ok(None) };
        let is_new = old.is_none();
        let (known, mut marks) = match old {
            Some(Node { what: What::Directory(known, marks), .. }) => (known, marks),
            _ => (BTreeMap::new(), Marks::default()),
        };
        if !same {
            let (xattrs, found) = entry::xattrs(place.names, name, &self.at())?;
            marks = if place.upper { found } else { Marks::default() };
            // Removed and made anew, or hiding a directory of the image.
            let replace = is_new && (replaced || marks.opaque || marks.redirect);
            self.emit(&stat, xattrs, Kind::Directory { replace })?;
        }
        let mut upper = place.upper;
        if let Some(merged) = self.merged.filter(|_| marks.redirect) {
            // A renamed directory has its content elsewhere: take the mounted one as it is.
            let path = Path::new(OsStr::from_bytes(&self.path));
            match beneath::open_directory(merged, path) {
                Ok(whole) => (names, upper) = (whole, false),
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
                Err(e) => return Err(self.fail("open")(e)),
            }
        }
        let below = Place {
            names: names.as_fd(),
            upper,
            marked_whiteouts: marks.marked_whiteouts,
            depth: place.depth + 1,
        };
        // A renamed directory's own stamp says nothing about what is merged below it.
        let entries = self.directory(below, known, same && !marks.redirect)?;
        Ok(Some(Node { stamp: Stamp::of(&stat), unsure, what: What::Directory(entries, marks) }))
    }

    /// Whether a later change may bear the same time as this one.
    pub(super) fn is_unsure(&self, stat: &FileStat) -> bool {
        if self.tasks == Tasks::Frozen {
            return false;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(
            u64::try_from(stat.st_ctime).unwrap_or(0),
            u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
        );
        changed + TICK > now
    }

    pub(super) fn emit(
        &mut self,
        stat: &FileStat,
        xattrs: Vec<Xattr>,
        kind: Kind,
    ) -> Result<(), Error> {
        self.stats.entries += 1;
        let path = Bytes::copy_from_slice(&self.path);
        (self.sink)(Record::Entry { path, meta: entry::meta(stat, xattrs), kind })
    }

    fn remove_current(&mut self) -> Result<(), Error> {
        self.remove(Bytes::copy_from_slice(&self.path))
    }

    fn remove(&mut self, path: Bytes) -> Result<(), Error> {
        self.stats.removed += 1;
        (self.sink)(Record::Remove { path })
    }

    /// The names in a directory, sorted.
    fn names(&self, dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(dir, c".", flags, Mode::empty()).map_err(self.fail("read"))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(self.fail("read"))?;
            names.extend(entry::name_of(entry.file_name()).map(OsStr::to_os_string));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileStat>, Error> {
        match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(None),
            Err(e) => Err(self.fail("look at")(e)),
        }
    }

    /// The entry at hand, for messages.
    pub(super) fn at(&self) -> PathBuf {
        self.shown.join(OsStr::from_bytes(&self.path))
    }

    pub(super) fn fail(&self, action: &'static str) -> impl FnOnce(Errno) -> Error + use<> {
        io_error(action, self.at())
    }
}
