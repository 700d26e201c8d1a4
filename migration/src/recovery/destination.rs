//! What a former agent-server of this host left, settled by the guardian of each arrival, or at the
//! next start before any source is listened to.
//!
//! ```text
//! last record    what is done (ownership::destination::recovery)
//! Arrival        undo: the copy is frozen and cut off, nobody heard it; its source hears that none exists
//! Activated      it is the container: the engine takes it over, while its shim still waits; a copy
//!                that is gone is remembered as lost
//! HandedOver     the same: the journal goes to the archive
//! ```
//!
//! A source that asks hears the truth afterwards, and nothing of a copy that could neither be
//! removed nor handed over: such a migration stays in doubt.

mod arrived;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::cgroup::Cgroup;
use engine::{Engine, Kind};
use netmig::bridge_port::Port;
use netmig::container_network::{ContainerNetwork, SiblingAddresses};
use netmig::flow::{Conntrack, Flow};
use netmig::netns::Namespace;
use netmig::peer_number::PeerNumber;
use netmig::table::Table;
use ownership::destination::{Found, Recovery, recovery};
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::directories::Directories;
use state::journal::{self, Journal, Record};
use steering::flow_counters;
use steering::moved_containers;
use steering::peer_numbers::{self, HostId};
use steering::port_forward::{self, Note};
use steering::tunnels::{self, Claim, SteeringLock};
use tokio::task::block_in_place;

use self::arrived::Arrived;
use crate::destination::following_memory::{settle_lost, watch_others};
use crate::destination::outstanding_pages;
use crate::destination::prepared_stage::sweep;
use crate::destination::spool;
use crate::destination::work_directory::{STAGE, tidy};

/// How long the shim of a copy may take to find us: it tries every 50 ms.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// Between two attempts of a guardian.
const RETRY: Duration = Duration::from_secs(2);
/// How long it tries; after that it is left to the next start of agent-server.
const PERSISTENCE: Duration = Duration::from_secs(3600);

/// How long another agent may keep the container's lock.
const LOCK: Duration = Duration::from_secs(20);

/// It is not known whether the engine runs the container.
#[derive(Debug, thiserror::Error)]
#[error("{0} does not say whether it runs the container; it is asked again")]
struct Unclear(Kind);

/// The container has no such thing.
#[derive(Debug, thiserror::Error)]
#[error("the copy has no {0}")]
struct Lacking(&'static str);

/// What is needed to settle arrivals. The engine's configuration is not asked for beforehand: to tell it, podman
/// would wait for the containers that are still staged.
struct Scene<'a> {
    directories: &'a Directories,
    engine: &'a dyn Engine,
}

/// Settles every arrival that was left, and returns whether it could. What cannot be settled is logged, and tried again
/// at the next start. An arrival that another process works on counts as settled.
///
/// # Errors
/// The directory of journals cannot be read.
pub async fn run(
    directories: &Directories,
    engine: &Arc<dyn Engine>,
) -> Result<bool, journal::Error> {
    let all = journal::unfinished(&directories.state)?;
    let mut settled = settle_all(directories, &**engine, all).await;
    settled &= outstanding_pages::settle_all(directories).await?;
    sweep(directories, engine);
    if let Err(e) = settle_lost(directories, &**engine).await {
        tracing::error!("memory that followed containers: {}", chain(e.as_ref()));
        settled = false;
    }
    if let Err(e) = flow_counters::sweep(directories) {
        tracing::error!("{}", chain(e.as_ref()));
        settled = false;
    }
    Ok(settled)
}

