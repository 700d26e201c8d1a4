//! Facts about the mounts of a container.

use super::{ContainerFacts, Error, Kind, text};

/// Options of a file system that name directories or sizes of this host alone, or that a kernel adds as it
/// likes. What they lead to is carried in other ways.
const OF_HOST: &[&str] = &[
    "lowerdir", "upperdir", "workdir", "inode64", "inode32", "uuid", "seclabel", "index",
    "metacopy",
];

/// Reads the mounts that a process sees (proc_pid_mountinfo(5)).
pub(super) fn read(process: i32, into: &mut ContainerFacts) -> Result<(), Error> {
    for line in text(format!("/proc/{process}/mountinfo"))?.lines() {
        if let Some((point, value)) = fact(line) {
            into.add(Kind::Mount, point, value);
        }
    }
    Ok(())
}

/// Returns a mount's point, and what has to be equal of it: its own flags and its file system's type, and of
/// a file system that was made for the container also its options.
fn fact(line: &str) -> Option<(&str, String)> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, point, flags) = (front.next()?, front.next()?, front.next()?);
    let mut back = back.split(' ');
    let (kind, options) = (back.next()?, back.nth(1)?);
    // Engines keep files such as /etc/hosts where they like: of a part of a file system the type may differ.
    // runc covers files with a null device, once the container's and once the host's.
    let is_own =
        root == "/" && matches!(kind, "tmpfs" | "proc" | "sysfs" | "mqueue" | "devpts" | "cgroup2");
    let mut value = format!("{} {}", if is_own { kind } else { "bind" }, sorted(flags));
    if is_own && matches!(kind, "tmpfs" | "proc" | "sysfs" | "devpts") {
        // The flags of the file system as a whole are the host's where the file system is.
        let is_wide = |option: &str| kind != "tmpfs" && matches!(option, "rw" | "ro");
        let options = options.split(',').filter(|option| {
            let name = option.split('=').next().unwrap_or_default();
            !OF_HOST.contains(&name) && !is_wide(option)
        });
        let mut options: Vec<&str> = options.collect();
        options.sort_unstable();
        value.push(' ');
        value.push_str(&options.join(","));
    }
    Some((point, value))
}

fn sorted(flags: &str) -> String {
    let mut flags: Vec<&str> = flags.split(',').collect();
    flags.sort_unstable();
    flags.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_count_and_directories_of_the_host_do_not() {
        let root =
            "29 1 0:25 / / rw,nodev,relatime shared:1 - overlay overlay rw,lowerdir=/a,upperdir=/b";
        assert_eq!(fact(root), Some(("/", "bind nodev,relatime,rw".to_owned())));
        let masked = "30 29 0:26 / /sys/firmware ro,relatime - tmpfs tmpfs ro,size=0k,inode64";
        assert_eq!(
            fact(masked),
            Some(("/sys/firmware", "tmpfs relatime,ro ro,size=0k".to_owned()))
        );
        let open = masked.replacen("ro,relatime", "rw,relatime", 1);
        assert_ne!(fact(masked), fact(&open));
        assert_eq!(fact("30 29 0:26 / /x"), None);
    }
}
