//! One run of the virtual machine: its second disk, the emulator, and its output.
//!
//! The emulator has a cgroup of its own, like a lab, so it ends with this program in any case.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::boot_files::{self, Image, ROOT_SIZE};
use super::init::{ORDER, Order, Outcome};
use crate::cache;
use crate::error::{Context, Error, Result};
use crate::lab::claim::Claim;
use crate::programs::Programs;
use crate::subprocess;

/// The emulator's program.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";
/// The memory of the virtual machine in MiB. Unused memory is not allocated.
const MEMORY: &str = "3072";
/// The same with the disks.
const MOST_MEMORY: &str = "16G";
/// The size of the second disk; a sparse file.
const SCRATCH_SIZE: &str = "8G";
/// The number of lines of the kernel's console that an error quotes.
const CONSOLE_LINES: usize = 30;

/// What happens to the output of the command in the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// It is copied to this program's standard output and standard error.
    AsItComes,
    /// It is only collected.
    Nothing,
}

/// The inputs of a run.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// The files to boot.
    pub(super) image: &'a Image,
    /// The programs of the product and of the testbed.
    pub(super) programs: &'a Programs,
    /// Container storage with the test images.
    pub(super) storage: &'a Path,
    /// The arguments of the testbed in the virtual machine.
    pub(super) arguments: Vec<String>,
    /// The file for what the testbed writes to the fourth port.
    pub(super) file: Option<PathBuf>,
    /// The time limit.
    pub(super) limit: Duration,
    /// What happens to the output.
    pub(super) show: Show,
}

/// The result of a run.
#[derive(Debug)]
pub struct Ran {
    /// The exit code of the testbed in the virtual machine.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

/// A claim whose paths are removed on drop.
struct Place(Claim);

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.0.places.clear() {
            eprintln!("the virtual machine is not quite gone: {}", crate::error::chain(&error));
        }
    }
}

/// Boots the virtual machine, runs the testbed in it, and ends it.
///
/// # Errors
/// The disk could not be created, the emulator failed or did not end in time, or the virtual machine ended without a
/// result of the command.
pub(super) fn run(job: &Job<'_>) -> Result<Ran> {
    let place = Place(Claim::new(None)?);
    let directory = &place.0.places.disk;
    let disk = scratch(job, directory)?;
    let console = directory.join("console.log");
    let [out, err, status] = [pipe()?, pipe()?, pipe()?];
    let mut qemu = emulator(job.image, &disk, &console);
    for (number, pipe) in (1..).zip([&out, &err, &status]) {
        let path = format!("/proc/self/fd/{}", pipe.1.as_raw_fd());
        port(&mut qemu, number, &format!("path={path},append=on"));
    }
    if let Some(file) = &job.file {
        port(&mut qemu, 4, &format!("path={}", file.display()));
    }
    let log = directory.join("qemu.log");
    let errors = File::create(&log).context(|| format!("creating {}", log.display()))?;
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    let mut child = spawn(qemu, [&out.1, &err.1, &status.1], &place.0.places.cgroup)?;
    let readers = [
        follow(out, (job.show == Show::AsItComes).then(|| Box::new(io::stdout()) as _))?,
        follow(err, (job.show == Show::AsItComes).then(|| Box::new(io::stderr()) as _))?,
        follow(status, None)?,
    ];
    let ended =
        subprocess::wait(&mut child, job.limit).context(|| format!("waiting for {PROGRAM}"));
    let [stdout, stderr, outcome] = readers.map(|reader| reader.join().unwrap_or_default());
    let fault = |what: &str| {
        let console = tail_of(&console, CONSOLE_LINES);
        let said = tail_of(&log, CONSOLE_LINES);
        Error::Refused(format!("{what}; its console:\n{console}\n{said}\n{}", tail(&stderr)))
    };
    if ended?.is_none() {
        return Err(fault(&format!(
            "the virtual machine was not done within {} s",
            job.limit.as_secs()
        )));
    }
    match serde_json::from_str::<Outcome>(outcome.trim()) {
        Ok(Outcome { error: Some(error), .. }) => Err(fault(&error)),
        Ok(outcome) => Ok(Ran { code: outcome.code, stdout, stderr }),
        Err(_) => Err(fault("the virtual machine ended without saying how its command did")),
    }
}

