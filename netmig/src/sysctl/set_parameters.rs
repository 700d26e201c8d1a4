//! Kernel parameters of a network namespace (`/proc/sys/net`, sysctl(8)).
//!
//! There is no other way to set them than by these files, and which namespace a file belongs to is told by the
//! thread that opens it (`net_ctl_header_lookup` in `net/sysctl_net.c`). Parameters that are the whole
//! kernel's are absent from namespaces other than the first, or cannot be written there.

use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use crate::netns::{self, Namespace};

/// Where they are.
const DIRECTORY: &str = "/proc/sys";
/// How the names of a network's parameters begin.
const NETWORK: &str = "net.";

/// Why a parameter could not be set.
#[derive(Debug, Error)]
pub enum EngineOptionError {
    /// The namespace cannot be used.
    #[error("cannot set kernel parameters")]
    Namespace(#[from] netns::Error),
    /// The kernel refused it.
    #[error(
        "this kernel refuses {name}={value} for {container}; create the container without this --sysctl"
    )]
    Refused {
        /// The parameter.
        name: String,
        /// The value.
        value: String,
        /// What the namespace belongs to.
        container: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Namespace {
    /// Sets those of the parameters, given by name and value, that belong to a network namespace;
    /// returns their number.
    ///
    /// # Errors
    /// [`EngineOptionError::Refused`] for the first that this kernel lacks or refuses;
    /// [`EngineOptionError::Namespace`].
    pub fn set_parameters<'a>(
        &self,
        all: impl IntoIterator<Item = (&'a String, &'a String)> + Send,
    ) -> Result<usize, EngineOptionError> {
        self.run(|| {
            let mut set = 0;
            for (name, value) in all.into_iter().filter(|(name, _)| name.starts_with(NETWORK)) {
                let written = file(name).and_then(|path| fs::write(path, value));
                written.map_err(|source| EngineOptionError::Refused {
                    name: name.clone(),
                    value: value.clone(),
                    container: self.name().to_owned(),
                    source,
                })?;
                set += 1;
            }
            Ok(set)
        })?
    }
}

/// Returns the file of a parameter. A dot in a name separates directories.
fn file(name: &str) -> io::Result<PathBuf> {
    let is_plain = |part: &str| !part.is_empty() && !part.contains(['/', '\0']);
    if !name.split('.').all(is_plain) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Path::new(DIRECTORY).join(name.replace('.', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_a_file_and_nowhere_else() {
        let path = file("net.ipv4.ping_group_range").unwrap();
        assert_eq!(path, Path::new("/proc/sys/net/ipv4/ping_group_range"));
        for name in ["net..ipv4", "net.", "net./etc/x", "net.ipv4/../../kernel.x", ".net"] {
            assert!(file(name).is_err(), "{name}");
        }
    }
}
