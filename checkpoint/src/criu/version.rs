//! The installed version of CRIU, and whether it works on this kernel.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;

/// `criu --version` takes a few milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// A version of CRIU, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number, 0 where CRIU prints none.
    pub patch: u32,
}

impl Version {
    /// The least that netmig works with.
    pub const MINIMUM: Self = Self { major: 4, minor: 1, patch: 0 };
    /// The least that can dump sockets on kernels from 6.16 on, where SO_PASSCRED is refused for
    /// internet sockets.
    pub const FOR_LINUX_6_16: Self = Self { major: 4, minor: 2, patch: 0 };

    /// Reads the output of `criu --version`: a line `Version: 4.2.1`, also `4.2-rc1`.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let text = output.lines().find_map(|l| l.strip_prefix("Version:"))?.trim();
        Self::numbers(text)
    }

    /// Returns the leading numbers of `4.2.1`, `4.2-rc1` or `6.18.5+deb14-amd64`.
    fn numbers(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            part[..digits].parse::<u32>().ok()
        });
        let major = numbers.next()??;
        let minor = numbers.next()??;
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Runs `program --version` and reads what it prints. It also brings CRIU and its libraries
/// into memory.
///
/// # Errors
/// When it cannot be run, prints no version, or takes longer than 10 s.
pub async fn version(program: &Path) -> Result<Version, Error> {
    let run = tokio::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, run)
        .await
        .map_err(|_| Error::Timeout { program: program.into(), seconds: LIMIT.as_secs() })?
        .map_err(|source| Error::Run { program: program.into(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text).ok_or_else(|| Error::Unparsable {
        program: program.into(),
        output: text.chars().take(200).collect(),
    })
}

/// Refuses a CRIU that cannot dump on a kernel of this release (`uname -r`).
///
/// # Errors
/// [`Error::TooOld`], naming the version that is needed.
pub fn check_kernel(found: Version, release: &str) -> Result<(), Error> {
    let new_kernel =
        Version::numbers(release).is_none_or(|kernel| (kernel.major, kernel.minor) >= (6, 16));
    let needed = if new_kernel { Version::FOR_LINUX_6_16 } else { Version::MINIMUM };
    if found < needed {
        return Err(Error::TooOld { found, needed, kernel: release.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    #[test]
    fn reads_what_criu_prints() {
        assert_eq!(Version::parse("Version: 4.2.1\n"), Some(v(4, 2, 1)));
        assert_eq!(Version::parse("Version: 4.1\nGitID: v4.1-12-gabc\n"), Some(v(4, 1, 0)));
        assert_eq!(Version::parse("Version: 4.2-rc1\n"), Some(v(4, 2, 0)));
        assert_eq!(Version::parse("criu 4"), None);
        assert_eq!(Version::parse("Version: \u{660}.1"), None);
    }

    #[test]
    fn newer_kernels_need_a_newer_criu() {
        assert!(check_kernel(v(4, 1, 0), "6.12.9+deb13-amd64").is_ok());
        assert!(check_kernel(v(4, 0, 9), "6.12.9").is_err());
        assert!(check_kernel(v(4, 1, 1), "6.16.0").is_err());
        assert!(check_kernel(v(4, 2, 0), "6.18.5").is_ok());
        assert!(check_kernel(v(4, 1, 1), "7.0").is_err());
        assert!(check_kernel(v(4, 1, 1), "strange").is_err());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = version(Path::new("/nonexistent/criu")).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/criu"), "{error}");
    }
}
