//! Test images, built from files of the hosts' root file system, so that no registry is needed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};
use crate::programs::PROBE;
use crate::subprocess;

/// The description of an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name and the tag.
    pub name: &'static str,
    /// The default command.
    pub command: &'static [&'static str],
    /// The programs of the root file system. The image gets their libraries, too.
    programs: &'static [&'static str],
    /// The directories of the root file system.
    trees: &'static [&'static str],
    /// The empty directories.
    directories: &'static [&'static str],
    /// The paths and contents of further files.
    files: &'static [(&'static str, &'static str)],
}

/// The applets of busybox in every image.
const APPLETS: &[&str] = &[
    "cat", "cp", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "md5sum", "mkdir", "mkfifo", "mv", "nc", "ps", "rm", "sed", "seq", "sh",
    "sleep", "sort", "stat", "sync", "tail", "touch", "true", "wc",
];

/// The configuration of nginx: it serves the files in `/srv` on port 80. Its worker stays root, since CRIU cannot dump
/// processes of another user where root lacks CAP_SYS_RESOURCE.
const NGINX: &str = "\
user root;
daemon off;
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 512; }
http {
    access_log off;
    default_type application/octet-stream;
    server { listen 80; listen [::]:80; root /srv; }
}
";

const ACCOUNTS: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnobody:x:65534:\nnogroup:x:65534:\n"),
];

impl Image {
    /// Returns all test images: `probe:1`, `redis:1`, `nginx:1`, `python:1`, `iperf3:1`.
    pub fn all() -> Vec<Self> {
        vec![
            Self {
                name: "probe:1",
                command: &["netmig-probe", "serve"],
                programs: &[],
                trees: &[],
                directories: &[],
                files: &[],
            },
            Self {
                name: "redis:1",
                command: &["redis-server", "--save", "", "--protected-mode", "no", "--bind", "*"],
                programs: &["/usr/bin/redis-server", "/usr/bin/redis-cli"],
                trees: &[],
                directories: &["data"],
                files: &[],
            },
            Self {
                name: "nginx:1",
                command: &["nginx", "-c", "/etc/nginx.conf"],
                programs: &["/usr/sbin/nginx"],
                trees: &[],
                directories: &["srv", "var/lib/nginx", "var/log/nginx"],
                files: &[("etc/nginx.conf", NGINX)],
            },
            Self {
                name: "python:1",
                command: &["python3"],
                programs: &["/usr/bin/python3"],
                trees: &["/usr/lib/python3*"],
                directories: &[],
                files: &[],
            },
            Self {
                name: "iperf3:1",
                command: &["iperf3", "--server"],
                programs: &["/usr/bin/iperf3"],
                trees: &[],
                directories: &[],
                files: &[],
            },
        ]
    }

    /// Returns everything that the image depends on, apart from the root file system and the probe.
    pub(crate) fn recipe(&self) -> String {
        format!("{self:?} {APPLETS:?} {ACCOUNTS:?}")
    }

    /// Writes the image's files to `target`, which must not exist.
    ///
    /// # Errors
    /// A file is missing in the root file system, or cannot be written.
    pub fn assemble(&self, rootfs: &Path, probe: &Path, target: &Path) -> Result<()> {
        let fixed = ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "run", "root"];
        for directory in fixed.iter().chain(self.directories) {
            let path = target.join(directory);
            fs::create_dir_all(&path).context(|| format!("creating {}", path.display()))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), target.join(name))
                .context(|| format!("linking {name} in an image"))?;
        }
        copy(&rootfs.join("usr/bin/busybox"), &target.join("usr/bin/busybox"))?;
        copy(probe, &target.join("usr/bin").join(PROBE))?;
        for applet in APPLETS {
            symlink("busybox", target.join("usr/bin").join(applet))
                .context(|| format!("linking {applet} in an image"))?;
        }
        for (path, contents) in ACCOUNTS.iter().chain(self.files) {
            let path = target.join(path);
            fs::write(&path, contents).context(|| format!("writing {}", path.display()))?;
        }
        for file in self.linked_files(rootfs)? {
            let inside = file.strip_prefix("/").unwrap_or(&file);
            copy(&rootfs.join(inside), &target.join(inside))?;
        }
        self.trees.iter().try_for_each(|tree| copy_trees(rootfs, target, tree))
    }

    /// Returns the programs and every library that the dynamic linker would load for them.
    fn linked_files(&self, rootfs: &Path) -> Result<BTreeSet<PathBuf>> {
        let mut files: BTreeSet<PathBuf> = self.programs.iter().map(PathBuf::from).collect();
        if self.programs.is_empty() {
            return Ok(files);
        }
        let mut ldd = Command::new("chroot");
        ldd.arg(rootfs).arg("ldd").args(self.programs);
        files.extend(libraries(&subprocess::run(&mut ldd, subprocess::LIMIT)?.text()));
        Ok(files)
    }
}

/// Returns the paths in the output of `ldd`.
fn libraries(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let (before_address, _) = line.trim().rsplit_once(" (")?;
        let path = before_address.rsplit(' ').next()?;
        // The loader is listed below /lib64, which is a link of the merged /usr.
        let merged = path.strip_prefix("/lib").map(|rest| format!("/usr/lib{rest}"));
        path.starts_with('/').then(|| merged.unwrap_or_else(|| path.to_owned()).into())
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copying {} into an image", from.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).context(what)?;
    }
    fs::copy(from, to).map(drop).context(what)
}

/// Copies the directories of `pattern`, whose last part may end in `*`.
fn copy_trees(rootfs: &Path, target: &Path, pattern: &str) -> Result<()> {
    let inside = Path::new(pattern.trim_start_matches('/'));
    let parent = inside.parent().unwrap_or(Path::new(""));
    let name = inside.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = || format!("copying {pattern} into an image");
    for entry in fs::read_dir(rootfs.join(parent)).context(what)? {
        let found = entry.context(what)?.file_name().to_string_lossy().into_owned();
        let matches = match name.strip_suffix('*') {
            Some(start) => found.starts_with(start),
            None => found == name,
        };
        if matches {
            let relative = parent.join(&found);
            let mut cp = Command::new("cp");
            cp.args(["--archive", "--no-target-directory"]);
            cp.arg(rootfs.join(&relative)).arg(target.join(&relative));
            subprocess::run(&mut cp, subprocess::LIMIT)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                    \tlibz.so.1 => /usr/lib/x86_64-linux-gnu/libz.so.1 (0x00007f00)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n\
                    \tstatically linked\n";
        let found: Vec<PathBuf> = libraries(text).collect();
        let expected = ["/usr/lib/x86_64-linux-gnu/libz.so.1", "/usr/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn image_names_are_unique_and_tagged() {
        let names: BTreeSet<&str> = Image::all().iter().map(|image| image.name).collect();
        assert_eq!(names.len(), Image::all().len());
        assert!(names.iter().all(|name| name.contains(':')));
    }
}