/// Starts a guardian, in this process, for each arrival that [`run`] has left: its engine gave no answer, its disk was
/// full, or another process had its journal open. Its source is told nothing until it is settled. Memory that follows
/// containers is watched over, too.
///
/// # Errors
/// The directory of journals cannot be read.
pub fn guard_remaining(
    directories: &Directories,
    engine: &Arc<dyn Engine>,
) -> Result<(), journal::Error> {
    tokio::spawn(watch_others(directories.clone(), Arc::clone(engine)));
    for path in journal::unfinished(&directories.state)? {
        // A damaged one was told of; those of moves to other hosts are agent-client's.
        let is_arrival =
            journal::read(&path).is_ok_and(|records| Arrived::read(&records).is_some());
        if !is_arrival {
            continue;
        }
        let (directories, engine) = (directories.clone(), Arc::clone(engine));
        tokio::spawn(async move { guard(&directories, &*engine, path).await });
    }
    Ok(())
}

/// Settles the arrival of one journal, and tries again what a full disk or a busy engine forbids.
pub async fn guard(directories: &Directories, engine: &dyn Engine, path: PathBuf) {
    let give_up = Instant::now() + PERSISTENCE;
    loop {
        settle_all(directories, engine, vec![path.clone()]).await;
        if !path.exists() || Instant::now() >= give_up {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Settles the arrivals of some journals, as far as nobody is at work on them. Returns whether none of them failed.
async fn settle_all(
    directories: &Directories,
    engine: &dyn Engine,
    journals: Vec<PathBuf>,
) -> bool {
    let mut all_settled = true;
    let scene = Scene { directories, engine };
    let mut activated = Vec::new();
    let mut others = Vec::new();
    for path in journals {
        match journal::claim(&path) {
            Ok(Some((journal, records))) => match Arrived::read(&records) {
                Some(arrived) if arrived.activated => activated.push((arrived, journal)),
                Some(arrived) => others.push((arrived, journal)),
                None => {}
            },
            Ok(None) => {}
            Err(e) => {
                tracing::error!("{}", chain(&e));
                all_settled = false;
            }
        }
    }
    // The patience of a shim is short, so those that wait for their container to be taken over come
    // first; the engine can tell of the others once no container is staged any more.
    for (arrived, journal) in activated {
        let lock = match arrived.lock(&scene).await {
            Ok(lock) => lock,
            Err(e) => {
                all_settled &= arrived.note(Err(e));
                continue;
            }
        };
        match arrived.take_over(&scene).await {
            Ok(pid) => all_settled &= arrived.note(arrived.hand_over(&scene, journal, pid).await),
            Err(e) => {
                tracing::debug!("{}: {}", arrived.migration, chain(e.as_ref()));
                others.push((arrived, journal));
            }
        }
        drop(lock);
    }
    others.sort_by_key(|(arrived, _)| arrived.activated);
    for (arrived, journal) in others {
        let settled = async {
            let _lock = arrived.lock(&scene).await?;
            arrived.settle(&scene, journal).await
        };
        all_settled &= arrived.note(settled.await);
    }
    all_settled
}

impl Arrived {
    /// Logs why it could not be settled; returns whether it could.
    fn note(&self, result: Result<(), Cause>) -> bool {
        if let Err(e) = &result {
            tracing::error!("{}: container {}: {}", self.migration, self.name, chain(e.as_ref()));
        }
        result.is_ok()
    }

    /// Waits for the container's lock.
    async fn lock(&self, scene: &Scene<'_>) -> Result<ContainerLock, Cause> {
        let run = &scene.directories.run;
        Ok(ContainerLock::settle(run, &self.container, &self.name, LOCK).await?)
    }

    /// Takes a copy that is still staged over, and lets the engine have it; gives its first process.
    async fn take_over(&self, scene: &Scene<'_>) -> Result<i32, Cause> {
        let work = scene.directories.migration(self.migration).join(STAGE);
        let (id, name) = (&self.container, &self.name);
        let mut staged = scene.engine.resume_stage(id, name, &work, TAKE_OVER).await?;
        let pid = staged.restored().ok_or(Lacking("processes"))?.pid;
        staged.keep().await?;
        self.set_going(scene, pid)?;
        Ok(staged.commit().await?.pid)
    }

    /// Finds out what became of the copy, and does what follows.
    async fn settle(&self, scene: &Scene<'_>, mut journal: Journal) -> Result<(), Cause> {
        let (found, pid) =
            if self.activated { self.look(scene).await } else { (Found::Gone, None) };
        match recovery(self.activated, found) {
            Recovery::HandOver => {
                if let Some(pid) = pid {
                    self.set_going(scene, pid)?;
                }
                self.hand_over(scene, journal, pid.unwrap_or(0)).await
            }
            Recovery::Remove => {
                tracing::info!("{}: removing what is left of {}", self.migration, self.name);
                self.undo(scene).await?;
                Ok(journal.end()?)
            }
            Recovery::NoteLoss => {
                tracing::error!(
                    "{}: the copy of container {} ran here, and is gone; its original is kept frozen where \
                     it came from until a person decides (agent-client recover --rollback-anyway there)",
                    self.migration,
                    self.name
                );
                self.volumes.tell_that_they_stay(self.migration);
                self.undo(scene).await?;
                journal.append(&Record::Lost)?;
                Ok(journal.archive(&scene.directories.state)?)
            }
            Recovery::TakeOver | Recovery::Wait => Err(Unclear(scene.engine.kind()).into()),
        }
    }

    /// Returns what became of the copy, and its first process if the engine runs it. A container that it has taken over
    /// and that does not run any more has ended here, as any other: by itself, or with the host. One that runs as far as the
    /// engine knows, and has no process, was killed together with the engine's monitor.
    async fn look(&self, scene: &Scene<'_>) -> (Found, Option<i32>) {
        let looked = async {
            let pid = self.runs(scene).await?;
            if pid.is_some_and(|pid| Cgroup::of_pid(pid, &self.container).is_err()) {
                return Ok((Found::Gone, None));
            }
            let is_engines = pid.is_some() || scene.engine.is_restored(&self.container).await?;
            Ok::<_, Cause>((if is_engines { Found::Engine } else { Found::Gone }, pid))
        };
        looked.await.unwrap_or_else(|e| {
            tracing::warn!("{}: {}", self.migration, chain(e.as_ref()));
            (Found::Unclear, None)
        })
    }

    /// Returns the container's first process, if the engine runs it as far as it knows.
    async fn runs(&self, scene: &Scene<'_>) -> Result<Option<i32>, Cause> {
        if !scene.engine.exists(&self.container).await? {
            return Ok(None);
        }
        let container = scene.engine.inspect(&self.container).await?;
        Ok(Some(container.pid).filter(|pid| *pid > 1))
    }

    /// Makes the copy audible and lets it run, should that not have happened.
    fn set_going(&self, scene: &Scene<'_>, pid: i32) -> Result<(), Cause> {
        let namespace = Namespace::of_pid(pid)?;
        let sandbox = ContainerNetwork::open(&namespace)?;
        let interface = sandbox.interfaces().first().ok_or(Lacking("interface"))?;
        let port = Port::of_container(&namespace, &interface.name)?;
        port.unblock()?;
        let note = moved_containers::find(scene.directories, &self.container)?;
        let detours = note.into_iter().flat_map(|note| note.detours);
        let of_this = detours.filter(|detour| is_same(&detour.namespace, pid));
        let left = of_this.map(|detour| detour.towards).collect();
        sandbox
            .seed_neighbours(&port, &SiblingAddresses { left, ..SiblingAddresses::default() })?;
        Ok(Cgroup::of_pid(pid, &self.container)?.resume()?)
    }

    async fn hand_over(
        &self,
        scene: &Scene<'_>,
        mut journal: Journal,
        pid: i32,
    ) -> Result<(), Cause> {
        if let Err(e) = block_in_place(|| self.volumes.sync()) {
            tracing::warn!("{}: {}", self.migration, chain(e.as_ref()));
        }
        // Which flows have become local is not known any more: the source keeps its entries of them.
        journal.append(&Record::HandedOver { pid, local: Vec::new() })?;
        // Packets that the source's hold let go before are not waited for: it died with its process
        // or has been released long ago.
        if let Some(anchor) = peer_numbers::find_number(&scene.directories.state, self.source)? {
            Conntrack::open()?.redirect(&self.addresses, anchor, None)?;
        }
        let others = moved_containers::rejoin(scene.directories, &self.container).await?;
        moved_containers::forget_between(&self.addresses, &others)?;
        self.remove_rules()?;
        let away = |note: &Note| note.id == self.container && note.away().is_some();
        port_forward::remove(scene.directories, away).await?;
        self.claim_source_tunnel(scene).await?;
        tidy(&scene.directories.migration(self.migration))?;
        spool::remove(scene.directories, self.migration)?;
        self.volumes.settle(scene.directories).await?;
        if let Some(service) = &self.service {
            service.hand_over(scene.engine, &self.container).await?;
        }
        journal.archive(&scene.directories.state)?;
        tracing::info!(
            "{}: container {} is {}'s now",
            self.migration,
            self.name,
            scene.engine.kind()
        );
        Ok(())
    }

    /// Removes the rules of the table that were made for this migration alone.
    fn remove_rules(&self) -> Result<(), Cause> {
        let tag = self.migration.to_string().parse()?;
        let mut table = Table::open()?;
        table.remove_notrack(&tag)?;
        table.remove_path_trial(&tag)?;
        Ok(table.remove_flow_counter(&tag)?)
    }

    /// Keeps the tunnel to the source until third hosts lead their flows past it.
    async fn claim_source_tunnel(&self, scene: &Scene<'_>) -> Result<(), Cause> {
        if self.anchors.is_empty() {
            return Ok(());
        }
        let number = |host: &HostId| peer_numbers::number(&scene.directories.state, *host);
        let with = self.anchors.iter().map(number).collect::<Result<_, _>>()?;
        let claim = Claim { with, to: number(&self.source)?, container: self.addresses.clone() };
        let lock = SteeringLock::take(&scene.directories.run).await?;
        claim.write(scene.directories, self.migration, &lock)
    }

    /// Removes the copy and everything made for it.
    async fn undo(&self, scene: &Scene<'_>) -> Result<(), Cause> {
        let work = scene.directories.migration(self.migration);
        let work_of_stage = work.join(STAGE);
        scene.engine.abort_stage(&self.container, &work_of_stage, self.began).await?;
        if let Some(service) = &self.service {
            service.undo(self.activated).await?;
        }
        match self.activated {
            // Somebody has heard of what is in them.
            true => self.volumes.remove_files().await?,
            false => self.volumes.undo(scene.engine).await?,
        }
        let hops = self.hops(scene)?;
        let mut conntrack = Conntrack::open()?;
        let made: Vec<Flow> = conntrack
            .dump(&self.addresses)?
            .into_iter()
            .filter(|flow| flow.leads_to(&self.addresses).is_none())
            .filter(|flow| match flow.anchor(&self.addresses) {
                Some(peer) => hops.contains(&peer),
                None => self.activated, // They may be local to a copy that was the container.
            })
            .collect();
        conntrack.delete(&made)?;
        let of_this = |note: &Note| note.migration == self.migration;
        port_forward::remove(scene.directories, of_this).await?;
        self.remove_rules()?;
        tidy(&work)?;
        spool::remove(scene.directories, self.migration)?;
        for peer in hops {
            tunnels::release(scene.directories, peer, Some(self.migration)).await?;
        }
        Ok(())
    }

    /// Returns the peers to which it made tunnels.
    fn hops(&self, scene: &Scene<'_>) -> Result<Vec<PeerNumber>, peer_numbers::Error> {
        let number = |host: &HostId| peer_numbers::find_number(&scene.directories.state, *host);
        let numbers = self.anchors.iter().chain([&self.source]).map(number);
        numbers.filter_map(Result::transpose).collect()
    }
}

/// Returns whether a path is that of the network namespace of a process.
fn is_same(namespace: &Path, pid: i32) -> bool {
    let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    let own = identity(Path::new(&format!("/proc/{pid}/ns/net")));
    own.is_some() && own == identity(namespace)
}
