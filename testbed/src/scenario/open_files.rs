//! Files and directories that were removed or replaced while they are in use.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::{Held, Setup, check, descriptor, held};

pub(super) const ALL: &[(&str, Setup)] = &[
    ("deleted-directory", deleted_directory),
    ("deleted-image-directory", deleted_image_directory),
    ("deleted-root", deleted_root),
    ("deleted-file", || gone_file("/root/own")),
    ("deleted-open-directory", deleted_open_directory),
    ("replaced-library", || mapped("/root/library.so", ProtFlags::PROT_READ)),
    ("replaced-image-library", || mapped("/etc/group", ProtFlags::PROT_READ)),
    ("replaced-executable", || renamed_executable(false)),
    ("deleted-executable", || renamed_executable(true)),
    ("memfd-executable", memfd_executable),
    ("linked-deleted-file", linked_deleted_file),
];

fn deleted_directory() -> io::Result<Held> {
    fs::create_dir("/root/gone")?;
    std::env::set_current_dir("/root/gone")?;
    fs::remove_dir("/root/gone")?;
    held(())
}

/// Has a removed directory of the image as the working directory.
fn deleted_image_directory() -> io::Result<Held> {
    std::env::set_current_dir("/tmp")?;
    fs::remove_dir("/tmp")?;
    held(())
}

fn deleted_root() -> io::Result<Held> {
    fs::create_dir("/root/jail")?;
    std::os::unix::fs::chroot("/root/jail")?;
    // The working directory is outside, and so is the way to it.
    fs::remove_dir("/proc/self/cwd/root/jail").or_else(|_| fs::remove_dir("root/jail"))?;
    held(())
}

/// Has a file open whose name was removed.
fn gone_file(path: &str) -> io::Result<Held> {
    let mut file = File::create(path)?;
    file.write_all(b"contents")?;
    fs::remove_file(path)?;
    held(file)
}

fn deleted_open_directory() -> io::Result<Held> {
    fs::create_dir("/root/open")?;
    let directory = File::open("/root/open")?;
    fs::remove_dir("/root/open")?;
    held(directory)
}

/// Has a file open that has lost one name and has another.
fn linked_deleted_file() -> io::Result<Held> {
    fs::write("/root/first", "contents")?;
    let file = File::open("/root/first")?;
    fs::hard_link("/root/first", "/root/second")?;
    fs::remove_file("/root/first")?;
    held(file)
}

/// Maps a file that is replaced afterwards, as by an upgrade.
fn mapped(path: &str, protection: ProtFlags) -> io::Result<Held> {
    let copy = format!("{path}.new");
    if fs::metadata(path).is_err() {
        fs::write(path, [7; 8192])?;
    }
    let file = File::open(path)?;
    let length = NonZeroUsize::new(4096).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel chooses an unused address for the new mapping.
    unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, &file, 0) }?;
    drop(file);
    fs::write(&copy, [8; 8192])?;
    fs::rename(&copy, path)?;
    held(())
}

/// Runs a copy of busybox whose file is replaced or removed.
fn renamed_executable(gone: bool) -> io::Result<Held> {
    fs::copy("/bin/busybox", "/root/busybox")?;
    let child = Command::new("/root/busybox").args(["sleep", "100000"]).arg0("sleep").spawn()?;
    // Until it has called execve(2), the file is not in use.
    std::thread::sleep(std::time::Duration::from_millis(200));
    if gone {
        fs::remove_file("/root/busybox")?;
    } else {
        fs::copy("/bin/busybox", "/root/busybox.new")?;
        fs::rename("/root/busybox.new", "/root/busybox")?;
    }
    held(child)
}

/// Runs a program from a memfd.
fn memfd_executable() -> io::Result<Held> {
    // SAFETY: the name is a string that ends in zero.
    let fd = unsafe { libc::memfd_create(c"program".as_ptr(), libc::MFD_CLOEXEC) };
    let fd = descriptor(i64::from(fd))?;
    let mut file = File::from(fd);
    file.write_all(&fs::read("/bin/busybox")?)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new(path);
    command.arg0("sleep").arg("100000");
    let child = command.spawn()?;
    check(0)?;
    held(child)
}
