//! Small helps for the `rtnetlink` crate.

use std::io;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkMessage;

/// An rtnetlink connection in the network namespace of this process. It ends with the last clone of
/// the handle.
pub(crate) fn connect() -> io::Result<Handle> {
    let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    runtime.spawn(connection);
    Ok(handle)
}

/// The kernel's answer as the error number it is; the library's error drags the message along.
pub(crate) fn answer(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            io::Error::from_raw_os_error(message.raw_code().saturating_neg())
        }
        other => io::Error::other(other),
    }
}

/// Whether the kernel says that it does not know the address family.
pub(crate) fn is_no_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// Success as well when the kernel says `number`; whether it did not.
pub(crate) fn unless(result: Result<(), rtnetlink::Error>, number: i32) -> io::Result<bool> {
    match result.map_err(answer) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(number) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The interface of that name, `None` when there is none.
pub(crate) async fn link_by_name(handle: &Handle, name: &str) -> io::Result<Option<LinkMessage>> {
    absent(handle.link().get().match_name(name).execute().try_next().await)
}

/// The interface with that index, `None` when there is none.
pub(crate) async fn link_by_index(handle: &Handle, index: u32) -> io::Result<Option<LinkMessage>> {
    absent(handle.link().get().match_index(index).execute().try_next().await)
}

fn absent(found: Result<Option<LinkMessage>, rtnetlink::Error>) -> io::Result<Option<LinkMessage>> {
    match found.map_err(answer) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}
