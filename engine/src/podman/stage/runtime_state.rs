//! What an OCI runtime notes of a container, where that outlives the container.
//!
//! A runtime keeps a directory for each container, from its creation to `delete` (crun(1), runc(8)). A restore that is
//! killed together with its runtime leaves it, and podman, which has never known the container to be made, deletes nothing.
//! The next restore of a container of that ID is refused then: it exists already.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::podman::environment;

/// Runtimes, where they keep their state when root runs them, and the file that tells of a container's process.
const RUNTIMES: [(&str, &str, &str); 2] =
    [("crun", "/run/crun", "status"), ("runc", "/run/runc", "state.json")];
/// How long a runtime may take.
const DELETE: Duration = Duration::from_secs(10);

/// Has each runtime forget a container that podman does not know. A runtime refuses as long as the container has
/// processes, which are not ended here. Absent means done.
pub(super) async fn forget(id: &str) {
    for (runtime, directory, status) in RUNTIMES {
        let path = Path::new(directory).join(id);
        if path.is_dir() {
            // Killed before it has noted a process, it has made none. By itself it takes that for an error.
            let is_empty = !path.join(status).exists();
            delete(runtime, id, is_empty.then_some("--force"), &path).await;
        }
    }
}

async fn delete(runtime: &str, id: &str, force: Option<&str>, state: &Path) {
    let mut command = Command::new(runtime);
    command
        .arg("delete")
        .args(force)
        .args(["--", id])
        .env_clear()
        .envs(environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let told = match tokio::time::timeout(DELETE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            tracing::info!(id, runtime, "the runtime's state of a dead restore was removed");
            return;
        }
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not end within {} s", DELETE.as_secs()),
    };
    tracing::warn!(id, runtime, path = %state.display(), told, "the runtime's state stays");
}
