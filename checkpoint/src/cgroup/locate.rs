//! Finds the directory of a container's own cgroup by `/proc/PID/cgroup` and the mount table.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use super::Error;

/// Digits of a container ID.
const ID_DIGITS: usize = 64;
/// crun's cgroup below the systemd scope: podman asks for it by the annotation
/// `run.oci.systemd.subgroup`.
pub(super) const SUBGROUP: &str = "container";

/// Returns the directory, below a mount of cgroup2, of the cgroup that is container `id`'s own.
///
/// `cgroups` is `/proc/PID/cgroup`, `mounts` is `/proc/self/mountinfo`.
pub(super) fn directory(cgroups: &str, mounts: &str, pid: i32, id: &str) -> Result<PathBuf, Error> {
    if id.len() != ID_DIGITS || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::BadId(id.chars().take(ID_DIGITS).collect()));
    }
    // Version 2 has hierarchy 0 and no controllers; the others are version 1 on hybrid hosts.
    let Some(cgroup) = cgroups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Err(Error::NotMounted(format!("the cgroup of process {pid}")));
    };
    let own = own_cgroup(cgroup, id).ok_or_else(|| Error::NotOwn {
        cgroup: cgroup.to_owned(),
        pid,
        id: id.to_owned(),
    })?;
    mounts
        .lines()
        .filter_map(cgroup2_mount)
        .find_map(|(root, point)| {
            let below = own.strip_prefix(&root).ok()?;
            // The whole name must lie below the mount; else a mount of the container's cgroup
            // itself would stand for it under any name.
            below.as_os_str().to_str()?.contains(id).then(|| point.join(below))
        })
        .ok_or_else(|| Error::NotMounted(own.to_string_lossy().into_owned()))
}

/// Returns the directory, below a mount of cgroup2, of the cgroup that these lines of `/proc/PID/cgroup`
/// tell.
pub(super) fn whole(cgroups: &str, mounts: &str) -> Option<PathBuf> {
    let cgroup = Path::new(cgroups.lines().find_map(|line| line.strip_prefix("0::"))?);
    if cgroup.components().any(|component| component == Component::ParentDir) {
        return None;
    }
    mounts
        .lines()
        .filter_map(cgroup2_mount)
        .find_map(|(root, point)| Some(point.join(cgroup.strip_prefix(&root).ok()?)))
}

/// Returns the container's own cgroup: the path up to the component that carries its ID, and crun's
/// subgroup below that. What comes after was made inside the container.
///
/// Names in use, by podman's cgroup manager: `libpod_parent/libpod-ID` and, in a pod,
/// `libpod_parent/PODID/libpod-ID` (cgroupfs); `machine.slice/libpod-ID.scope` (systemd, runc)
/// and the same with `/container` (systemd, crun); `…/libpod-payload-ID` (`--cgroups=split`).
fn own_cgroup(cgroup: &str, id: &str) -> Option<PathBuf> {
    let mut components = Path::new(cgroup).components().peekable();
    let mut own = PathBuf::from("/");
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    loop {
        // `..` stands in front where the cgroup is outside our cgroup namespace.
        let Component::Normal(name) = components.next()? else { return None };
        own.push(name);
        if is_containers(name.to_str()?, id) {
            break;
        }
    }
    if components.peek() == Some(&Component::Normal(SUBGROUP.as_ref())) {
        own.push(SUBGROUP);
    }
    Some(own)
}

/// Returns whether a cgroup's name is that of the container's payload (not of its monitor).
fn is_containers(name: &str, id: &str) -> bool {
    let Some((prefix, suffix)) = name.split_once(id) else { return false };
    matches!(suffix, "" | ".scope")
        && !prefix.contains("conmon")
        && prefix.bytes().all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'_'))
}

