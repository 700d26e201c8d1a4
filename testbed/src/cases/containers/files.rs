//! Files of every kind in a volume, and what is to be seen of them.

use crate::error::Result;
use crate::host::Host;

/// Makes files of every kind below a directory (first argument).
const LAY: &str = r##"
import os, socket, struct, sys
os.chdir(sys.argv[1])
os.mkdir("deep"); os.makedirs("deep/er/still")
with open("deep/file", "w") as f: f.write("content\n")
os.link("deep/file", "another name"); os.link("deep/file", "deep/er/third")
os.symlink("/etc/passwd", "absolute"); os.symlink("../../nowhere", "deep/up")
os.mkfifo("fifo", 0o640)
bound = socket.socket(socket.AF_UNIX); bound.bind("socket")
with open("sparse", "wb") as f:
    f.seek(200 << 20); f.write(b"end")
with open("deep/tool", "w") as f: f.write("#!/bin/sh\n")
os.chmod("deep/tool", 0o4755)
with open("owned", "wb") as f: f.write(bytes(range(256)) * 1000)
os.chown("owned", 1000, 100); os.chmod("owned", 0o640)
os.setxattr("owned", "user.note", b"a\0b")
entries = [(1, 6, 2**32 - 1), (2, 4, 1001), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 0, 2**32 - 1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
os.setxattr("owned", "system.posix_acl_access", acl)
with open(b"not \xff utf-8", "w") as f: f.write("odd")
with open("empty", "w"): pass
os.mkdir("closed", 0o700); os.chown("closed", 65534, 65534)
os.utime("deep/file", ns=(1, 1_000_000_007_123_456_789))
os.utime("deep/er", ns=(1, 1_500_000_007_000_000_001))
os.chmod(".", 0o1771); os.chown(".", 1000, 1000)
"##;

/// Prints everything of the files below a directory (first argument) that a program could notice, but for the times of
/// links, pipes and sockets and for inode numbers.
const LIST: &str = r#"
import hashlib, os, stat, sys
root = os.fsencode(sys.argv[1])
names = {}
def show(path):
    s = os.lstat(path)
    name = os.path.relpath(path, root)
    kind = stat.S_IFMT(s.st_mode)
    line = [repr(name), oct(s.st_mode), s.st_uid, s.st_gid]
    if kind == stat.S_IFREG:
        first = names.setdefault((s.st_dev, s.st_ino), name)
        with open(path, "rb") as f: digest = hashlib.sha1(f.read()).hexdigest()
        line += [s.st_size, s.st_mtime_ns, s.st_nlink, repr(first), digest, "sparse" if s.st_blocks * 512 < s.st_size // 2 else "full"]
    if kind == stat.S_IFDIR: line += [s.st_mtime_ns]
    if kind == stat.S_IFLNK: line += [repr(os.readlink(path))]
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        line += [(x, os.getxattr(path, x)) for x in sorted(os.listxattr(path))]
    print(*line)
show(root)
for directory, below, files in sorted(os.walk(root)):
    for name in sorted(below + files): show(os.path.join(directory, name))
"#;

/// Returns the directory of a volume's files on a host.
pub(super) fn data(volume: &str) -> String {
    format!("/var/lib/containers/storage/volumes/{volume}/_data")
}

/// Makes files of every kind below a directory of a host.
pub(super) fn lay_odd_files(host: &Host, directory: &str) -> Result<()> {
    host.run(["python3", "-c", LAY, directory])?;
    Ok(())
}

/// Returns everything of the files below a directory of a host.
pub(super) fn listing(host: &Host, directory: &str) -> Result<String> {
    host.run(["python3", "-c", LIST, directory])
}
