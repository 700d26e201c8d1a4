//! Scenarios of a process that a move has to know of: something is open, mapped or set that CRIU does not
//! take along, or does.
//!
//! [`hold`] brings the calling process into one, says `ready` and stays in it.

mod descriptors;
mod open_files;
mod processes;
pub mod socket_options;
mod sockets;
mod unsupported_interfaces;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Something that has to live as long as the scenario does.
type Held = Box<dyn std::any::Any>;
/// Brings the process into a scenario.
type Setup = fn() -> io::Result<Held>;

/// All scenarios, by their names.
fn all() -> Vec<(&'static str, Setup)> {
    [descriptors::ALL, unsupported_interfaces::ALL, open_files::ALL, processes::ALL, sockets::ALL]
        .concat()
}

/// Enters a scenario and stays there for good.
///
/// # Errors
/// There is none of that name, or the kernel does not allow it.
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

/// The result of a system call that makes a descriptor.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for the caller, who hands it on.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The result of a system call, or its error.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What lives on is given away.
fn held<T: 'static>(thing: T) -> io::Result<Held> {
    Ok(Box::new(thing))
}
