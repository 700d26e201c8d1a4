//! Keeps a unit from being started on a host that its container leaves, and has left.
//!
//! A unit that is masked loses all its settings as soon as systemd reads them again, also those of a service that runs:
//! `Delegate=` goes, and limits of the container with it. So the guard is an assertion that does not hold, which concerns
//! starts alone, together with settings by which systemd takes the end of the main process for a stop: it neither starts
//! another container nor runs commands that remove the container's volumes.

use std::path::Path;
use std::time::Duration;

use crate::drop_in::{DropIn, PERSISTENT, value};
use crate::manager::{Manager, Mode};
use crate::{Error, UnitName};

/// The name of the drop-in file. It is read after those of most others.
const FILE: &str = "90-netmig-moved.conf";
/// How long a unit may take to be down when its processes are gone.
const DOWN: Duration = Duration::from_secs(30);

/// A unit that must not be started here.
#[derive(Clone, Debug)]
pub struct Guard {
    unit: UnitName,
    file: DropIn,
}

impl Guard {
    /// Returns the guard of a unit, whether it is up or not.
    #[must_use]
    pub fn of(unit: UnitName) -> Self {
        let file = DropIn::of(&unit, Path::new(PERSISTENT), FILE);
        Self { unit, file }
    }

    /// Returns the unit.
    #[must_use]
    pub fn unit(&self) -> &UnitName {
        &self.unit
    }

    /// Returns the path of the file, for people.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns whether the guard is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.file.path().exists()
    }

    /// Puts the guard up: from here on nothing starts the unit. It goes on running. `why` is what became of the unit, for
    /// people, such as `moved to b`.
    ///
    /// # Errors
    /// The file cannot be written, systemd does not take it, or the unit has stopped.
    pub async fn raise(&self, manager: &Manager, why: &str) -> Result<(), Error> {
        let before = manager.unit(&self.unit).await?;
        self.write(why)?;
        manager.reload().await?;
        let unit = manager.unit(&self.unit).await?;
        if unit.restart != "no" || !unit.drop_ins.iter().any(|path| path == self.path()) {
            return Err(Error::NotTaken { unit: self.unit.clone(), path: self.path().to_owned() });
        }
        if unit.state != "active" || unit.main != before.main {
            return Err(Error::Changed { unit: self.unit.clone(), what: "stopped or restarted" });
        }
        Ok(())
    }

    /// Writes the file. systemd has to read its units again.
    pub(crate) fn write(&self, why: &str) -> Result<(), Error> {
        self.file.write(&self.text(why))
    }

    fn text(&self, why: &str) -> String {
        let (unit, path, why) = (&self.unit, self.path().display(), value(why));
        format!(
            "# Written by netmig, so that this host does not start a second container of this unit.\n\
             # Where its container does not run elsewhere, remove this file and run systemctl daemon-reload.\n\
             [Unit]\n\
             Description={unit}, {why} by netmig\n\
             AssertPathExists=!{path}\n\
             [Service]\n\
             Restart=no\n\
             ExecStop=\n\
             ExecStopPost=\n\
             SuccessExitStatus=SIGKILL\n"
        )
    }

    /// Takes the guard down. A start that it has refused meanwhile, at boot for example, is made up for.
    ///
    /// # Errors
    /// The file stays, or systemd refuses. Calling again is safe.
    pub async fn lower(&self, manager: &Manager) -> Result<(), Error> {
        let refused = manager.unit(&self.unit).await?.is_start_refused;
        let was_up = self.file.remove()?;
        let unit = manager.unit(&self.unit).await?;
        if was_up || unit.drop_ins.iter().any(|path| path == self.path()) {
            manager.reload().await?;
        }
        if refused && manager.unit(&self.unit).await?.is_down() {
            manager.start(&self.unit, Mode::Replace).await?;
        }
        Ok(())
    }

    /// Removes the file alone. systemd has to read its units again.
    ///
    /// # Errors
    /// The file stays.
    pub(crate) fn forget(&self) -> Result<bool, Error> {
        self.file.remove()
    }

    /// Waits until the unit is down, whose processes were killed, and stops it otherwise. Other units stay as they are.
    ///
    /// # Errors
    /// systemd refuses, or the unit does not go down in time.
    pub async fn settle(&self, manager: &Manager) -> Result<(), Error> {
        manager.stop(&self.unit, DOWN).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_assertion_is_that_its_file_is_not_there() {
        let guard = Guard::of("web.service".parse().unwrap());
        let text = guard.text("moved to b\n[Service]");
        assert!(
            text.contains(&format!("\nAssertPathExists=!{}\n", guard.path().display())),
            "{text}"
        );
        assert_eq!(text.matches("\n[Service]\n").count(), 1, "{text}");
        assert_eq!(
            guard.path(),
            Path::new("/etc/systemd/system/web.service.d/90-netmig-moved.conf")
        );
    }
}
