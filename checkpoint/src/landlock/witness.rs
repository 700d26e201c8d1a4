//! A task that a container's thread is made to look at: a process that has ended and is not waited for.
//!
//! It is in the container's PID namespace, or the thread could not name it, and has the thread's user and group and AppArmor profile,
//! or the kernel would forbid the look for that reason (`__ptrace_may_access`, kernel/ptrace.c). It gives the container nothing:
//!
//! * It lives for some 100 µs, without any capability, in the container's own namespaces and root directory. It has no
//!   memory, no descriptors and no directories once it has ended.
//! * Its parent has gone to all these places before, and has nothing of the agent's. It is in no PID namespace of the container's.
//! * Its program is mounted for nobody, and for reading only, so nobody can write to it by `/proc/PID/exe`.
//! * When the process that makes the attempts dies, the parent ends, and the host's first process takes its child.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pipe2, setgroups, setresgid, setresuid};

use super::attempts::KCMP_VM;
use crate::pidfd::PidFd;
use crate::procfs;

/// What decides, beside a domain, whether a thread may look at another task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its real user and group.
    ids: [u32; 2],
    /// Its profile of AppArmor, if that is in use.
    profile: Option<String>,
}

impl Identity {
    /// Returns that of a thread.
    pub(super) fn of(process: i32, thread: i32) -> io::Result<Self> {
        let directory = format!("/proc/{process}/task/{thread}");
        let status = fs::read_to_string(format!("{directory}/status"))?;
        let id = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        };
        let (Some(user), Some(group)) = (id("Uid:"), id("Gid:")) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(Self { ids: [user, group], profile: profile(&directory) })
    }
}

/// Returns the profile of AppArmor of a task, by its directory in `/proc`.
fn profile(directory: &str) -> Option<String> {
    // Other modules write other things into the older of the two.
    let names = ["attr/apparmor/current", "attr/current"];
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").ok()?;
    if !enabled.starts_with('Y') {
        return None;
    }
    let read = |name| fs::read_to_string(format!("{directory}/{name}")).ok();
    let label = names.into_iter().find_map(read)?;
    // `name (mode)`, or `unconfined`.
    let label = label.trim_end_matches(['\n', '\0']);
    Some(label.rsplit_once(" (").map_or(label, |(name, _)| name).to_owned())
}

/// Puts this thread under a profile of AppArmor (`aa_change_profile`, libapparmor).
fn change_profile(name: &str) -> io::Result<()> {
    let order = format!("changeprofile {name}");
    let write = |attribute: &str| {
        fs::write(format!("/proc/thread-self/attr/{attribute}"), order.as_bytes())
    };
    write("apparmor/current").or_else(|_| write("current"))
}

/// The witness. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Witness {
    /// Its number in the container's PID namespace.
    pub(super) inner: i32,
    /// Whether a process with the same identity and without capabilities may look at it.
    pub(super) is_open: bool,
    parent: Pid,
    /// The parent waits for its end.
    end: Option<OwnedFd>,
}

impl Witness {
    /// Starts one that is open to tasks of this identity. `first` is the container's first process. The calling process has one
    /// thread.
    pub(super) fn start(first: i32, identity: &Identity) -> io::Result<Self> {
        let container = PidFd::open(first)?;
        let (answer, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (wait, end) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: this process has one thread, so the child may do what it may do.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((answer, end));
                let _ = be_parent(&container, identity, tell, wait);
                // SAFETY: _exit(2) ends this process; nothing of what the other one has is to be tidied up.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop((tell, wait));
                let mut it = Self { inner: 0, is_open: false, parent: child, end: Some(end) };
                let mut told = [0; 5];
                fs::File::from(answer).read_exact(&mut told)?;
                let [a, b, c, d, is_open] = told;
                let number = i32::from_ne_bytes([a, b, c, d]);
                it.inner = procfs::inner_pid(number).ok_or(io::ErrorKind::NotFound)?;
                it.is_open = is_open == 1;
                Ok(it)
            }
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = waitpid(self.parent, None);
    }
}

/// Becomes like a thread of the container, makes the witness, and waits.
fn be_parent(
    container: &PidFd,
    identity: &Identity,
    tell: OwnedFd,
    wait: OwnedFd,
) -> io::Result<()> {
    // What is wrong with it shows in the attempt that is made here.
    if let Some(name) = &identity.profile
        && profile("/proc/thread-self").as_ref() != Some(name)
    {
        let _ = change_profile(name);
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(container, namespaces)?;
    setgroups(&[])?;
    let [user, group] = identity.ids;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    drop_capabilities()?;
    nix::sys::prctl::set_dumpable(false)?;
    // SAFETY: this process has one thread; the child makes two calls of the kernel.
    let witness = match unsafe { fork() }? {
        ForkResult::Child => {
            // Since Linux 6.18 a task that has ended counts as it was last. Nobody can do anything with it in between.
            let _ = nix::sys::prctl::set_dumpable(true);
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    waitid(Id::Pid(witness), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let is_open = compare(witness).is_ok();
    let mut told = witness.as_raw().to_ne_bytes().to_vec();
    told.push(u8::from(is_open));
    fs::File::from(tell).write_all(&told)?;
    // Until the other end is closed.
    let _ = fs::File::from(wait).read(&mut [0]);
    waitpid(witness, None)?;
    Ok(())
}

/// Makes the call that the threads are to make.
fn compare(with: Pid) -> nix::Result<()> {
    let number = with.as_raw();
    // SAFETY: kcmp(2) takes numbers alone.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, number, number, KCMP_VM, 0_u64, 0_u64) };
    Errno::result(result).map(drop)
}

/// Gives up all capabilities (capset(2)).
fn drop_capabilities() -> nix::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let none = [0_u32; 6];
    // SAFETY: the header is two numbers, and the sets of this version are six; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Opens a program for execve(2) that nobody can write to by way of `/proc/PID/exe`: in a mount of its own, for reading alone, that
/// is mounted nowhere (open_tree(2), mount_setattr(2), Linux 5.12).
pub(super) fn unwritable(program: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    /// `OPEN_TREE_CLONE` and `OPEN_TREE_CLOEXEC` (linux/mount.h).
    const CLONE: libc::c_uint = 1 | libc::O_CLOEXEC as libc::c_uint;
    let path = std::ffi::CString::new(program.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a zero and outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), CLONE) };
    let tree = match i32::try_from(tree) {
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(tree @ 0..) => unsafe { OwnedFd::from_raw_fd(tree) },
        _ => return Err(io::Error::last_os_error()),
    };
    // `struct mount_attr`: what is set, what is cleared, propagation, a user namespace.
    let attributes: [u64; 4] = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
    // SAFETY: the path is empty and ends with a zero; the attributes are as long as is said, and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    Errno::result(result)?;
    Ok(tree)
}
