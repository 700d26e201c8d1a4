//! Removes the labs when the program is interrupted.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The exit code after a signal, as shells report it for SIGINT.
const EXIT_CODE: i32 = 130;

static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Wakes the thread that removes the labs. A signal handler may call little else (signal-safety(7)).
extern "C" fn wake(_: i32) {
    // SAFETY: write(2) is async-signal-safe; the buffer is one static byte and the descriptor is
    // never closed.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), [1u8].as_ptr().cast(), 1) };
}

/// Makes SIGINT and SIGTERM remove this program's labs before they end it.
///
/// # Errors
/// The pipe, the thread or the signal handler could not be created.
pub fn clear_labs_when_interrupted() -> io::Result<()> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    WAKE.store(writer.as_raw_fd(), Ordering::Relaxed);
    let _stays_open = writer.into_raw_fd();
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let mut byte = [0];
        while nix::unistd::read(&reader, &mut byte) == Err(nix::errno::Errno::EINTR) {}
        crate::lab::clear_all();
        std::process::exit(EXIT_CODE);
    })?;
    let action = SigAction::new(SigHandler::Handler(wake), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only calls an async-signal-safe function.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
