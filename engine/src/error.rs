//! What can go wrong with an engine.

use std::io;

use crate::{Kind, podman};

/// What can go wrong with an engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container of that name or ID.
    #[error("no container {name:?} on this host; `{engine} ps` lists the running ones")]
    NoSuchContainer {
        /// The engine that was asked.
        engine: Kind,
        /// What was asked for.
        name: String,
    },
    /// The text cannot be a container's name.
    #[error("{name:?} cannot be a container's name or ID")]
    BadName {
        /// What was asked for, shortened.
        name: String,
    },
    /// Not an image's or a container's full ID.
    #[error("{id:?} is not a full ID of 64 hexadecimal digits")]
    BadId {
        /// What was given, shortened.
        id: String,
    },
    /// The process with which the engine watches a container could not be ended.
    #[error("cannot end process {pid}, by which the engine watches container {id}")]
    Monitor {
        /// The container.
        id: String,
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// podman failed, or answered in a form that is not known.
    #[error(transparent)]
    Podman(#[from] podman::Error),
}

impl Error {
    /// Returns the error for a text that is not a full ID.
    pub(crate) fn bad_id(id: &str) -> Self {
        Self::BadId { id: shortened(id) }
    }

    /// Returns the error for a text that is not a container's name.
    pub(crate) fn bad_name(name: &str) -> Self {
        Self::BadName { name: shortened(name) }
    }
}

/// Returns the first characters of a text from outside, for a message.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
