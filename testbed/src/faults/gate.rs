//! Stops an OCI runtime at the door: a stand-in for it on a lab host that waits before or after a
//! dump or a restore until it is let go, and that makes either fail or last.
//!
//! The agents know nothing of it. A gate is a FIFO that the stand-in reads from: there it blocks until
//! the testbed writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::lab::Runtime;

/// Where a runtime goes to make room.
const REAL: &str = "/usr/libexec/lab/";
/// Directory of the gates, on the hosts.
const GATES: &str = "/run/gates";
/// How long a stand-in may take from its mark to its gate.
const OPENS: Duration = Duration::from_secs(5);

/// Called by the runtime's name.
const STAND_IN: &str = r#"#!/bin/sh
real=/usr/libexec/lab/${0##*/}
gates=/run/gates
case " $* " in
    *" checkpoint "*) step=dump ;;
    *" restore "*) step=restore ;;
    *) exec $real "$@" ;;
esac
gate() {
    if [ -p $gates/$step-$1 ]; then
        : > $gates/$step-$1.reached
        read -r word < $gates/$step-$1
    fi
}
gate before
if [ -e $gates/$step-fails ]; then
    for argument; do
        shift
        case $step-$previous-$argument in
            # CRIU finds the open connections once it has hold of the tasks.
            dump-*---tcp-established) ;;
            restore---image-path-*) rm -f "$argument"/core-1.img; set -- "$@" "$argument" ;;
            *) set -- "$@" "$argument" ;;
        esac
        previous=$argument
    done
fi
$real "$@"
status=$?
if [ -e $gates/$step-tarries ]; then
    sleep "$(cat $gates/$step-tarries)"
fi
gate after
exit $status
"#;

/// A place where the runtime can be made to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Before the dump.
    Dump,
    /// Before the restore.
    Restore,
    /// After the restore.
    Restored,
}

impl Gate {
    fn file(self) -> String {
        let name = match self {
            Self::Dump => "dump-before",
            Self::Restore => "restore-before",
            Self::Restored => "restore-after",
        };
        format!("{GATES}/{name}")
    }

    /// Makes the next run wait here.
    pub(crate) fn close(self, host: &Host) -> Result<()> {
        let path = host.path(self.file());
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))
            .context(|| format!("making the gate {}", path.display()))
    }

    /// Whether somebody waits here.
    pub(crate) fn is_reached(self, host: &Host) -> bool {
        host.path(format!("{}.reached", self.file())).exists()
    }

    /// Lets whoever waits go on, and whoever comes later.
    pub(crate) fn open(self, host: &Host) -> Result<()> {
        let path = host.path(self.file());
        let what = || format!("opening the gate {}", path.display());
        let end = Instant::now() + OPENS;
        if self.is_reached(host) {
            loop {
                let gate =
                    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
                match gate {
                    Ok(mut gate) => break gate.write_all(b"go\n").context(what)?,
                    // It has left its mark and does not read yet.
                    Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                        if Instant::now() >= end {
                            return Err(Error::Check(format!(
                                "nobody waits at {}",
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

/// Puts the stand-in for crun into a host.
pub(crate) fn install(host: &Host) -> Result<()> {
    install_for(host, Runtime::Crun)
}

/// Puts the stand-in for a runtime into a host.
pub(crate) fn install_for(host: &Host, runtime: Runtime) -> Result<()> {
    let called = match runtime {
        Runtime::Crun => "/usr/bin/crun",
        Runtime::Runc => "/usr/sbin/runc",
    };
    let real = format!("{REAL}{}", runtime.name());
    let program = fs::read(host.path(called)).context(|| format!("reading {called}"))?;
    for (path, contents) in [(real.as_str(), program.as_slice()), (called, STAND_IN.as_bytes())] {
        // A file that a process executes cannot be written.
        let _ = fs::remove_file(host.path(path));
        host.write(path, contents)?;
        fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o755))
            .context(|| format!("making {path} executable"))?;
    }
    clear(host)
}

/// Lets the dump (`dump`) or the restore (`restore`) fail.
pub(crate) fn spoil(host: &Host, step: &str) -> Result<()> {
    host.write(format!("{GATES}/{step}-fails"), "")
}

/// Lets the dump (`dump`) or the restore (`restore`) take so much longer.
pub(crate) fn tarry(host: &Host, step: &str, time: Duration) -> Result<()> {
    host.write(format!("{GATES}/{step}-tarries"), time.as_secs_f64().to_string())
}

/// Takes all gates away.
pub(crate) fn clear(host: &Host) -> Result<()> {
    let path = host.path(GATES);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(&path),
    }
    .context(|| format!("clearing {}", path.display()))
}
