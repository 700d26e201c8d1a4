//! The archive of a small file system, as CRIU has tar(1) write it.
//!
//! In a dump CRIU has `tar` archive each tmpfs of the container, and `tar` has a shell start `gzip` (`tmpfs_dump` in
//! `criu/filesystems.c`). Nearly always that is `/dev` alone, with a dozen entries, and the start of three programs takes longer
//! than all the rest. What follows makes the same archive in the process that CRIU has forked for `tar`. A file system with
//! anything unusual in it is left to `tar`.

use std::ffi::{CStr, OsStr};
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

/// CRIU's command, which reads the directory from its standard input and writes to its standard output.
const COMMAND: [&CStr; 12] = [
    c"tar",
    c"--create",
    c"--gzip",
    c"--no-unquote",
    c"--no-wildcards",
    c"--one-file-system",
    c"--check-links",
    c"--preserve-permissions",
    c"--sparse",
    c"--numeric-owner",
    c"--directory",
    c"/proc/self/fd/0",
];
/// Its last argument: everything.
const EVERYTHING: &CStr = c".";
/// The most entries and levels, and the longest file in bytes, of what counts as small.
const ENTRIES: usize = 256;
const LEVELS: usize = 8;
const LONGEST: u64 = 64 << 10;

/// Returns whether these arguments are CRIU's command to archive a file system.
pub fn is_command<'a>(arguments: impl Iterator<Item = &'a CStr>) -> bool {
    arguments.eq(COMMAND.into_iter().chain([EVERYTHING]))
}

/// Returns the archive of a directory. Fails if there is anything in it that `tar` should see to.
pub fn of(directory: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive {
        builder: Builder::new(GzEncoder::new(Vec::new(), Compression::fast())),
        device: fs::metadata(directory)?.dev(),
        entries: 0,
    };
    archive.add_directory(directory, Path::new("."), 0)?;
    archive.builder.into_inner()?.finish()
}

struct Archive<W: Write> {
    builder: Builder<W>,
    /// The file system, which is not left.
    device: u64,
    entries: usize,
}

impl<W: Write> Archive<W> {
    fn add_directory(&mut self, directory: &Path, name: &Path, level: usize) -> io::Result<()> {
        // The first one is a link of procfs to a directory.
        let meta = match level {
            0 => fs::metadata(directory)?,
            _ => fs::symlink_metadata(directory)?,
        };
        let mut header = header(&meta, EntryType::Directory)?;
        self.builder.append_data(&mut header, name.join(""), io::empty())?;
        if meta.dev() != self.device {
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            self.entries += 1;
            if self.entries > ENTRIES || level >= LEVELS {
                return Err(unusual());
            }
            self.add(&entry.path(), &name.join(entry.file_name()), level)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &Path, level: usize) -> io::Result<()> {
        let meta = fs::symlink_metadata(path)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return self.add_directory(path, name, level + 1);
        }
        // An archive has no place for a socket.
        if kind.is_socket() {
            return Ok(());
        }
        if meta.dev() != self.device || meta.nlink() != 1 {
            return Err(unusual());
        }
        if kind.is_symlink() {
            let mut header = header(&meta, EntryType::Symlink)?;
            return self.builder.append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_file() {
            return self.add_file(path, name, &meta);
        }
        let kind = match () {
            () if kind.is_char_device() => EntryType::Char,
            () if kind.is_block_device() => EntryType::Block,
            () if kind.is_fifo() => EntryType::Fifo,
            () => return Err(unusual()),
        };
        let mut header = header(&meta, kind)?;
        if kind != EntryType::Fifo {
            header.set_device_major(libc::major(meta.rdev()))?;
            header.set_device_minor(libc::minor(meta.rdev()))?;
        }
        self.builder.append_data(&mut header, name, io::empty())
    }

    fn add_file(&mut self, path: &Path, name: &Path, meta: &Metadata) -> io::Result<()> {
        let has_holes = meta.blocks() * 512 < meta.len();
        if meta.len() > LONGEST || has_holes {
            return Err(unusual());
        }
        let mut content = Vec::new();
        fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut content)?;
        if content.len() as u64 != meta.len() {
            return Err(unusual());
        }
        let mut header = header(meta, EntryType::Regular)?;
        header.set_size(meta.len());
        self.builder.append_data(&mut header, name, content.as_slice())
    }
}

