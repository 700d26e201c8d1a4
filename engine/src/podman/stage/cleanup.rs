//! Removes what a staging has made, from the process that staged or from any later one.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use tokio::task::spawn_blocking;

use super::lost_network::{self, Interfaces};
use super::made_namespaces::{self, NamespaceWatch};
use super::shim_socket::{ShimSocket, listen};
use super::work_dir::WorkDir;
use super::{Error, import, runtime_state};
use crate::Kind;
use crate::podman::Podman;
use checkpoint::shim::messages::ToShim;

/// How long podman may take to give up by itself before it is killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a restore may take that no process waits for any more.
const RESTORE: Duration = Duration::from_secs(60);

/// Between two looks at processes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Removes a container that was staged with this working directory, restored or not, and
/// everything that was made for it. Absent means done; calling again is safe.
///
/// Only a container that the working directory names is removed, or, when the directory is gone
/// (a reboot empties `/run`), one whose restore podman has not finished: it was imported after `since`, when
/// the migration began in seconds since 1970. podman finishes a restore only after the commit. So a container
/// of the same ID that lives here rightfully stays.
///
/// # Errors
/// [`Error::Remove`] when podman fails, [`Error::Work`] when the directory stays.
pub(in crate::podman) async fn abort_by_id(
    podman: &Podman,
    id: &str,
    work: &Path,
    since: Option<u64>,
) -> Result<(), Error> {
    let work = WorkDir { dir: work.to_path_buf() };
    let ours = work.owns(id);
    if ours {
        end_watched(&work).await;
        // A runtime thaws what it kills: nothing of an aborted copy may run.
        work.kill_cgroup(id).await;
    }
    let remove = |source| Error::Remove { engine: Kind::Podman, id: id.to_owned(), source };
    let is_left = async || podman.is_half_restored(id, since).await.map_err(remove);
    if ours {
        made_namespaces::wait_unused(&work).await;
        let was_lost = note_network(podman, id, &work).await;
        let removed = podman.remove(id).await;
        // podman complains of a network that was not complete, and removes the container.
        let is_gone = was_lost && removed.is_err() && matches!(podman.exists(id).await, Ok(false));
        if !is_gone {
            removed.map_err(remove)?;
        }
        runtime_state::forget(id).await;
        give_back_namespaces(podman, id, &work).await;
    } else if !work.dir.exists() && is_left().await? {
        podman.remove(id).await.map_err(remove)?;
    }
    if ours {
        work.remove_cgroup(id).await;
        work.remove_persist(id);
        work.remove_console();
    }
    work.remove()
}

/// Makes a network known to podman that a killed podman has made for the container and not noted. Returns whether there
/// may be one. What cannot be found out is told of, and the container removed nevertheless.
async fn note_network(podman: &Podman, id: &str, work: &WorkDir) -> bool {
    if !lost_network::may_be_lost(id) {
        return false;
    }
    let info = match podman.info().await {
        Ok(info) => info,
        Err(error) => {
            tracing::warn!(id, %error, "a network of the copy may stay");
            return false;
        }
    };
    let (own_id, interfaces) = (id.to_owned(), Interfaces::read(work));
    let noted = spawn_blocking(move || lost_network::note(&info, &own_id, &interfaces)).await;
    match noted {
        Ok(Ok(noted)) => noted,
        Ok(Err(error)) => {
            tracing::warn!(id, %error, "a network of the copy may stay");
            false
        }
        Err(_) => false,
    }
}

/// Removes the network namespaces that a killed podman has made and not noted. What cannot be found out is told of.
async fn give_back_namespaces(podman: &Podman, id: &str, work: &WorkDir) {
    if !made_namespaces::are_noted(work) {
        return;
    }
    let given = async {
        let (info, work) = (podman.info().await?, work.clone());
        spawn_blocking(move || made_namespaces::give_back(&info, &work)).await.unwrap_or(Ok(()))
    };
    if let Err(error) = given.await {
        tracing::warn!(id, %error, "a network namespace of the copy may stay");
    }
}

/// Ends podman, and notes which network namespaces it makes until then.
async fn end_watched(work: &WorkDir) {
    let podman = work.podman().and_then(|pid| u32::try_from(pid.as_raw()).ok());
    let Some(watch) = NamespaceWatch::begin(podman) else { return end_podman(work).await };
    tokio::select! {
        () = end_podman(work) => watch.note_made(work),
        () = watch.note(work) => {}
    }
}

/// Ends the shim and the podman above it. Neither is killed while it can end by itself: podman
/// cleans up best itself, and below the shim CRIU may be at work. A shim that has lost its
/// connection calls again and again once that is over.
async fn end_podman(work: &WorkDir) {
    if work.podman().is_none() && work.shim().is_none() {
        return;
    }
    let patience = if work.restore_began() { RESTORE } else { PATIENCE };
    if let Ok(listener) = listen(&work.socket()) {
        tokio::select! {
            link = ShimSocket::accept(&listener) => {
                if let Ok(mut link) = link {
                    // Gone meanwhile is as good.
                    let _ = link.send(&ToShim::Abort).await;
                }
            }
            () = both_gone(work) => {}
            () = tokio::time::sleep(patience) => {}
        }
    }
    if tokio::time::timeout(PATIENCE, both_gone(work)).await.is_ok() {
        return;
    }
    if let Some(pid) = work.podman() {
        // podman leads a session of its own, so its group is its own too.
        let _ = killpg(pid, Signal::SIGKILL);
        import::wait_gone(pid, PATIENCE).await;
    }
}

async fn both_gone(work: &WorkDir) {
    while work.podman().is_some() || work.shim().is_some() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