/// Creates the disk for programs, container storage and labs.
fn scratch(job: &Job<'_>, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("tree");
    let bin = tree.join("bin");
    for path in [&bin, &tree.join("labs")] {
        cache::create_private(path)?;
    }
    let ours = Path::new("/proc/self/exe").to_owned();
    let programs = job.programs.files.iter().map(|file| (file, file.file_name()));
    for (file, name) in programs.chain([(&ours, Some("testbed".as_ref()))]) {
        fs::copy(file, bin.join(name.unwrap_or_default()))
            .context(|| format!("copying {}", file.display()))?;
    }
    let mut cp = Command::new("cp");
    cp.args(["--archive", "--link", "--no-target-directory"]);
    cp.arg(job.storage).arg(tree.join("storage"));
    subprocess::run(&mut cp, subprocess::LIMIT)?;
    let order = Order { arguments: job.arguments.clone() };
    let text = serde_json::to_vec(&order).map_err(io::Error::from);
    text.and_then(|text| fs::write(tree.join(ORDER), text))
        .context(|| "writing what the virtual machine is to do")?;
    let disk = directory.join("disk.ext4");
    boot_files::ext4(&tree, &disk, SCRATCH_SIZE, &["-O", "^has_journal", "-m", "0"])?;
    cache::remove(&tree)?;
    Ok(disk)
}

/// Returns the emulator with everything but the ports.
fn emulator(image: &Image, disk: &Path, console: &Path) -> Command {
    let mut qemu = Command::new(PROGRAM);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // Software emulation of one processor: with more of them stock kernels crash.
    qemu.args(["-machine", "pc,nvdimm=on", "-accel", "tcg", "-smp", "1", "-cpu", "max"]);
    qemu.args(["-m", &format!("{MEMORY},slots=2,maxmem={MOST_MEMORY}")]);
    // The clock counts instructions, one a nanosecond, and skips idle time. So time in the virtual machine is that of
    // a processor of 1 GHz, independent of this machine's load. Nothing may be waited for that this machine does by
    // itself: the clock would skip seconds until a busy disk has answered. So the disks are persistent memory.
    qemu.args(["-icount", "shift=0,sleep=off"]);
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 loglevel=4 panic=-1 mitigations=off init_on_alloc=0 cryptomgr.notests",
    ]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    // The first virtio device, so that its ports are called vport0p1 and so on.
    qemu.args(["-device", "virtio-serial-pci"]);
    for (id, file, size, is_read_only) in
        [("root", image.root.as_path(), ROOT_SIZE, true), ("disk", disk, SCRATCH_SIZE, false)]
    {
        let access = if is_read_only { "share=off,readonly=on" } else { "share=on" };
        let file = format!("mem-path={},size={size}", file.display());
        qemu.arg("-object").arg(format!("memory-backend-file,id={id},{access},{file}"));
        let unarmed = if is_read_only { "on" } else { "off" };
        qemu.arg("-device").arg(format!("nvdimm,id=nv-{id},memdev={id},unarmed={unarmed}"));
    }
    qemu
}

/// Adds a virtio port whose output goes to a file.
fn port(qemu: &mut Command, number: u32, file: &str) {
    qemu.arg("-chardev").arg(format!("file,id=port{number},{file}"));
    qemu.arg("-device").arg(format!("virtserialport,chardev=port{number},nr={number}"));
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context(|| "creating a pipe")
}

/// Starts the emulator in the cgroup with the ends of pipes open in it. The kernel kills it when this thread ends.
fn spawn(mut qemu: Command, keep: [&OwnedFd; 3], cgroup: &Path) -> Result<Child> {
    let mut members = File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
        .context(|| format!("opening the cgroup {}", cgroup.display()))?;
    // The terminal sends SIGINT to this program alone, which then ends the emulator.
    qemu.process_group(0);
    let keep = keep.map(|descriptor| descriptor.as_raw_fd());
    // SAFETY: the closure runs in the child between fork and exec; it makes system calls on numbers
    // and on descriptors it owns, and allocates nothing.
    unsafe {
        qemu.pre_exec(move || {
            members.write_all(b"0")?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            for descriptor in keep {
                if libc::fcntl(descriptor, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    qemu.spawn().context(|| format!("starting {PROGRAM}"))
}

/// Collects the contents of a pipe until its other end is closed, and copies them.
fn follow(
    (reader, writer): (OwnedFd, OwnedFd),
    mut to: Option<Box<dyn Write + Send>>,
) -> Result<JoinHandle<String>> {
    // From now on only the emulator has it.
    drop(writer);
    let follow = move || {
        let mut reader = File::from(reader);
        let (mut all, mut some) = (Vec::new(), [0; 4096]);
        loop {
            match reader.read(&mut some) {
                Ok(0) => break,
                Ok(count) => {
                    all.extend_from_slice(&some[..count]);
                    if let Some(to) = &mut to {
                        let _ = to.write_all(&some[..count]).and_then(|()| to.flush());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    };
    thread::Builder::new().name("port".to_owned()).spawn(follow).context(|| "starting a thread")
}

/// Returns the last lines of a file.
fn tail_of(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn tail(text: &str) -> String {
    subprocess::tail(text.trim())
}
