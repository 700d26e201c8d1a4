//! One start of a unit whose container arrives instead of being started.
//!
//! ```text
//! begin       a guard keeps the unit from being started after a reboot; a drop-in in /run replaces the
//!             unit's commands for now, and systemd starts a process that only waits
//! (restore)   the container is restored in the unit's control group, and the unit is `activating`
//! hand_over   systemd hears that the container's monitor is the main process, and that the unit is ready;
//!             the drop-in goes, so that the next start is an ordinary one
//! end         in place of hand_over: the unit is stopped, and the drop-in goes
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::drop_in::{DropIn, UNTIL_REBOOT, value};
use crate::guard::Guard;
use crate::manager::{Manager, Mode};
use crate::{Error, UnitName, notify};

/// The name of the drop-in file. It is read after the one of a [`Guard`], which is there if the container comes home.
const FILE: &str = "95-netmig-arriving.conf";
/// How long systemd may take to start the process that waits. What the unit depends on is started first.
const STARTS: Duration = Duration::from_secs(20);
/// How long it may take to hear that the unit is ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to stop what is left of the unit.
const STOPS: Duration = Duration::from_secs(30);

/// A unit that is started for a container which arrives.
#[derive(Clone, Debug)]
pub struct Arrival {
    unit: UnitName,
    file: DropIn,
}

impl Arrival {
    /// Returns what is, was or will be made for the arrival of a unit's container.
    #[must_use]
    pub fn of(unit: UnitName) -> Self {
        let file = DropIn::of(&unit, Path::new(UNTIL_REBOOT), FILE);
        Self { unit, file }
    }

    /// Starts the unit. `waiter` is a command line that does nothing until it is ended; `from` is the host that the container
    /// comes from, for people. Returns a process of the unit, in whose control group the container is to be restored.
    ///
    /// # Errors
    /// The file cannot be written, or systemd does not start the unit. [`Arrival::end`] undoes.
    pub async fn begin(
        &self,
        manager: &Manager,
        from: &str,
        waiter: &[PathBuf],
    ) -> Result<i32, Error> {
        let guard = self.guard();
        if !guard.is_up() {
            guard.write(&format!("arriving from {from}"))?;
        }
        self.file.write(&text(waiter))?;
        manager.reload().await?;
        if !manager.unit(&self.unit).await?.is_down() {
            return Err(Error::Changed { unit: self.unit.clone(), what: "started" });
        }
        manager.start(&self.unit, Mode::Replace).await?;
        let unit = manager.wait(&self.unit, STARTS, |unit| unit.main > 1).await?;
        if unit.state != "activating" || !unit.drop_ins.iter().any(|path| path == self.file.path())
        {
            return Err(Error::NotTaken { unit: self.unit.clone(), path: self.file.path().into() });
        }
        Ok(i32::try_from(unit.main).unwrap_or(0))
    }

    /// Makes the container's monitor the main process of the unit, and has its own settings hold again. A guard that an earlier
    /// move has left goes.
    ///
    /// # Errors
    /// The unit has stopped, or systemd does not take the monitor. Calling again is safe, also after a success.
    pub async fn hand_over(&self, manager: &Manager, monitor: i32) -> Result<(), Error> {
        let monitor = u32::try_from(monitor).unwrap_or(0);
        let unit = manager.unit(&self.unit).await?;
        if unit.is_down() || unit.main <= 1 {
            self.forget(manager).await?;
            return Err(Error::Changed { unit: self.unit.clone(), what: "stopped" });
        }
        if unit.main != monitor {
            let (waiter, words) = (unit.main, format!("MAINPID={monitor}\nREADY=1"));
            let failed = |source| Error::Notify { unit: self.unit.clone(), source };
            notify::send(waiter, &words).map_err(failed)?;
            let is_main = |unit: &crate::Unit| unit.main == monitor && unit.state == "active";
            manager.wait(&self.unit, READY, is_main).await?;
            // It is not the main process any more, so its end means nothing.
            let _ = kill(Pid::from_raw(i32::try_from(waiter).unwrap_or(i32::MAX)), Signal::SIGTERM);
        }
        self.forget(manager).await
    }

    fn guard(&self) -> Guard {
        Guard::of(self.unit.clone())
    }

    /// Removes the drop-in and the guard.
    async fn forget(&self, manager: &Manager) -> Result<(), Error> {
        let guarded = self.guard().forget()?;
        if self.file.remove()? || guarded {
            manager.reload().await?;
        }
        Ok(())
    }

    /// Stops the unit, whose container has not come or is removed, and removes the drop-in. The guard stays if it is to be
    /// `kept`: it was there before, or it is not known where the container runs. Absent means done.
    ///
    /// # Errors
    /// systemd refuses, or the file stays. Calling again is safe.
    pub async fn end(&self, manager: &Manager, kept: bool) -> Result<(), Error> {
        let unit = manager.unit(&self.unit).await?;
        // Without the drop-in what runs is not ours.
        if unit.drop_ins.iter().any(|path| path == self.file.path()) {
            manager.stop(&self.unit, STOPS).await?;
        }
        let lowered = !kept && self.guard().forget()?;
        if self.file.remove()? || lowered {
            manager.reload().await?;
        }
        Ok(())
    }
}

fn text(waiter: &[PathBuf]) -> String {
    let quoted = |word: &PathBuf| {
        let text = value(&word.to_string_lossy());
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$"))
    };
    let command: Vec<String> = waiter.iter().map(quoted).collect();
    // The empty values take back what the unit says.
    format!(
        "# Written by netmig: a container of this unit arrives. Its next start is an ordinary one.\n\
         [Unit]\n\
         AssertPathExists=\n\
         JobTimeoutSec=infinity\n\
         JobRunningTimeoutSec=infinity\n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=all\n\
         ExecCondition=\n\
         ExecStartPre=\n\
         ExecStart=\n\
         ExecStart={}\n\
         ExecStartPost=\n\
         ExecStop=\n\
         ExecStopPost=\n\
         Restart=no\n\
         TimeoutStartSec=infinity\n\
         WatchdogSec=0\n",
        command.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_replaced_whatever_its_path() {
        let text = text(&["/opt/a \"b\" 5%/$x".into(), "--wait".into()]);
        let line = "\nExecStart=\nExecStart=\"/opt/a \\\"b\\\" 5%%/$$x\" \"--wait\"\n";
        assert!(text.contains(line), "{text}");
    }
}
