//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::UnitName;

/// Why a unit could not be asked or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host has another service manager, or none.
    #[error("process 1 of this host is not systemd")]
    NoSystemd,
    /// The bus does not answer.
    #[error("systemd cannot be reached through D-Bus")]
    Bus(#[source] zbus::Error),
    /// systemd has refused something.
    #[error("systemd has refused to {action}")]
    Refused {
        /// What was asked for.
        action: String,
        /// Its reason.
        #[source]
        source: zbus::Error,
    },
    /// systemd does not do something in time.
    #[error("{unit} is {state} after {seconds} s")]
    Late {
        /// The unit.
        unit: UnitName,
        /// Its state.
        state: String,
        /// How long was waited for another one.
        seconds: u64,
    },
    /// systemd does not have what was written.
    #[error("systemd goes on with other settings of {unit} than those in {path}")]
    NotTaken {
        /// The unit.
        unit: UnitName,
        /// The file with the settings.
        path: PathBuf,
    },
    /// The unit is not what it was a moment before.
    #[error("{unit} was {what} at this moment")]
    Changed {
        /// The unit.
        unit: UnitName,
        /// What became of it.
        what: &'static str,
    },
    /// A file cannot be written or removed.
    #[error("{path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// systemd's socket for notifications does not take one.
    #[error("systemd does not take the word that {unit} is ready")]
    Notify {
        /// The unit.
        unit: UnitName,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}
