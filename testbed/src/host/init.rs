//! Process 1 of a host, and the process that holds the switch's network namespace. Both are this program, executed
//! again with a hidden first argument, since a program with threads cannot set up namespaces after a fork.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::waitpid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result, chain};
use crate::lab::cgroup;

/// The first argument of a process 1.
pub(crate) const HOST_ARGUMENT: &str = "host-init";
/// The first argument of the holder of a switch.
pub(crate) const SWITCH_ARGUMENT: &str = "switch-init";
/// What either process prints when it is ready.
pub(crate) const READY: &str = "ready";
/// The child of a host's cgroup in which all its processes start. If the root of the cgroup namespace had processes,
/// crun would try for seconds to enable controllers there.
pub(crate) const LEAF: &str = "init";

/// systemd, in the host's root file system.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// The character devices of a host: name, major and minor number.
const DEVICES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("fuse", 10, 229),
    ("net/tun", 10, 200),
];

/// The settings of a process 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InitPlan {
    /// The host name.
    pub(crate) name: String,
    /// The cgroup of the host, with the child [`LEAF`].
    pub(crate) cgroup: PathBuf,
    /// The directory where the root is mounted.
    pub(crate) root: PathBuf,
    /// The root file system below the overlay.
    pub(crate) lower: PathBuf,
    /// The overlay's changes.
    pub(crate) upper: PathBuf,
    /// The overlay's scratch directory.
    pub(crate) work: PathBuf,
    /// The directories of this machine that the host sees, and where it sees them.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
    /// Whether process 1 is systemd.
    pub(crate) systemd: bool,
}

/// Becomes a process 1 or the holder of a switch if the arguments say so. Every program that starts a lab calls this
/// at the beginning of `main` and exits with the returned code.
pub fn become_init_if_asked() -> Option<ExitCode> {
    let role = std::env::args_os().nth(1)?;
    let outcome = if role == HOST_ARGUMENT {
        read_plan().and_then(|plan| run_host(&plan))
    } else if role == SWITCH_ARGUMENT {
        read_plan().and_then(|cgroup| run_switch(Path::new(OsStr::from_bytes(&cgroup))))
    } else {
        return None;
    };
    if let Err(error) = outcome {
        eprintln!("{}", chain(&error));
    }
    Some(ExitCode::FAILURE)
}

/// Reads the plan from standard input.
fn read_plan() -> Result<Vec<u8>> {
    let mut plan = Vec::new();
    io::stdin().read_to_end(&mut plan).context(|| "reading the plan of a process 1")?;
    Ok(plan)
}

fn run_host(plan: &[u8]) -> Result<()> {
    let plan: InitPlan = serde_json::from_slice(plan)
        .map_err(io::Error::from)
        .context(|| "reading the plan of a host")?;
    // Without this the parent of a zombie could miss the signal between its check and its wait.
    block_child_signal()?;
    separate(&plan)?;
    assemble(&plan)?;
    enter(&plan.root)?;
    forward()?;
    say_ready()?;
    if plan.systemd { Err(become_systemd()) } else { reap() }
}

fn run_switch(cgroup: &Path) -> Result<()> {
    join_cgroup(cgroup)?;
    block_child_signal()?;
    unshare(CloneFlags::CLONE_NEWNET).context(|| "creating a network namespace")?;
    say_ready()?;
    reap()
}

fn say_ready() -> Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush()).context(|| "reporting readiness")
}

fn join_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .context(|| format!("joining the cgroup {}", cgroup.display()))
}

/// Creates the namespaces. The root of the cgroup namespace is the cgroup of the process at that time. The process
/// moves to the leaf afterwards.
fn separate(plan: &InitPlan) -> Result<()> {
    join_cgroup(&plan.cgroup)?;
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(all).context(|| "creating namespaces")?;
    // systemd takes the cgroup in which it starts as its root.
    if !plan.systemd {
        join_cgroup(&plan.cgroup.join(LEAF))?;
        cgroup::delegate(&plan.cgroup)?;
    }
    nix::unistd::setsid().context(|| "creating a session")?;
    nix::unistd::sethostname(&plan.name).context(|| "setting the host name")
}

