//! Helpers for the `rtnetlink` crate.

use std::io;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkMessage;

/// Opens an rtnetlink connection in the network namespace of this process. It ends with the last clone
/// of the handle.
pub(crate) fn connect() -> io::Result<Handle> {
    let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    runtime.spawn(connection);
    Ok(handle)
}

/// Reduces the crate's error, which carries the whole message, to the kernel's error number.
pub(crate) fn answer(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            io::Error::from_raw_os_error(message.raw_code().saturating_neg())
        }
        other => io::Error::other(other),
    }
}

/// Returns whether the kernel says that it does not know the address family.
pub(crate) fn is_no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// Turns the error `number` into success. Returns whether the request was carried out.
pub(crate) fn unless(result: Result<(), rtnetlink::Error>, number: i32) -> io::Result<bool> {
    match result.map_err(answer) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(number) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Looks up an interface by name; `None` when there is none.
pub(crate) async fn link_by_name(handle: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    absent(handle.link().get().match_name(name).execute().try_next().await)
}

/// Looks up an interface by index; `None` when there is none.
pub(crate) async fn link_by_index(handle: &Handle, index: u32) -> io::Result<Option<LinkMessage>> {
    absent(handle.link().get().match_index(index).execute().try_next().await)
}

fn absent(found: Result<Option<LinkMessage>, rtnetlink::Error>) -> io::Result<Option<LinkMessage>> {
    match found.map_err(answer) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}
