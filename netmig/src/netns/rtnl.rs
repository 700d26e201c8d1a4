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

/// The error number in the kernel's answer, as in errno(3).
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().saturating_neg()),
        _ => None,
    }
}

/// Whether the kernel says that it does not know the address family.
pub(crate) fn is_no_family(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// The interface of that name, `None` when there is none.
pub(crate) async fn link_by_name(
    handle: &Handle,
    name: &str,
) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    absent(handle.link().get().match_name(name).execute().try_next().await)
}

/// The interface with that index, `None` when there is none.
pub(crate) async fn link_by_index(
    handle: &Handle,
    index: u32,
) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    absent(handle.link().get().match_index(index).execute().try_next().await)
}

fn absent(
    found: Result<Option<LinkMessage>, rtnetlink::Error>,
) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    match found {
        Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}
