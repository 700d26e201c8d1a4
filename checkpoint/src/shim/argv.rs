//! Command lines of conmon and of OCI runtimes.
//!
//! conmon 2.1: `conmon … -r RUNTIME … --restore DIR …`. crun 1 and runc 1:
//! `RUNTIME [global options] restore [--image-path DIR] [--work-path DIR] … ID`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Global options of crun and runc that take their value in the next argument
/// (crun(1), runc(8)).
const WITH_VALUE: [&str; 7] =
    ["--log", "--log-format", "--log-level", "--root", "--criu", "--rootless", "--cgroup-manager"];

/// Options of conmon whose value may look like another option (conmon(8)): podman passes whole
/// command lines that way, `--exit-command-arg --runtime --exit-command-arg crun` among them.
const FREE_TEXT: [&str; 6] =
    ["--exit-command", "--exit-command-arg", "--runtime-arg", "--runtime-opt", "--log-tag", "-n"];

/// Returns where the subcommand stands in a runtime's arguments, if there is one.
#[must_use]
pub fn subcommand(argv: &[OsString]) -> Option<usize> {
    let mut at = 0;
    while let Some(arg) = argv.get(at) {
        if !arg.as_bytes().starts_with(b"-") {
            return Some(at);
        }
        at += if WITH_VALUE.iter().any(|option| arg == option) { 2 } else { 1 };
    }
    None
}

/// Returns whether these arguments of a runtime ask for a restore.
#[must_use]
pub fn is_restore(argv: &[OsString]) -> bool {
    subcommand(argv).is_some_and(|at| argv[at] == "restore")
}

/// The option by which CRIU restores locks. What a runtime asks CRIU for comes after every configuration file
/// but its own, which is not read where there is no `/etc/criu`: without the option it asks for no locks.
const FILE_LOCKS: &str = "--file-locks";

/// Returns the arguments of the same restore from other images, with locks, and with CRIU's log elsewhere.
#[must_use]
pub fn redirect(argv: &[OsString], images: &Path, work: &Path) -> Vec<OsString> {
    let at = subcommand(argv).map_or(argv.len(), |at| at + 1);
    let (global, own) = argv.split_at(at);
    let mut new = global.to_vec();
    for (option, dir) in [("--image-path", images), ("--work-path", work)] {
        new.push(option.into());
        new.push(dir.into());
    }
    new.push(FILE_LOCKS.into());
    let mut own = own.iter();
    while let Some(arg) = own.next() {
        if arg == "--image-path" || arg == "--work-path" {
            own.next();
        } else if arg != FILE_LOCKS
            && !["--image-path=", "--work-path="]
                .iter()
                .any(|option| arg.as_bytes().starts_with(option.as_bytes()))
        {
            new.push(arg.clone());
        }
    }
    new
}

/// Returns the arguments that delete the container which `argv` restores.
#[must_use]
pub fn delete(argv: &[OsString]) -> Option<Vec<OsString>> {
    let at = subcommand(argv)?;
    let mut new = argv[..at].to_vec();
    new.extend(["delete".into(), "--force".into(), argv.last()?.clone()]);
    Some(new)
}

/// Returns the value of an option, given as `--option VALUE` or `--option=VALUE`.
#[must_use]
pub fn option<'a>(argv: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    argv.iter().enumerate().find_map(|(at, arg)| {
        if arg == name {
            return argv.get(at + 1).map(OsString::as_os_str);
        }
        arg.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(OsStr::from_bytes)
    })
}

/// Returns where the value of one of conmon's own options stands: the argument's place and how many of
/// its bytes come before the value.
fn conmon_option(argv: &[OsString], names: &[&str]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(arg) = argv.get(at) {
        if names.iter().any(|name| arg == name) {
            return (at + 1 < argv.len()).then_some((at + 1, 0));
        }
        for name in names.iter().filter(|name| name.starts_with("--")) {
            let rest = arg.as_bytes().strip_prefix(name.as_bytes());
            if rest.is_some_and(|rest| rest.starts_with(b"=")) {
                return Some((at, name.len() + 1));
            }
        }
        at += if FREE_TEXT.iter().any(|option| arg == option) { 2 } else { 1 };
    }
    None
}

/// Returns the runtime that conmon's arguments name, when they ask for a restore.
#[must_use]
pub fn restoring_runtime(argv: &[OsString]) -> Option<PathBuf> {
    conmon_option(argv, &["--restore"])?;
    conmon_path(argv, &["-r", "--runtime"])
}

