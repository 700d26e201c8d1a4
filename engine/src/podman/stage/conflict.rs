//! What podman's last words mean when it does not make a container.

use super::work_dir::WorkDir;
use super::{Conflict, Error};
use crate::Kind;

/// Returns the error for a podman that has ended without making the container.
pub(super) fn refusal(work: &WorkDir, name: &str) -> Error {
    let printed = work.printed();
    let (name, message) = (name.to_owned(), crate::podman::last_line(&printed));
    match conflict(&message) {
        Some(conflict) => Error::Conflict { name, conflict },
        None => Error::Engine { engine: Kind::Podman, name, message },
    }
}

/// Returns the conflict that a message of podman's means, if it means one.
///
/// The wording is podman's `libpod/sqlite_state_internal.go` and `libpod/oci_util.go`,
/// netavark's and its IPAM's in `go.podman.io/common/libnetwork/netavark/ipam.go`.
fn conflict(message: &str) -> Option<Conflict> {
    let text = message.to_owned();
    let has = |words: &[&str]| words.iter().all(|word| message.contains(word));
    if has(&["requested ip address", "already allocated"]) {
        Some(Conflict::Address(text))
    } else if has(&["address already in use"]) || has(&["cannot listen on the"]) {
        Some(Conflict::Port(text))
    } else if has(&["name", "already in use"]) {
        Some(Conflict::Name(text))
    } else if has(&["ID", "already in use"]) || has(&["container already exists"]) {
        Some(Conflict::Id(text))
    } else if has(&["image not known"])
        || has(&["identifier is not an image"])
        || has(&["initializing source"])
        || has(&["unable to copy from source"])
        || has(&["short-name"])
    {
        Some(Conflict::Image(text))
    } else if has(&["network not found"])
        || has(&["unable to find network"])
        || has(&["requested static ip", "not in any subnet"])
    {
        Some(Conflict::Network(text))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_refusals_are_understood() {
        let cases = [
            (
                "IPAM error: requested ip address 10.88.0.2 is already allocated to container ID 46",
                "address-taken",
            ),
            (
                "cannot listen on the TCP port: listen tcp4 :7000: bind: address already in use",
                "port-taken",
            ),
            (
                "creating container storage: the container name \"echo\" is already in use by 8a. \
                 You have to remove that container to be able to reuse that name: that name is \
                 already in use",
                "name-taken",
            ),
            ("localhost/probe:1: image not known", "image-missing"),
            ("unable to find network with name or ID n6: network not found", "network-missing"),
        ];
        for (message, code) in cases {
            assert_eq!(conflict(message).map(|c| c.code()), Some(code), "{message}");
        }
        for message in ["", "container creation timeout: internal libpod error", "no space left"] {
            assert_eq!(conflict(message), None);
        }
    }
}
