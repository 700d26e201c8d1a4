//! The values that a new socket has in a network namespace.

use std::collections::HashMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::option_table::{Kind, OPTIONS};

/// Values of a new socket, one for each of [`OPTIONS`].
type Values = Vec<Option<Vec<u8>>>;

/// Defaults by family, type and protocol, read when they are first asked for, in the network namespace of
/// the calling thread.
#[derive(Debug, Default)]
pub(super) struct Defaults(HashMap<(i32, i32, i32), Values>);

impl Defaults {
    /// The defaults of a socket like this one; none where no such socket can be made.
    pub(super) fn of(&mut self, kind: &Kind) -> &Values {
        let Kind { family, kind, protocol, .. } = *kind;
        self.0.entry((family, kind, protocol)).or_insert_with(|| {
            let Ok(fresh) = open(family, kind, protocol) else {
                return vec![None; OPTIONS.len()];
            };
            OPTIONS.iter().map(|option| option.read(&fresh)).collect()
        })
    }
}

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes numbers alone.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}
