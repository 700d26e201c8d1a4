//! Scenarios of processes that a migration has to recognise: the process has something open, mapped or set that CRIU
//! restores, or does not restore.
//!
//! [`hold`] sets one up in the calling process, prints `ready` and keeps it.

mod changing_memory;
mod descriptors;
mod open_files;
mod paced_memory;
mod processes;
mod shared_memory;
mod shared_segments;
pub mod socket_options;
mod sockets;
mod unsupported_interfaces;
mod writing_memory;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A value that has to live as long as the scenario.
type Held = Box<dyn std::any::Any>;
/// Sets a scenario up in this process.
type Setup = fn() -> io::Result<Held>;

/// Returns all scenarios with their names.
fn all() -> Vec<(&'static str, Setup)> {
    [
        changing_memory::ALL,
        descriptors::ALL,
        unsupported_interfaces::ALL,
        open_files::ALL,
        paced_memory::ALL,
        processes::ALL,
        shared_memory::ALL,
        shared_segments::ALL,
        sockets::ALL,
        writing_memory::ALL,
    ]
    .concat()
}

/// Sets a scenario up and keeps it until the process is killed.
///
/// # Errors
/// No scenario has this name, or the kernel does not allow it.
pub fn hold(name: &str) -> io::Result<()> {
    let all = all();
    let Some((_, enter)) = all.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
        return Err(io::Error::other(format!(
            "no scenario {name}; there are: {}",
            names.join(", ")
        )));
    };
    let _kept = enter()?;
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Takes the result of a system call that returns a new descriptor.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor, and the caller passes on its ownership.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the result of a system call, or `errno`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Boxes a value that has to live as long as the scenario.
fn held<T: 'static>(thing: T) -> io::Result<Held> {
    Ok(Box::new(thing))
}