fn header(meta: &Metadata, kind: EntryType) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(meta.uid().into());
    header.set_gid(meta.gid().into());
    header.set_mtime(u64::try_from(meta.mtime()).map_err(|_| unusual())?);
    header.set_size(0);
    Ok(header)
}

fn unusual() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// Writes all to a descriptor that is not this function's own.
pub fn write_to(descriptor: libc::c_int, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: write(2) of a buffer and its length.
        let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Returns the directory that CRIU passes.
pub fn passed_directory() -> &'static Path {
    Path::new(OsStr::from_bytes(b"/proc/self/fd/0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Command, Stdio};

    #[test]
    fn the_command_is_known_to_the_letter() {
        let all = || COMMAND.into_iter().chain([EVERYTHING]);
        assert!(is_command(all()));
        assert!(!is_command(all().skip(1)));
        assert!(!is_command(all().chain([c"more"])));
        assert!(!is_command([c"tar", c"--extract"].into_iter()));
    }

    /// Returns what tar lists of an archive, without the `./` before names, which makes no difference when it is extracted.
    fn listed(archive: &[u8]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        fs::write(&path, archive).unwrap();
        let listed = Command::new("tar")
            .args(["--list", "--verbose", "--gzip", "--numeric-owner", "--full-time", "--file"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let mut lines: Vec<String> = String::from_utf8(listed.stdout)
            .unwrap()
            .lines()
            .map(|line| line.replace(" ./", " "))
            .collect();
        lines.sort();
        lines
    }

    fn archived_by_tar(directory: &Path) -> Vec<u8> {
        let arguments = COMMAND[1..].iter().map(|word| word.to_str().unwrap());
        let archived = Command::new("tar")
            .args(arguments)
            .arg(".")
            .stdin(Stdio::from(fs::File::open(directory).unwrap()))
            .output()
            .unwrap();
        assert!(archived.status.success(), "{archived:?}");
        archived.stdout
    }

    #[test]
    fn the_archive_is_that_of_tar() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("mqueue/deep")).unwrap();
        fs::set_permissions(path("mqueue"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/proc/self/fd", path("fd")).unwrap();
        fs::write(path("file"), "content").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path(&"long".repeat(40)), "its name is longer than a header's field").unwrap();
        let made = |name: &str, kind, device| {
            let name = std::ffi::CString::new(path(name).as_os_str().as_bytes()).unwrap();
            // SAFETY: mknod(2) of a name that ends in zero.
            unsafe { libc::mknod(name.as_ptr(), kind | 0o620, device) == 0 }
        };
        assert!(made("fifo", libc::S_IFIFO, 0));
        if !made("null", libc::S_IFCHR, libc::makedev(1, 3)) {
            println!("skipped: device nodes need CAP_MKNOD");
        }
        assert_eq!(listed(&of(dir.path()).unwrap()), listed(&archived_by_tar(dir.path())));
    }

    #[test]
    fn what_is_unusual_is_left_to_tar() {
        type Make = fn(&Path);
        let cases: [(&str, Make); 4] = [
            ("a file with two names", |dir| {
                fs::write(dir.join("a"), "x").unwrap();
                fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
            }),
            ("a large file", |dir| fs::write(dir.join("a"), vec![1; 70_000]).unwrap()),
            ("a hole", |dir| fs::File::create(dir.join("a")).unwrap().set_len(9000).unwrap()),
            ("many files", |dir| {
                (0..300).for_each(|number| fs::write(dir.join(number.to_string()), "").unwrap());
            }),
        ];
        for (what, make) in cases {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            assert!(of(dir.path()).is_err(), "{what}");
        }
    }
}
