//! Validates the texts of a description. Lengths are in bytes.

/// More elements than any setting of a container has.
pub(super) const LIST: usize = 4096;
/// Longest free text: that of an argument (execve(2), `MAX_ARG_STRLEN`).
const TEXT: usize = 128 << 10;
/// Longest path (`PATH_MAX`).
const PATH: usize = 4096;
/// Length of a container's ID.
const ID: usize = 64;
/// Longest name.
const NAME: usize = 512;

/// Annotations that engines, runtimes and CRIU act upon. A container of another host has none of them: each
/// that can be moved is a setting of its own.
const RESERVED_ANNOTATIONS: [&str; 9] = [
    "io.podman.",
    "io.container.manager",
    "io.kubernetes.cri-o.",
    "io.crun.",
    "module.wasm.",
    "org.criu.",
    "org.systemd.property.",
    "run.oci.",
    "krun.",
];
/// The one in a namespace of its own.
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// Kernel parameters that belong to a namespace of the container (sysctl(8)).
const SYSCTLS: [&str; 6] =
    ["net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem", "kernel.domainname"];

/// Options of mounts that are whole words.
const OPTIONS: [&str; 31] = [
    "bind",
    "rbind",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "newinstance",
    "tmpcopyup",
    "notmpcopyup",
];
/// Options with a number, which may have a unit.
const NUMBERS: [&str; 8] =
    ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "ptmxmode", "hidepid"];

pub(super) fn at_most(text: &str, bytes: usize) -> bool {
    text.len() <= bytes
}

/// Returns whether it is a text as a program may be given it.
pub(super) fn is_text(text: &str) -> bool {
    at_most(text, TEXT) && !text.contains('\0')
}

/// Returns whether it is a short text that a terminal shows as it is.
pub(super) fn is_printable(text: &str) -> bool {
    at_most(text, NAME) && !text.contains(char::is_control)
}

/// Returns whether it has letters and digits of ASCII, and these.
pub(super) fn is_word(text: &str, others: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

pub(super) fn matches_none(text: &str, others: &[&str]) -> bool {
    !others.contains(&text)
}

/// Returns whether it is an absolute path of which no part leads elsewhere. The root is none.
pub(super) fn is_destination(path: &str) -> bool {
    let parts = || path.split('/').skip(1);
    at_most(path, PATH)
        && path.starts_with('/')
        && !path.contains(char::is_control)
        && parts().all(|part| matches_none(part, &[".", ".."]))
        && parts().any(|part| !part.is_empty())
}

pub(super) fn is_annotation(name: &str) -> bool {
    let is_reserved = RESERVED_ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix));
    !name.is_empty() && is_printable(name) && name != STOP_SIGNAL && !is_reserved
}

pub(super) fn is_sysctl(name: &str) -> bool {
    is_printable(name)
        && SYSCTLS.iter().any(|prefix| name.starts_with(prefix))
        && is_word(name, "._-")
        && !name.contains("..")
}

pub(super) fn is_mount_option(option: &str) -> bool {
    if OPTIONS.contains(&option) {
        return true;
    }
    let Some((name, value)) = option.split_once('=') else { return false };
    let is_number = !value.is_empty() && at_most(value, 24) && is_word(value, "%");
    NUMBERS.contains(&name) && is_number
}

/// Returns whether it is a list as cpuset(7) writes it.
pub(super) fn is_number_list(text: &str) -> bool {
    at_most(text, NAME) && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
}

/// Returns whether it is a file that a control group has.
pub(super) fn is_cgroup_file(name: &str) -> bool {
    let Some((controller, file)) = name.split_once('.') else { return false };
    let is_part = |part: &str| !part.is_empty() && is_word(part, "_.");
    at_most(name, 64)
        && !name.contains("..")
        && controller != "cgroup"
        && is_part(controller)
        && is_part(file)
}

/// Returns whether it is a group above containers, in which none is.
pub(super) fn is_cgroup_parent(path: &str) -> bool {
    let is_id = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    let is_group = |part: &str| {
        let is_containers = part.as_bytes().windows(ID).any(is_id);
        !part.is_empty() && !is_containers && matches_none(part, &[".", ".."])
    };
    let Some(parts) = path.strip_prefix('/').or(Some(path).filter(|path| path.ends_with(".slice")))
    else {
        return path.is_empty();
    };
    is_printable(path) && is_word(path, "/_.-@:") && parts.split('/').all(is_group)
}

/// Returns whether it names a time zone of the database.
pub(super) fn is_zone(name: &str) -> bool {
    at_most(name, 64) && is_word(name, "/_+-") && !name.starts_with('/')
}

/// Returns whether it is a time as RFC 3339 writes it.
pub(super) fn is_timestamp(text: &str) -> bool {
    at_most(text, 40)
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b"-:.TZ+".contains(&b))
}

pub(super) fn is_mac(text: &str) -> bool {
    let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(is_byte)
}
