//! What a migration owns once it has begun to change this host, from its first record until its last.
//!
//! Each stretch ([`Preparation`](super::preparation::Preparation),
//! [`Interruption`](super::interruption::Interruption), [`Completion`](super::completion::Completion)) has one and
//! hands it on to the next.

mod tunnel_nat;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::images::ImageDir;
use engine::PreparedRemoval;
use netmig::flow::TunnelNat;
use netmig::sockets::receive_buffers;
use netmig::table::RuleTag;
use ownership::source::may_end;
use protocol::message::Message;
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use state::deadline;
use state::guardian::{self, Guardian};
use state::id::MigrationId;
use state::journal::{self, Journal, Record};
use steering::port_forward::{self, Note};
use steering::{moved_containers, opened_firewall, tunnels};
use tokio::task::{JoinHandle, block_in_place};

use super::anchors::Anchors;
use super::dead_connections::InUse;
use super::destination_rpc;
use super::failure::Failure;
use super::memory_service::MemoryService;
use super::plan::Plan;
use super::processor_share::ProcessorShare;
use super::volumes::{self, PlannedVolume};
use crate::context::Context;

/// How long the killed tasks of the original may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// A migration that has begun to change this host.
pub struct Migration<'a> {
    /// What every migration of this host needs.
    pub context: &'a Context,
    /// What both hosts have agreed to.
    pub plan: Plan,
    /// Its journal.
    pub journal: Journal,
    /// Its volatile directory.
    pub work: PathBuf,
    /// How the tunnel is made, to show to people.
    pub tunnel_kind: String,
    /// The third hosts that are anchors of flows.
    pub anchors: Anchors,
    /// What was in use before the interruption.
    pub in_use: InUse,
    /// The engine, started to remove the original.
    pub removal: Option<Box<dyn PreparedRemoval>>,
    /// How much of the processors the original may use.
    pub share: ProcessorShare,
    /// The image that the destination has stored for this move, in a sentence.
    pub sent_image: Option<String>,
    /// Whether CRIU may still be at work on the container: its images must stay until it has ended.
    pub is_dumping: bool,
    is_interruption_noted: bool,
    /// Sends pages that the destination lacks after the decision.
    pub memory_service: Option<MemoryService>,
    pausing: Option<JoinHandle<Result<(), engine::Error>>>,
    exchange: TunnelNat,
    is_unit_guarded: bool,
    _guardian: Guardian,
}

impl<'a> Migration<'a> {
    /// Writes the journal's first record.
    ///
    /// # Errors
    /// The guardian could not be started, or the journal could not be written.
    pub fn begin(context: &'a Context, plan: Plan) -> Result<Self, Cause> {
        let migration = plan.offer.migration;
        let record = Record::Departure {
            migration,
            container: plan.container.id.clone(),
            name: plan.container.name.clone(),
            addresses: plan.addresses.clone(),
            destination: plan.link.destination.to_string(),
            peer: plan.link.host,
            began: journal::now(),
        };
        let path = journal::path(&context.directories.state, migration);
        let guardian = guardian::start(&context.directories, context.background.guardian, &path)?;
        let mut journal = Journal::begin(&context.directories.state, migration, &record)?;
        let volumes = kept_volumes(&plan);
        if !volumes.is_empty() {
            journal.append(&Record::KeptVolumes { volumes })?;
        }
        Ok(Self {
            share: ProcessorShare::new(Arc::clone(&plan.cgroup)),
            context,
            plan,
            journal,
            work: context.directories.migration(migration),
            tunnel_kind: String::new(),
            anchors: Anchors::default(),
            in_use: InUse::default(),
            removal: None,
            sent_image: None,
            is_dumping: false,
            is_interruption_noted: false,
            memory_service: None,
            pausing: None,
            exchange: TunnelNat::default(),
            is_unit_guarded: false,
            _guardian: guardian,
        })
    }

    /// Returns its identity.
    #[must_use]
    pub fn id(&self) -> MigrationId {
        self.plan.offer.migration
    }