/// Returns the root and the mount point of a line of mountinfo (proc_pid_mountinfo(5)), if it is cgroup2.
fn cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (front, back) = line.split_once(" - ")?;
    if back.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = front.split(' ').skip(3);
    Some((unescape(fields.next()?), unescape(fields.next()?)))
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| field.get(i + 1..i + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1beeb0141cc8e4d94dccc0a8a5b9350de89abb6931b9ad193b15d3711c887d58";
    const MOUNTS: &str = "22 1 0:20 / /proc rw - proc proc rw\n\
        30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_cgroup_of_any_process_is_found() {
        let whole = |cgroup: &str| whole(&format!("1:name=systemd:/x\n0::{cgroup}\n"), MOUNTS);
        let service = "/system.slice/agent-server.service";
        let found = whole(service).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/system.slice/agent-server.service"));
        assert_eq!(whole("/").unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(whole("/../other"), None, "outside of the cgroup namespace");
        assert_eq!(super::whole("1:name=systemd:/x\n", MOUNTS), None);
    }

    fn find(cgroup: &str) -> Result<PathBuf, Error> {
        directory(&format!("9:cpu:/libpod-{ID}\n0::{cgroup}\n"), MOUNTS, 77, ID)
    }

    #[test]
    fn every_layout_of_podman_is_found() {
        for (cgroup, expected) in [
            (format!("/libpod_parent/libpod-{ID}"), format!("/libpod_parent/libpod-{ID}")),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                format!("/machine.slice/libpod-{ID}.scope/container"),
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope"),
                format!("/machine.slice/libpod-{ID}.scope"),
            ),
            (
                format!("/machine.slice/libpod-{ID}.scope/container/init.scope"),
                format!("/machine.slice/libpod-{ID}.scope/container"),
            ),
            (
                format!("/libpod_parent/libpod-{ID}/system.slice/cron.service"),
                format!("/libpod_parent/libpod-{ID}"),
            ),
            (format!("/a.service/libpod-payload-{ID}"), format!("/a.service/libpod-payload-{ID}")),
        ] {
            let found = find(&cgroup).unwrap();
            assert_eq!(found, PathBuf::from(format!("/sys/fs/cgroup{expected}")), "{cgroup}");
        }
    }

    #[test]
    fn any_other_cgroup_is_refused() {
        for cgroup in [
            "/".to_owned(),
            String::new(),
            "/user.slice/user-0.slice".to_owned(),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/libpod_parent/libpod-{ID} (deleted)"),
            format!("/libpod_parent/libpod-{ID}.service"),
            format!("/../libpod-{ID}"),
            format!("/libpod-{}", &ID[..63]),
            format!("/libpod-{}0", &ID[..63]),
        ] {
            assert!(matches!(find(&cgroup), Err(Error::NotOwn { .. })), "{cgroup}");
        }
    }

    #[test]
    fn ids_must_be_complete() {
        for id in ["", "abc", &ID[..63], &ID.to_uppercase(), &"/".repeat(64)] {
            let found = directory(&format!("0::/libpod-{id}"), MOUNTS, 7, id);
            assert!(matches!(found, Err(Error::BadId(_))), "{id}");
        }
    }

    #[test]
    fn hybrid_hosts_and_partial_mounts() {
        let cgroups = format!("4:memory:/x\n0::/pods/libpod-{ID}\n");
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            directory(&cgroups, hybrid, 7, ID).unwrap(),
            PathBuf::from(format!("/sys/fs/cgroup/uni fied/pods/libpod-{ID}"))
        );
        let below = "41 31 0:38 /pods /cg rw - cgroup2 none rw\n";
        assert_eq!(
            directory(&cgroups, below, 7, ID).unwrap(),
            PathBuf::from(format!("/cg/libpod-{ID}"))
        );
        let itself = format!("41 31 0:38 /pods/libpod-{ID} /cg rw - cgroup2 none rw\n");
        assert!(matches!(directory(&cgroups, &itself, 7, ID), Err(Error::NotMounted(_))));
        assert!(matches!(directory(&cgroups, "", 7, ID), Err(Error::NotMounted(_))));
        assert!(matches!(directory("4:memory:/x\n", hybrid, 7, ID), Err(Error::NotMounted(_))));
    }
}
