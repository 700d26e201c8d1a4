//! Memory that follows a container which runs here already, and what is done when it is lost.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checkpoint::lazy_pages::{self, LazyPages, State};
use engine::Engine;
use state::cause::chain;
use state::directories::Directories;
use tokio::task::block_in_place;

use crate::offer::Offer;

/// How long killed tasks may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// Between two looks at memory that another agent-server watched over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The memory of one container that follows it.
#[derive(Debug)]
pub struct FollowingMemory {
    is_lost: Arc<AtomicBool>,
}

impl FollowingMemory {
    /// Watches until all of it is in place. If it is lost, the container is killed, and the log says so.
    pub fn watch(pages: LazyPages, offer: &Offer, run: &Path) -> Self {
        let is_lost = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_lost);
        let (run, migration) = (run.to_owned(), offer.migration);
        let (id, name) = (offer.id.clone(), offer.name.clone());
        tokio::spawn(async move {
            match pages.finish().await {
                Ok(true) => tracing::debug!("{migration}: all memory of {name} is in place"),
                Ok(false) => {
                    told.store(true, Ordering::SeqCst);
                    tell(&run, &id, &name);
                }
                Err(e) => tracing::error!(
                    "{migration}: it is not known whether container {name} has all of its memory; stop it: {}",
                    chain(&e)
                ),
            }
        });
        Self { is_lost }
    }

    /// Returns whether it was lost, and the container killed.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }
}

/// Kills the containers whose memory is lost, and returns whether that of others follows still.
///
/// # Errors
/// The run directory cannot be read, or a container cannot be killed.
pub fn settle_lost(directories: &Directories, engine: &dyn Engine) -> io::Result<bool> {
    let unfinished = lazy_pages::unfinished(&directories.run)?;
    for (id, _) in unfinished.iter().filter(|(_, state)| *state == State::Lost) {
        let running = engine.cgroup(id);
        let name = running.as_ref().map_or(id, |(name, _)| name);
        if let Some((_, cgroup)) = &running {
            cgroup.kill(Instant::now() + KILLED).map_err(io::Error::other)?;
        }
        tell(&directories.run, id, name);
    }
    Ok(unfinished.iter().any(|(_, state)| *state == State::UnderWay))
}

/// Watches over memory that follows containers of an agent-server which has ended.
pub async fn watch_others(directories: Directories, engine: Arc<dyn Engine>) {
    loop {
        match block_in_place(|| settle_lost(&directories, &*engine)) {
            Ok(true) => tokio::time::sleep(LOOK_EVERY).await,
            Ok(false) => return,
            Err(e) => {
                tracing::error!("memory that follows containers: {}", chain(&e));
                return;
            }
        }
    }
}

/// Says that a container was killed.
fn tell(run: &Path, id: &str, name: &str) {
    tracing::error!(
        "container {name} ({id}) was killed: memory that was to follow it to this host is lost, because the server of pages and its \
         holder were killed or could not go on (lazy-pages.log in {} has their words); start the container anew, unless this log says that its original is kept",
        run.display()
    );
    if let Err(e) = lazy_pages::forget_lost(run, id) {
        tracing::warn!("{}", chain(&e));
    }
}