/// Returns conmon's directory for the container, by conmon's arguments. The directory outlives a failed start.
#[must_use]
pub fn persist_dir(argv: &[OsString]) -> Option<PathBuf> {
    conmon_path(argv, &["--persist-dir"])
}

fn conmon_path(argv: &[OsString], names: &[&str]) -> Option<PathBuf> {
    let (at, start) = conmon_option(argv, names)?;
    Some(PathBuf::from(OsStr::from_bytes(&argv[at].as_bytes()[start..])))
}

/// Returns conmon's arguments with another runtime.
#[must_use]
pub fn with_runtime(argv: &[OsString], runtime: &Path) -> Vec<OsString> {
    let mut new = argv.to_vec();
    if let Some((at, start)) = conmon_option(argv, &["-r", "--runtime"]) {
        let option = &argv[at].as_bytes()[..start];
        new[at] = OsString::from_vec([option, runtime.as_os_str().as_bytes()].concat());
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    const CRUN: &str = "--log-format=json --log /run/u/oci-log restore --bundle /var/u --pid-file \
        /run/u/pidfile --detach --image-path /var/u/checkpoint --work-path /var/u \
        --tcp-established a72e";

    #[test]
    fn a_restore_is_told_from_everything_else() {
        assert!(is_restore(&args(CRUN)));
        assert!(is_restore(&args("restore x")));
        assert!(!is_restore(&args("--log restore state x")));
        assert!(!is_restore(&args("--root restore delete restore")));
        assert!(!is_restore(&args("--version")));
        assert!(!is_restore(&args("kill restore 9")));
        assert!(!is_restore(&[]));
    }

    #[test]
    fn images_and_log_go_elsewhere() {
        let new = redirect(&args(CRUN), Path::new("/i"), Path::new("/w"));
        assert_eq!(
            new,
            args(
                "--log-format=json --log /run/u/oci-log restore --image-path /i --work-path /w \
                 --file-locks --bundle /var/u --pid-file /run/u/pidfile --detach --tcp-established a72e"
            )
        );
        let new = redirect(
            &args("restore --image-path=/a --file-locks --work-path=/b x"),
            Path::new("/i"),
            Path::new("/w"),
        );
        assert_eq!(new, args("restore --image-path /i --work-path /w --file-locks x"));
    }

    #[test]
    fn delete_keeps_the_global_options() {
        assert_eq!(
            delete(&args(CRUN)).unwrap(),
            args("--log-format=json --log /run/u/oci-log delete --force a72e")
        );
        assert_eq!(delete(&args("--version")), None);
    }

    #[test]
    fn options_are_found_in_both_spellings() {
        assert_eq!(option(&args(CRUN), "--bundle").unwrap(), "/var/u");
        assert_eq!(option(&args("restore --bundle=/x y"), "--bundle").unwrap(), "/x");
        assert_eq!(option(&args("restore --bundle"), "--bundle"), None);
        assert_eq!(option(&args("restore --bundler z"), "--bundle"), None);
    }

    #[test]
    fn conmon_gets_another_runtime_only_for_a_restore() {
        let conmon = args("--api-version 1 -c a72e -r /usr/bin/crun -b /b --restore /b/checkpoint");
        assert_eq!(restoring_runtime(&conmon).unwrap(), Path::new("/usr/bin/crun"));
        assert_eq!(
            with_runtime(&conmon, Path::new("/w/crun")),
            args("--api-version 1 -c a72e -r /w/crun -b /b --restore /b/checkpoint")
        );
        assert_eq!(persist_dir(&args("-r /r --persist-dir /p/a7")).unwrap(), Path::new("/p/a7"));
        assert_eq!(restoring_runtime(&args("-r /usr/bin/crun -b /b")), None);
        assert_eq!(restoring_runtime(&args("--version")), None);
        let exit = args(
            "--exit-command-arg --runtime --exit-command-arg crun --exit-command-arg --restore \
             -r /usr/bin/crun --runtime-arg -r --restore /x",
        );
        let changed = args(
            "--exit-command-arg --runtime --exit-command-arg crun --exit-command-arg --restore \
             -r /w/crun --runtime-arg -r --restore /x",
        );
        assert_eq!(with_runtime(&exit, Path::new("/w/crun")), changed);
        assert_eq!(restoring_runtime(&exit[..8]), None);
        let long = args("--runtime=/usr/bin/runc --restore=/x");
        assert_eq!(
            with_runtime(&long, Path::new("/w/runc")),
            args("--runtime=/w/runc --restore=/x")
        );
    }
}
