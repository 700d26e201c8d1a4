//! `peers allow`: what one peer may move here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use protocol::permissions::Permissions;
use protocol::trust::{Name, Peers};
use state::cause::Cause;
use state::private_file;

use crate::cli::Allow;

/// Stands for an empty list on the command line.
const NONE: &str = "none";

/// A path that no mount can have.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not an absolute path; a container's mounts and devices have absolute ones")]
struct NotAbsolute(PathBuf);

/// The kernel's capabilities (capabilities(7), `include/uapi/linux/capability.h`), without their prefix.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// A permission that cannot be given.
#[derive(Debug, thiserror::Error)]
enum Invalid {
    #[error(transparent)]
    Path(#[from] NotAbsolute),
    /// The kernel has no such capability.
    #[error("{name} is no capability of the kernel; those are {}", CAPABILITIES.join(" "))]
    Capability { name: String },
}

/// There is no such peer.
#[derive(Debug, thiserror::Error)]
#[error("no peer {0} may move containers here; agent-server peers lists those that may")]
pub struct NoSuchPeer(pub Name);

/// Changes a peer's permissions as requested, and returns the new permissions as text.
pub fn allow(state: &Path, request: &Allow) -> Result<String, Cause> {
    let peers = Peers::new(state);
    let lock = private_file::lock(state)?;
    let missing = || NoSuchPeer(request.peer.clone());
    let old = peers.get(&request.peer)?.and_then(|peer| peer.source).ok_or_else(missing)?;
    let new = changed(old, request)?;
    if !peers.permit(&lock, &request.peer, new.clone())? {
        return Err(missing().into());
    }
    Ok(format!("{} may move here:\n{}", request.peer, shown(&new)))
}

fn changed(old: Permissions, request: &Allow) -> Result<Permissions, Invalid> {
    let mut new = if request.reset { Permissions::of_new_peer() } else { old };
    if !request.names.is_empty() {
        new.names.clone_from(&request.names);
    }
    if !request.images.is_empty() {
        new.images.clone_from(&request.images);
    }
    if let Some(size) = request.memory {
        new.memory = size.0;
    }
    if let Some(size) = request.disk {
        new.disk = size.0;
    }
    new.direct = request.direct.unwrap_or(new.direct);
    new.privileged = request.privileged.unwrap_or(new.privileged);
    new.units = request.units.unwrap_or(new.units);
    if !request.mounts.is_empty() {
        new.mounts = paths(&request.mounts)?;
    }
    if !request.devices.is_empty() {
        new.devices = paths(&request.devices)?;
    }
    if !request.capabilities.is_empty() {
        let names = request.capabilities.iter().filter(|name| *name != NONE);
        new.capabilities = names.map(|name| capability(name)).collect::<Result<_, _>>()?;
    }
    Ok(new)
}

fn capability(name: &str) -> Result<String, Invalid> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if CAPABILITIES.contains(&plain) {
        Ok(plain.to_owned())
    } else {
        Err(Invalid::Capability { name: name.to_owned() })
    }
}

fn paths(given: &[PathBuf]) -> Result<BTreeSet<PathBuf>, NotAbsolute> {
    let given = given.iter().filter(|path| *path != Path::new(NONE));
    given
        .map(
            |path| {
                if path.is_absolute() { Ok(path.clone()) } else { Err(NotAbsolute(path.clone())) }
            },
        )
        .collect()
}

/// Returns one line for each permission.
fn shown(permissions: &Permissions) -> String {
    let Permissions {
        names,
        images,
        memory,
        disk,
        direct,
        privileged,
        units,
        mounts,
        devices,
        capabilities,
    } = permissions;
    let yes = |allowed: bool| if allowed { "yes" } else { "no" }.to_owned();
    let list = |all: Vec<String>| if all.is_empty() { NONE.to_owned() } else { all.join(" ") };
    let size = |limit: &Option<u64>| {
        limit.map_or("as this host has".to_owned(), |bytes| ByteSize(bytes).to_string())
    };
    let path =
        |paths: &BTreeSet<PathBuf>| list(paths.iter().map(|p| p.display().to_string()).collect());
    let pattern =
        |patterns: &[_]| list(patterns.iter().cloned().map(String::from).collect::<Vec<_>>());
    [
        ("names", pattern(names)),
        ("images", pattern(images)),
        ("memory", size(memory)),
        ("disk", size(disk)),
        ("direct flows", yes(*direct)),
        ("privileged", yes(*privileged)),
        ("unit files", yes(*units)),
        ("mounts", path(mounts)),
        ("devices", path(devices)),
        ("capabilities", list(capabilities.iter().cloned().collect())),
    ]
    .map(|(what, value)| format!("  {what:<13} {value}"))
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, PeersCommand};
    use clap::Parser;

    fn request(line: &str) -> Allow {
        let words = ["agent-server", "peers", "allow", "a"].into_iter().chain(line.split(' '));
        match Cli::parse_from(words.filter(|word| !word.is_empty())).command {
            Some(Command::Peers(peers)) => match peers.command {
                Some(PeersCommand::Allow(allow)) => allow,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_given_replaces_and_the_rest_stays() {
        let start = Permissions::of_new_peer();
        let one =
            changed(start.clone(), &request("--mount /srv/a --memory 2GiB --privileged --direct"));
        let one = one.unwrap();
        assert_eq!((one.memory, one.privileged, one.direct), (Some(2 << 30), true, true));
        assert_eq!(one.names, start.names);
        let line =
            "--mount /srv/b --capability cap_net_admin --privileged no --direct no --memory any";
        let two = changed(one.clone(), &request(line)).unwrap();
        assert_eq!(two.mounts, BTreeSet::from(["/srv/b".into()]));
        assert_eq!(two.capabilities, BTreeSet::from(["NET_ADMIN".into()]));
        assert_eq!((two.memory, two.privileged), (None, false));
        let three = changed(two.clone(), &request("--mount none --capability none")).unwrap();
        assert_eq!(three, start);
        assert_eq!(changed(one, &request("--reset")).unwrap(), start);
        assert!(changed(start.clone(), &request("--device fuse")).is_err());
        let unknown = changed(start, &request("--capability FOO")).unwrap_err().to_string();
        assert!(unknown.contains("FOO") && unknown.contains("NET_ADMIN"), "{unknown}");
    }

    #[test]
    fn everything_is_shown() {
        let text = shown(&Permissions::of_new_peer());
        assert_eq!(text.lines().count(), 10);
        assert!(text.contains("names         *") && text.contains("mounts        none"), "{text}");
    }
}
