//! Processes in nested namespaces, under a tracer, or with settings that differ from the defaults.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, unshare};

use super::{Held, Setup, check, held};

pub(super) const ALL: &[(&str, Setup)] = &[
    ("user-namespace", || apart(CloneFlags::CLONE_NEWUSER)),
    ("mount-namespace", || apart(CloneFlags::CLONE_NEWNS)),
    ("network-namespace", || apart(CloneFlags::CLONE_NEWNET)),
    ("ipc-namespace", || apart(CloneFlags::CLONE_NEWIPC)),
    ("uts-namespace", || apart(CloneFlags::CLONE_NEWUTS)),
    ("cgroup-namespace", || apart(CloneFlags::CLONE_NEWCGROUP)),
    ("pid-namespace", || apart(CloneFlags::CLONE_NEWPID)),
    ("time-namespace", || apart(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))),
    ("traced", traced),
    ("settings", settings),
    ("zombie", zombie),
];

/// Has a child in a new namespace.
fn apart(flag: CloneFlags) -> io::Result<Held> {
    if flag == CloneFlags::CLONE_NEWPID || flag.bits() == libc::CLONE_NEWTIME {
        // These namespaces apply to later children.
        unshare(flag)?;
        return held(sleeping(|| Ok(()))?);
    }
    held(sleeping(move || Ok(unshare(flag)?))?)
}

/// Starts a child that sleeps, after it has run `before`.
fn sleeping(before: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> io::Result<Child> {
    let mut command = Command::new("/bin/sleep");
    command.arg("100000");
    // SAFETY: between fork and exec the child makes system calls alone.
    unsafe { command.pre_exec(before) }.spawn()
}

/// Traces a child.
fn traced() -> io::Result<Held> {
    let child = sleeping(|| Ok(()))?;
    let (none, seize) = (std::ptr::null_mut::<libc::c_void>(), libc::PTRACE_SEIZE);
    // SAFETY: PTRACE_SEIZE takes a process and no address (ptrace(2)).
    check(unsafe { libc::ptrace(seize, child.id(), none, none) })?;
    held(child)
}

/// Has a zombie child.
fn zombie() -> io::Result<Held> {
    held(Command::new("/bin/true").spawn()?)
}

/// The file to which [`settings`] writes the settings of its thread.
const FILE: &str = "/run/settings";

/// Has a thread with its own CPU affinity, I/O priority, timer slack and core dump filter. The thread writes them to
/// [`FILE`] again and again.
fn settings() -> io::Result<Held> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let work = move || -> io::Result<()> {
        set_settings()?;
        loop {
            fs::write("/run/settings.new", present_settings()?)?;
            fs::rename("/run/settings.new", FILE)?;
            let _ = sender.send(());
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    };
    std::thread::Builder::new().spawn(work)?;
    receiver.recv().map_err(io::Error::other)?;
    held(())
}

fn set_settings() -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(0)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    // Best effort, level 7 (ioprio_set(2)).
    // SAFETY: the call takes numbers alone.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, (2 << 13) | 7) })?;
    fs::write("/proc/self/coredump_filter", "0x1")?;
    Ok(nix::sys::prctl::set_timerslack(12_345)?)
}

fn present_settings() -> io::Result<String> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let is_set = |one: &usize| set.is_set(*one) == Ok(true);
    let processors: Vec<usize> = (0..64).filter(is_set).collect();
    // SAFETY: the call takes numbers alone.
    let priority = check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) })?;
    let filter = fs::read_to_string("/proc/self/coredump_filter")?;
    let slack = nix::sys::prctl::get_timerslack()?;
    Ok(format!("{processors:?} {priority} {} {slack}", filter.trim()))
}
