//! Memory that follows a container which runs here already, and what is done when it is lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use checkpoint::lazy_pages::{self, LazyPages, State};
use engine::Engine;
use state::cause::{Cause, chain};
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
/// The run directory cannot be read, the engine does not say whether it runs a container, or that cannot be killed. The others are
/// killed all the same.
pub async fn settle_lost(directories: &Directories, engine: &dyn Engine) -> Result<bool, Cause> {
    let unfinished = lazy_pages::unfinished(&directories.run)?;
    let mut outcome = Ok(());
    for (id, _) in unfinished.iter().filter(|(_, state)| *state == State::Lost) {
        match kill(engine, id).await {
            Ok(name) => tell(&directories.run, id, &name),
            Err(e) => outcome = outcome.and(Err(e)),
        }
    }
    outcome.map(|()| unfinished.iter().any(|(_, state)| *state == State::UnderWay))
}

/// Kills a container, and returns its name, or its ID if the engine has none of that ID.
async fn kill(engine: &dyn Engine, id: &str) -> Result<String, Cause> {
    if !engine.exists(id).await? {
        return Ok(id.to_owned());
    }
    let container = engine.inspect(id).await?;
    // One without a process has ended.
    if let Ok(cgroup) = Cgroup::of_pid(container.pid, id) {
        block_in_place(|| cgroup.kill(Instant::now() + KILLED))?;
    }
    Ok(container.name)
}

/// Watches over memory that follows containers of an agent-server which has ended.
pub async fn watch_others(directories: Directories, engine: Arc<dyn Engine>) {
    loop {
        match settle_lost(&directories, &*engine).await {
            Ok(true) => tokio::time::sleep(LOOK_EVERY).await,
            Ok(false) => return,
            Err(e) => {
                tracing::error!("memory that follows containers: {}", chain(e.as_ref()));
                tokio::time::sleep(LOOK_EVERY * 10).await;
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
