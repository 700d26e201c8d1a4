//! Brings the runtime and CRIU into memory before the container stops: the first dump on a host
//! takes twice as long as the others.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{Error, Runtime};
/// Each program that is run here takes milliseconds; CRIU's first look at a kernel some more.
const LIMIT: Duration = Duration::from_secs(20);
/// With this variable set the dynamic loader lists the libraries of a program and does not run
/// it (ld.so(8)); what `ldd` does.
const LIST_LIBRARIES: &str = "LD_TRACE_LOADED_OBJECTS";
/// crun loads this at run time, by dlopen, so that the loader does not list it.
const LIBCRIU: &str = "libcriu.so.2";
/// Where CRIU keeps what it found out about the kernel (`criu/kerndat.c`).
const PROBED: &str = "/run/criu.kdat";

impl Runtime {
    /// Reads the files of the runtime and of CRIU into the page cache; for the first time after a
    /// boot it runs both once, and lets CRIU probe this kernel.
    ///
    /// # Errors
    /// [`Error::Run`] when one of them does not run. That CRIU finds something missing in the
    /// kernel is no error here.
    pub async fn warm(&self, criu: &Path) -> Result<(), Error> {
        if has_probed(criu) {
            page_in(&self.path, criu).await;
            return Ok(());
        }
        let (runtime, _, probe) = tokio::join!(
            output(&self.path, &["--version"], false),
            page_in(&self.path, criu),
            // Any feature makes CRIU probe them all; this one is asked for by name alone.
            output(criu, &["check", "--feature", "mnt_id"], false),
        );
        let run = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Run { action: "run", path, source }
        };
        runtime.map_err(run(&self.path))?;
        probe.map_err(run(criu)).map(drop)
    }
}

/// Whether this CRIU has looked at this kernel since the last boot.
fn has_probed(criu: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    changed(Path::new(PROBED)).is_some_and(|at| changed(criu).is_some_and(|made| made < at))
}

/// Reads both programs and their libraries. Purely an optimisation, so errors do not matter.
async fn page_in(runtime: &Path, criu: &Path) {
    let mut files = BTreeSet::from([runtime.to_path_buf(), criu.to_path_buf()]);
    for program in [runtime, criu] {
        if let Ok(list) = output(program, &["--version"], true).await {
            files.extend(libraries(&list));
        }
    }
    let beside: BTreeSet<PathBuf> =
        files.iter().filter_map(|f| Some(f.parent()?.join(LIBCRIU))).collect();
    files.extend(beside);
    // The one error is that the runtime shuts down.
    let _ = tokio::task::spawn_blocking(move || {
        for file in files {
            let _ = File::open(file).and_then(|mut f| io::copy(&mut f, &mut io::sink()));
        }
    })
    .await;
}

/// The paths in the loader's list: `libnl-3.so.200 => /usr/lib/…/libnl-3.so.200 (0x7f…)`.
fn libraries(list: &str) -> impl Iterator<Item = PathBuf> {
    list.lines()
        .filter_map(|line| {
            let path = line.rsplit_once(" (0x")?.0;
            Some(path.rsplit_once("=> ").map_or(path, |(_, path)| path).trim())
        })
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
}

/// What a program prints, within the limit.
async fn output(program: &Path, args: &[&str], list: bool) -> io::Result<String> {
    let mut command = Command::new(program);
    // Not killed when nobody waits any more: CRIU probes the kernel with helper processes, which
    // would be left behind. It ends by itself within milliseconds.
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(false);
    if list {
        command.env(LIST_LIBRARIES, "1");
    }
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibnet.so.9 => /lib/libnet.so.9 (0x00007f2a)\n\
            \tlibgone.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f2b)\n";
        let found: Vec<_> = libraries(list).collect();
        assert_eq!(
            found,
            [PathBuf::from("/lib/libnet.so.9"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]
        );
        assert_eq!(libraries("Version: 4.2.1").count(), 0);
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_named() {
        let runtime = Runtime::new(Path::new("/nonexistent/crun"), None).unwrap();
        // CRIU is not there either, so it has not probed anything.
        let error = runtime.warm(Path::new("/nonexistent/criu")).await.unwrap_err();
        assert!(matches!(error, Error::Run { .. }), "{error:?}");
    }
}
