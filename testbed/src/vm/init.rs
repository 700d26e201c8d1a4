//! Process 1 of the virtual machine. It is this program, on the hosts' root file system. It mounts the file systems
//! that the lab needs, runs the testbed's command, reports its exit code and powers the machine off.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result, chain};
use crate::lab::cgroup;

/// The limit of open files of a process.
const OPEN_FILES: u64 = 1 << 19;
/// The first argument of this program when it is process 1 of the virtual machine.
pub(super) const ROLE: &str = "vm-init";
/// The mount point of the second disk, which has labs, programs and container storage.
pub(super) const SCRATCH: &str = "/var/cache/netmig-testbed";
/// The file on the second disk with the [`Order`].
pub(super) const ORDER: &str = "order.json";
/// Virtio ports by their numbers: standard output, standard error, the [`Outcome`], a file.
pub(super) const PORTS: [&str; 4] =
    ["/dev/vport0p1", "/dev/vport0p2", "/dev/vport0p3", "/dev/vport0p4"];

/// The time limit for the ports to appear.
const PORTS_LIMIT: Duration = Duration::from_secs(20);

/// The command for the virtual machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Arguments of the testbed.
    pub(super) arguments: Vec<String>,
}

/// The result of the command: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// The exit code of the testbed; `None` if it was ended by a signal.
    pub(super) code: Option<i32>,
    /// Why the testbed could not be started.
    pub(super) error: Option<String>,
}

/// Becomes process 1 of the virtual machine if the arguments say so. It returns then only if the kernel refuses to
/// power the machine off.
pub fn become_init_if_asked() -> Option<ExitCode> {
    if std::env::args().nth(1).as_deref() != Some(ROLE) || std::process::id() != 1 {
        return None;
    }
    let outcome = match run() {
        Ok(code) => Outcome { code, error: None },
        Err(error) => Outcome { code: None, error: Some(chain(&error)) },
    };
    if let Err(error) = report(&outcome) {
        eprintln!("{outcome:?} could not be reported: {error}");
    }
    nix::unistd::sync();
    let refused: nix::Result<Infallible> = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("turning the machine off: {refused:?}");
    Some(ExitCode::FAILURE)
}

fn report(outcome: &Outcome) -> io::Result<()> {
    let mut port = OpenOptions::new().write(true).open(PORTS[2])?;
    port.write_all(format!("{}\n", serde_json::to_string(outcome)?).as_bytes())
}

fn run() -> Result<Option<i32>> {
    mounts()?;
    cgroup::delegate(Path::new("/sys/fs/cgroup"))?;
    // As the init of a distribution does. The kernel's default limit is 4,096.
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .context(|| "lifting the limit on open files")?;
    await_ports()?;
    let path = Path::new(SCRATCH).join(ORDER);
    let order: Order = fs::read(&path)
        .and_then(|text| serde_json::from_slice(&text).map_err(Into::into))
        .context(|| format!("reading {}", path.display()))?;
    let port = |name: &str| {
        OpenOptions::new().write(true).open(name).context(|| format!("opening {name}"))
    };
    let child = Command::new("/proc/self/exe")
        .args(&order.arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(port(PORTS[0])?)
        .stderr(port(PORTS[1])?)
        .spawn()
        .context(|| "starting the testbed")?;
    let wanted = child.id() as i32;
    // Process 1 reaps the orphans of the whole machine.
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == wanted => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(pid, ..)) if pid.as_raw() == wanted => return Ok(None),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context(|| "waiting for the testbed"),
        }
    }
}

/// Waits until the ports exist. The kernel learns of them from the emulator after the boot.
fn await_ports() -> Result<()> {
    let deadline = Instant::now() + PORTS_LIMIT;
    while !PORTS[..3].iter().all(|port| Path::new(port).exists()) {
        if Instant::now() >= deadline {
            return Err(Error::Refused(format!("no {} appeared", PORTS[..3].join(", "))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Mounts the file systems that a booted Debian has mounted.
fn mounts() -> Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let all: [(&str, &str, MsFlags, &str); 8] = [
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"),
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("cgroup2", "/sys/fs/cgroup", quiet, ""),
        ("tmpfs", "/run", MsFlags::MS_NOSUID, "mode=755"),
        ("tmpfs", "/tmp", MsFlags::MS_NOSUID, "mode=1777"),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=620,gid=5"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID, "mode=1777"),
    ];
    for (kind, target, flags, options) in all {
        fs::create_dir_all(target).context(|| format!("creating {target}"))?;
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .context(|| format!("mounting {kind} on {target}"))?;
    }
    Ok(())
}
