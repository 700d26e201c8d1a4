//! The files of kernel parameters, and a fresh network namespace to compare with.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{DEPTH, DIRECTORY, LONGEST_VALUE, MOST, Values, is_name};

/// Reads the parameters of the calling thread's namespace.
pub(super) fn values_here() -> io::Result<Values> {
    let mut values = Values::new();
    collect(Path::new(DIRECTORY), DEPTH, &mut values)?;
    Ok(values)
}

/// Skips files that cannot be read, as a secret that is not set.
fn collect(directory: &Path, depth: usize, into: &mut Values) -> io::Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            collect(&path, depth - 1, into)?;
            continue;
        }
        // Those that flush something cannot be read.
        let is_both = |file: fs::Metadata| file.permissions().mode() & 0o600 == 0o600;
        if !kind.is_file() || !entry.metadata().is_ok_and(is_both) {
            continue;
        }
        let name = path.strip_prefix(DIRECTORY).ok().and_then(Path::to_str);
        match (name, value(&path)) {
            (Some(name), Ok(Some(value))) if is_name(name) && into.len() < MOST => {
                into.insert(name.to_owned(), value);
            }
            (_, Err(_)) => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

/// Reads a value; `None` for one that is too long.
pub(super) fn value(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST_VALUE + 1).read_to_string(&mut text)?;
    Ok((text.len() as u64 <= LONGEST_VALUE).then(|| text.trim_end_matches('\n').to_owned()))
}

/// Writes an existing file with one call, as the kernel takes a value.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Runs `visit` in a new network namespace, which goes with it.
pub(super) fn in_fresh<T: Send>(visit: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new().name("netns-fresh".to_owned());
        let run = || unshare(CloneFlags::CLONE_NEWNET).map(|()| visit());
        match visitor.spawn_scoped(scope, run)?.join() {
            Ok(done) => Ok(done?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
