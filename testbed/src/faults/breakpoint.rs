//! Breakpoints in front of an OCI runtime: a wrapper on a lab host takes the runtime's place. It waits before or after
//! a dump or a restore, makes either fail, or delays its end.
//!
//! The agents do not know of the wrapper. A breakpoint is a FIFO from which the wrapper reads: the read blocks until
//! the testbed writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::lab::Runtime;

/// The directory to which the real runtime moves.
const REAL: &str = "/usr/libexec/lab/";
/// The directory of the breakpoints on a host.
const DIRECTORY: &str = "/run/breakpoints";
/// The longest time from the wrapper's mark until it opens the FIFO.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// The wrapper. It finds the runtime by the name under which it was called.
const WRAPPER: &str = r#"#!/bin/sh
real=/usr/libexec/lab/${0##*/}
breakpoints=/run/breakpoints
case " $* " in
    *" checkpoint "*) step=dump ;;
    *" restore "*) step=restore ;;
    *) exec $real "$@" ;;
esac
pause() {
    if [ -p $breakpoints/$step-$1 ]; then
        : > $breakpoints/$step-$1.reached
        read -r word < $breakpoints/$step-$1
    fi
}
pause before
if [ -e $breakpoints/$step-fails ]; then
    for argument; do
        shift
        case $step-$previous-$argument in
            # CRIU finds the open connections after it has stopped the tasks.
            dump-*---tcp-established) ;;
            restore---image-path-*) rm -f "$argument"/core-1.img; set -- "$@" "$argument" ;;
            *) set -- "$@" "$argument" ;;
        esac
        previous=$argument
    done
fi
$real "$@"
status=$?
if [ -e $breakpoints/$step-delay ]; then
    sleep "$(cat $breakpoints/$step-delay)"
fi
pause after
exit $status
"#;

/// A place at which the runtime can be made to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breakpoint {
    /// Before the dump.
    BeforeDump,
    /// Before the restore.
    BeforeRestore,
    /// After the restore.
    AfterRestore,
}

impl Breakpoint {
    fn file(self) -> String {
        let name = match self {
            Self::BeforeDump => "dump-before",
            Self::BeforeRestore => "restore-before",
            Self::AfterRestore => "restore-after",
        };
        format!("{DIRECTORY}/{name}")
    }

    /// Makes the next run of the runtime wait here.
    pub(crate) fn set(self, host: &Host) -> Result<()> {
        let path = host.path(self.file());
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))
            .context(|| format!("setting the breakpoint {}", path.display()))
    }

    /// Returns whether a runtime waits here.
    pub(crate) fn is_hit(self, host: &Host) -> bool {
        host.path(format!("{}.reached", self.file())).exists()
    }

    /// Removes the breakpoint and lets a waiting runtime go on.
    pub(crate) fn release(self, host: &Host) -> Result<()> {
        let path = host.path(self.file());
        let what = || format!("releasing the breakpoint {}", path.display());
        let end = Instant::now() + OPEN_LIMIT;
        if self.is_hit(host) {
            loop {
                let fifo =
                    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
                match fifo {
                    Ok(mut fifo) => break fifo.write_all(b"go\n").context(what)?,
                    // The wrapper has left its mark and does not read yet.
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                        if Instant::now() >= end {
                            return Err(Error::Check(format!(
                                "no runtime waits at {}",
                                path.display()
                            )));
                        }
                    }
                    Err(error) => return Err(error).context(what),
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        match fs::remove_file(&path) {
            // The host was restarted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.context(what),
        }
    }
}

/// Installs the wrapper in crun's place on a host.
pub(crate) fn install(host: &Host) -> Result<()> {
    install_for(host, Runtime::Crun)
}

/// Installs the wrapper in a runtime's place on a host.
pub(crate) fn install_for(host: &Host, runtime: Runtime) -> Result<()> {
    let called = match runtime {
        Runtime::Crun => "/usr/bin/crun",
        Runtime::Runc => "/usr/sbin/runc",
    };
    let real = format!("{REAL}{}", runtime.name());
    let program = fs::read(host.path(called)).context(|| format!("reading {called}"))?;
    for (path, contents) in [(real.as_str(), program.as_slice()), (called, WRAPPER.as_bytes())] {
        // The kernel refuses writes to a file that a process executes (ETXTBSY).
        let _ = fs::remove_file(host.path(path));
        host.write(path, contents)?;
        fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o755))
            .context(|| format!("making {path} executable"))?;
    }
    clear(host)
}

/// Makes each later dump (`dump`) or restore (`restore`) fail.
pub(crate) fn fail_step(host: &Host, step: &str) -> Result<()> {
    host.write(format!("{DIRECTORY}/{step}-fails"), "")
}

/// Delays the end of each later dump (`dump`) or restore (`restore`).
pub(crate) fn delay_step(host: &Host, step: &str, delay: Duration) -> Result<()> {
    host.write(format!("{DIRECTORY}/{step}-delay"), delay.as_secs_f64().to_string())
}

/// Removes all breakpoints, failures and delays.
pub(crate) fn clear(host: &Host) -> Result<()> {
    let path = host.path(DIRECTORY);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(&path),
    }
    .context(|| format!("clearing {}", path.display()))
}
