//! Describes the state of a lab after a test has failed.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use super::Lab;
use crate::subprocess::tail;

/// The time limit for each question to a host.
const LIMIT: Duration = Duration::from_secs(10);

impl Lab {
    /// Returns the containers of each host and the ends of the logs of programs that ran in the background.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for host in self.hosts() {
            let listed = host
                .command("podman")
                .args(["ps", "--all", "--no-trunc", "--format"])
                .args(["{{.Names}} {{.Image}} {{.Status}}"])
                .limit(LIMIT)
                .output()
                .map_or_else(|error| error.to_string(), |output| output.text());
            if !listed.is_empty() {
                let _ = writeln!(text, "containers on {}:\n{listed}", host.name());
            }
        }
        let mut logs: Vec<_> =
            fs::read_dir(self.logs()).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.sort();
        for path in logs.iter().filter(|path| path.extension().is_some_and(|kind| kind == "err")) {
            let contents = fs::read_to_string(path).unwrap_or_default();
            // The log of a client that has only reported that it is ready does not help.
            if !matches!(contents.trim(), "" | "ready") {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let _ = writeln!(text, "{name}:\n{}", tail(contents.trim()));
            }
        }
        text
    }
}