    /// Returns the conversation with the destination.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.plan.link.connection
    }

    /// Returns the tag of the rules that hold packets.
    ///
    /// # Errors
    /// Its identity makes no tag, which does not happen.
    pub fn hold_tag(&self) -> Result<RuleTag, Cause> {
        Ok(self.id().to_string().parse()?)
    }

    /// Begins to have the engine record the original as paused, so that it is not restarted here beside the copy: the
    /// destination does not answer, and to the engine the frozen original runs.
    pub fn pause_original(&mut self) {
        if self.pausing.is_some() {
            return;
        }
        if let Err(e) = block_in_place(|| self.journal.append(&Record::Paused)) {
            tracing::warn!("{}", chain(&e));
            return;
        }
        let (engine, id) = (self.context.engine.clone(), self.plan.container.id.clone());
        self.pausing = Some(tokio::spawn(async move { engine.pause(&id).await }));
    }

    /// Waits until the engine has recorded the original as paused, if it was told to. Returns whether it was.
    pub async fn original_paused(&mut self) -> bool {
        let Some(pausing) = self.pausing.take() else { return false };
        match pausing.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("{}", chain(&e)),
            Err(e) => tracing::warn!("{}", chain(&e)),
        }
        true
    }

    /// Kills the original's tasks. Engines and runtimes thaw what they end, and the original may neither run again nor
    /// be started anew by its restart policy.
    ///
    /// # Errors
    /// The engine's monitor could not be ended, or a task is still there after ten seconds.
    pub async fn kill_original(&mut self) -> Result<(), Cause> {
        let id = &self.plan.container.id;
        self.context.engine.ignore_exit(id, self.plan.process.monitor).await?;
        block_in_place(|| self.plan.cgroup.kill(Instant::now() + KILLED))?;
        Ok(())
    }

    /// Notes that volumes of the original stay here, and has the engine remove the original, whose tasks have been killed.
    /// Its unit is down afterwards.
    ///
    /// # Errors
    /// The engine does not remove the container, a note cannot be written, or the unit does not go down.
    pub async fn remove_original(&mut self) -> Result<(), Cause> {
        let of = (self.plan.container.id.as_str(), self.id(), self.plan.link.host);
        volumes::keep(&self.context.directories, of, &kept_volumes(&self.plan))?;
        let id = &self.plan.container.id;
        match self.removal.take() {
            Some(prepared) => prepared.remove(id).await?,
            None => self.context.engine.remove(id).await?,
        }
        match &self.plan.service {
            Some(service) => service.settle().await,
            None => Ok(()),
        }
    }

    /// Tells the user that the container's unit does not start here any more.
    pub fn kept_unit(&self) -> Option<String> {
        let Plan { service, link, .. } = &self.plan;
        service.as_ref().map(|service| service.kept(&link.destination.host))
    }

    /// Removes its volatile directory.
    ///
    /// # Errors
    /// Images are still mounted, or the kernel refuses to remove a file.
    pub fn tidy(&mut self) -> Result<(), Cause> {
        ImageDir::remove_at(&self.work.join("images"))?;
        match std::fs::remove_dir_all(&self.work) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Keeps the container's unit from starting another one here, if it has one.
    ///
    /// # Errors
    /// As for [`PlannedService::guard`](super::service::PlannedService::guard).
    pub async fn guard_unit(&mut self) -> Result<(), Cause> {
        match &self.plan.service {
            Some(service) => {
                self.is_unit_guarded = true;
                service.guard(&mut self.journal, &self.plan.link.destination.host).await
            }
            None => Ok(()),
        }
    }

    /// Notes that the container may be frozen from now on.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn note_interruption(&mut self) -> Result<(), journal::Error> {
        let plan = &self.plan;
        self.journal.append(&Record::Interruption {
            cgroup: plan.cgroup.path().to_owned(),
            port: plan.port.name().to_owned(),
            process: plan.process.clone(),
        })?;
        self.is_interruption_noted = true;
        Ok(())
    }

    /// Slows the original down by one more step. `used` is how many processors it uses. Returns `false` if it has the smallest
    /// share already.
    ///
    /// # Errors
    /// The journal cannot be written, or the kernel refuses the limit.
    pub fn slow_down(&mut self, used: f64) -> Result<bool, Cause> {
        // Recovery finds the container by that.
        if !self.is_interruption_noted {
            self.note_interruption()?;
        }
        self.share.slow_down(&mut self.journal, used)
    }

    /// Has the destination undo its part. A destination that failed has done so; one that cannot be reached
    /// will.
    async fn abort(&mut self) {
        let migration = self.id();
        let connection = self.connection();
        if connection.send(&Message::Abort(migration)).await.is_ok() {
            let _ = connection.receive_aborted(deadline::ANSWER).await;
            return;
        }
        // What was being sent when the time was over can neither be ended nor taken back. A user who
        // tries again at once must not meet what the destination has not removed yet.
        connection.close().await;
        let destination = self.plan.far_end();
        let told = destination_rpc::abort(self.context, &destination);
        match tokio::time::timeout(deadline::ANSWER, told).await {
            Ok(Ok(())) => {}
            other => tracing::debug!(?other, "the destination was not seen to undo its part"),
        }
    }

    /// Undoes everything: the destination drops its part, this host's kernel is as it was.
    ///
    /// `stuck` says what could not be undone of the container, which may still be frozen or cut off. Then its
    /// journal stays, and the guardian goes on with it.
    pub async fn go_back(mut self, cause: Cause, stuck: Vec<String>) -> Failure {
        self.memory_service = None;
        // That the kernel cannot tell does not mean that the container has ended.
        let ended = matches!(self.plan.cgroup.is_populated(), Ok(false));
        let mut leftovers = if ended { Vec::new() } else { stuck.clone() };
        if !ended && let Err(e) = self.share.put_back() {
            leftovers.push(chain(&e));
        }
        self.abort().await;
        self.anchors.withdraw().await;
        // Its rules would keep the table.
        drop(std::mem::take(&mut self.in_use));
        if let Some(removal) = self.removal.take() {
            removal.abandon().await;
        }
        // Larger buffers than before do no harm, so this is no leftover.
        let pids = self.plan.cgroup.pids().unwrap_or_default();
        if let Err(e) = receive_buffers::restore(&pids) {
            tracing::debug!("{}", chain(&e));
        }
        leftovers.extend(self.undo_notes().await);
        if self.original_paused().await {
            let unpaused = self.context.engine.unpause(&self.plan.container.id).await;
            leftovers.extend(unpaused.err().map(|e| chain(&e)));
        }
        if may_end(leftovers.is_empty()) {
            leftovers.extend(self.journal.end().err().map(|e| chain(&e)));
        }
        if !ended && !stuck.is_empty() {
            return Failure::Stuck { container: self.plan.container.name, cause, leftovers };
        }
        let kept: Vec<String> = self.sent_image.into_iter().collect();
        if leftovers.is_empty() && !ended {
            return Failure::undone(cause, kept);
        }
        Failure::RolledBack { cause, ended, leftovers, kept }
    }

    /// Removes files, notes and the tunnel; each whatever comes of the others. Returns what is left.
    async fn undo_notes(&mut self) -> Vec<String> {
        let migration = self.id();
        let directories = &self.context.directories;
        let peer = self.plan.link.peer;
        let of_this = |note: &Note| note.migration == migration;
        let tidied = if self.is_dumping { Ok(()) } else { self.tidy() };
        let unguarded = match &self.plan.service {
            Some(service) if self.is_unit_guarded => service.put_back().await,
            _ => Ok(()),
        };
        let results = [
            tidied,
            unguarded,
            port_forward::remove(directories, of_this).await.map(drop),
            moved_containers::forget_ended(directories, Some(migration)).await,
            opened_firewall::withdraw(directories, migration).await,
            tunnels::release(directories, peer, Some(migration)).await,
        ];
        results.into_iter().filter_map(|result| result.err().map(|e| chain(e.as_ref()))).collect()
    }

    /// Ends the journal: nothing of the migration is left here. Tunnels that carry no flow from here go, too.
    ///
    /// # Errors
    /// A note, a tunnel or the journal could not be removed. Recovery tries again.
    pub async fn end(self) -> Result<(), Cause> {
        let container = &self.plan.container;
        let directories = &self.context.directories;
        self.moved_container(self.exchange.clone()).note(directories).await?;
        port_forward::remove(directories, port_forward::here(&container.id)).await?;
        // Its rules would keep the table.
        let migration = Some(self.id());
        moved_containers::forget_ended(directories, migration).await?;
        for peer in self.plan.anchors.keys().copied().chain([self.plan.link.peer]) {
            tunnels::release(directories, peer, migration).await?;
        }
        Ok(self.journal.end()?)
    }
}

/// Returns the volumes that stay here when the container goes, each with the time at which it was made.
fn kept_volumes(plan: &Plan) -> BTreeMap<String, String> {
    let of = |volume: &PlannedVolume| (volume.offered.name.clone(), volume.created.clone());
    plan.volumes.iter().map(of).collect()
}
