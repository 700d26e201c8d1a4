//! What a container's mount table says that CRIU does not save.

use std::fs;
use std::io;

/// The option of a mount in which symbolic links are not followed (`MS_NOSYMFOLLOW`, mount(2)).
const NO_SYMLINKS: &str = "nosymfollow";

/// Returns the mount points of a process in which symbolic links are not followed. crun mounts the control groups
/// so; CRIU knows nothing of it (`parse_mnt_flags` in `criu/proc_parse.c`).
///
/// # Errors
/// `/proc/PID/mountinfo` cannot be read.
pub fn without_symlinks(pid: i32) -> io::Result<Vec<String>> {
    fs::read_to_string(format!("/proc/{pid}/mountinfo")).map(|table| marked(&table))
}

/// Those of a mount table (proc_pid_mountinfo(5)): the fifth word is the mount point, the sixth has its options.
fn marked(table: &str) -> Vec<String> {
    let mounts = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(4);
        Some((words.next()?, words.next()?))
    });
    mounts
        .filter(|(_, options)| options.split(',').any(|option| option == NO_SYMLINKS))
        .map(|(point, _)| unescaped(point))
        .collect()
}

/// A path without the escapes of a mount table: a backslash and three octal digits for spaces and the like.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            None => path.extend(["\\", part]),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_mounts_are_found_and_their_names_are_plain() {
        let table = "\
            31 23 0:26 / /sys/fs/cgroup ro,nosuid,relatime,nosymfollow - cgroup2 cgroup2 rw\n\
            32 23 0:27 / /proc rw,relatime - proc proc rw\n\
            33 23 0:28 / /a\\040b\\134c rw,nosymfollow shared:1 - tmpfs nosymfollow rw\n\
            34 23 0:29 / /d rw - tmpfs tmpfs rw,nosymfollow\n";
        assert_eq!(marked(table), ["/sys/fs/cgroup", "/a b\\c"]);
        assert!(without_symlinks(std::process::id() as i32).is_ok());
    }
}