/// Mounts everything below the new root.
fn assemble(plan: &InitPlan) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context(|| "making the mounts private")?;
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        plan.lower.display(),
        plan.upper.display(),
        plan.work.display()
    );
    let root = &plan.root;
    attach("overlay", "overlay", root, MsFlags::empty(), &layers)?;

    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("proc", "proc", &root.join("proc"), quiet, "")?;
    attach("sysfs", "sysfs", &root.join("sys"), quiet, "")?;
    attach("cgroup2", "cgroup2", &root.join("sys/fs/cgroup"), quiet, "")?;
    attach("tmpfs", "tmpfs", &root.join("run"), MsFlags::MS_NOSUID, "mode=755")?;
    attach("tmpfs", "tmpfs", &root.join("tmp"), MsFlags::MS_NOSUID, "mode=1777")?;
    devices(&root.join("dev"))?;
    for (from, to) in &plan.binds {
        let to = root.join(to.strip_prefix("/").unwrap_or(to));
        fs::create_dir_all(&to).context(|| format!("creating {}", to.display()))?;
        mount(Some(from), &to, none, MsFlags::MS_BIND, none)
            .context(|| format!("binding {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn devices(dev: &Path) -> Result<()> {
    attach("tmpfs", "tmpfs", dev, MsFlags::MS_NOSUID, "mode=755")?;
    for directory in ["net", "pts", "shm", "mqueue"] {
        let path = dev.join(directory);
        fs::create_dir(&path).context(|| format!("creating {}", path.display()))?;
    }
    let previous = nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(*major, *minor))
            .context(|| format!("creating the device {}", path.display()))?;
    }
    nix::sys::stat::umask(previous);
    let terminals = "newinstance,ptmxmode=0666,mode=620,gid=5";
    let careful = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    attach("devpts", "devpts", &dev.join("pts"), careful, terminals)?;
    attach("tmpfs", "tmpfs", &dev.join("shm"), MsFlags::MS_NOSUID, "mode=1777")?;
    attach("mqueue", "mqueue", &dev.join("mqueue"), careful, "")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name)).context(|| format!("linking {name} in /dev"))?;
    }
    Ok(())
}

fn attach(source: &str, kind: &str, at: &Path, flags: MsFlags, data: &str) -> Result<()> {
    let data = (!data.is_empty()).then_some(data);
    mount(Some(source), at, Some(kind), flags, data)
        .context(|| format!("mounting {kind} on {}", at.display()))
}

/// Changes the root to `root`. chroot(2) would not suffice: CRIU refuses a mount tree whose root it cannot find.
fn enter(root: &Path) -> Result<()> {
    nix::unistd::chdir(root).context(|| format!("changing to {}", root.display()))?;
    // With both names the same, the old root ends up on top of the new one and can be unmounted
    // without a directory for it (pivot_root(2), NOTES).
    nix::unistd::pivot_root(".", ".").context(|| "changing the root")?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "leaving the old root")?;
    nix::unistd::chdir("/").context(|| "changing to the new root")
}

/// Enables forwarding, which container networks need.
fn forward() -> Result<()> {
    for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys/net").join(name);
        match fs::write(&path, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.context(|| format!("writing {}", path.display()))?,
        }
    }
    Ok(())
}

/// Executes systemd as in a container, so that it mounts nothing that is mounted already.
fn become_systemd() -> Error {
    let mut command = Command::new(SYSTEMD);
    command.arg("--unit=multi-user.target").env_clear().env("container", "lab");
    Error::Io { action: "starting systemd".to_owned(), source: command.exec() }
}

fn block_child_signal() -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context(|| "blocking SIGCHLD")
}

/// Reaps orphans until this process is killed.
fn reap() -> Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => {
                set.wait().context(|| "waiting for a child")?;
            }
            Err(error) => return Err(error).context(|| "reaping orphans"),
        }
    }
}
