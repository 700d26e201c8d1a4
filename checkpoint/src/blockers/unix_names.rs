//! Unix sockets whose files have other names than the sockets were bound to.
//!
//! The kernel keeps the name of bind(2) for good, and CRIU makes the file under that name. A file that was
//! renamed since, or has a second name, would be gone.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;

use super::findings::Found;
use super::inode_names::{Search, Wanted};
use crate::unix_diag;

/// What became of the file of a bound socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has another name as well.
    Linked,
    /// It is not where it was.
    Elsewhere,
}

/// Sockets whose files are not just where they were bound, by name and inode.
#[derive(Debug)]
pub(super) struct Bound(BTreeMap<(PathBuf, u32), State>);

impl Bound {
    /// Reads the sockets of a container by its first process, and has the files searched that are elsewhere.
    pub(super) fn read(pid: i32, search: &mut Search) -> Self {
        let root = File::open(format!("/proc/{pid}/root"));
        let mut all = BTreeMap::new();
        for socket in unix_diag::list_of(pid).unwrap_or_default() {
            let (Some(name), Some(inode), Ok(root)) = (&socket.name, socket.file, &root) else {
                continue;
            };
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            let path = PathBuf::from(OsStr::from_bytes(&name[..end]));
            let state = match file(root, &path) {
                Some((found, 1)) if found as u32 == inode => continue,
                Some((found, _)) if found as u32 == inode => State::Linked,
                _ => State::Elsewhere,
            };
            if state == State::Elsewhere {
                search.want(Wanted::Socket(inode));
            }
            all.insert((path, inode), state);
        }
        Self(all)
    }

    /// Names the sockets whose files are there under other names.
    pub(super) fn check(&self, search: &Search, found: &mut Found<'_>) {
        for ((path, inode), state) in &self.0 {
            let shown = path.display();
            let what = match (state, search.name(Wanted::Socket(*inode))) {
                (State::Linked, _) => {
                    format!("has a unix socket with another name beside {shown}")
                }
                // A relative name is one below the working directory.
                (_, Some(now)) if now == path || (path.is_relative() && now.ends_with(path)) => {
                    continue;
                }
                (_, Some(now)) => {
                    format!("has the unix socket {}, which was bound to {shown}", now.display())
                }
                // Nobody can connect to it, here as there.
                (_, None) => continue,
            };
            let advice = "only the name that it was bound to would be there after the move: have the program \
                          bind its socket to the final name";
            found.add_general("unix-socket-name", what, advice);
        }
    }
}

/// Inode and number of names of a file in the container; links in it lead nowhere else.
fn file(root: &File, path: &Path) -> Option<(u64, u64)> {
    if path.is_relative() {
        return None;
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = openat2(root.as_fd(), path, how).ok()?;
    let stat = fstat(&file).ok()?;
    Some((stat.st_ino, stat.st_nlink))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo::Mounts;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_renamed_socket_is_named_and_one_at_its_place_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let [kept, renamed, linked] =
            ["kept", "renamed", "linked"].map(|name| UnixListener::bind(dir.path().join(name)));
        std::fs::rename(dir.path().join("renamed"), dir.path().join("now")).unwrap();
        std::fs::hard_link(dir.path().join("linked"), dir.path().join("second")).unwrap();
        let mut search = Search::new(own, &Mounts::of_process(own));
        let bound = Bound::read(own, &mut search);
        let of = |name: &str| {
            let of_name = |((path, _), state): (&(PathBuf, u32), &State)| {
                path.ends_with(name).then_some(*state)
            };
            bound.0.iter().filter(|((path, _), _)| path.starts_with(dir.path())).find_map(of_name)
        };
        assert_eq!(of("kept"), None);
        assert_eq!(of("renamed"), Some(State::Elsewhere));
        assert_eq!(of("linked"), Some(State::Linked));
        drop((kept, renamed, linked));
    }
}
