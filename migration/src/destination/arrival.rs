//! From the tunnel to a prepared, isolated copy. Whatever of it has been made, [`Arrival::undo`]
//! removes.

mod counted_flows;
mod first_pass;
mod flows;
mod local_far_ends;
mod memory;
mod network;
mod path_trial;
mod preparation;
mod prepared_copy;
mod restore;
mod service;
mod take_in;
mod volumes;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use checkpoint::cgroup::Cgroup;
use checkpoint::images::ImageDir;
use checkpoint::lazy_pages::LazyPages;
use checkpoint::realtime::RealtimePriority;
use engine::Kind;
use engine::stage::{PreparedStage, Staged};
use netmig::flow::{Flow, Readdressed};
use netmig::peer_number::PeerNumber;
use protocol::message::{self, Message, Prepared};
use protocol::permissions::Permissions;
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::deadline;
use state::guardian::{self, Guardian};
use state::id::HostId;
use state::interrupt_slot::{Place, Turn};
use state::journal::{self, Journal, Record};
use steering::port_forward::{self, Note};
use steering::tunnels::{self, TunnelEnd};

use self::counted_flows::Counting;
pub use self::local_far_ends::FarEnds;
pub use self::memory::MemoryGone;
use self::memory::ReceivedMemory;
use self::path_trial::Trials;
pub use self::prepared_copy::{Network, Whole};
use super::addresses::addresses;
use super::admission::{Addresses, Looked};
use super::anchors::Anchors;
use super::conversation::Along;
use super::image_import;
use super::prepared_stage::Expected;
use super::received_state::Limits;
use super::service::ArrivingService;
use super::spool::Spool;
use super::volumes::Volumes;
use super::work_directory::{IMAGES, STAGE, tidy};
use crate::convert::{NetworkState, Wire};
use crate::destination::server_context::ServerContext;
use crate::offer::Offer;
use crate::offered_volume::OfferedVolume;

/// The source wants to go back.
#[derive(Debug, thiserror::Error)]
#[error("the source went back")]
struct SourceWentBack;

/// The engine made a container without something that every container has.
#[derive(Debug, thiserror::Error)]
#[error("the container was staged without {0}")]
struct Incomplete(&'static str);

/// The engine was killed, or died.
#[derive(Debug, thiserror::Error)]
#[error("{0} ended while the container was being restored")]
struct EngineGone(Kind);

/// The engine would give up before the source could decide.
#[derive(Debug, thiserror::Error)]
#[error("the container was staged for too long before its interruption came; try again")]
struct StagedTooLong;

/// How long the engine has to wait once a restore is ordered: the restore, the lease of the copy, and
/// the time that a source has for its last order after the decision.
const AFTER_RESTORE: Duration =
    Duration::from_secs(deadline::LEASE.as_secs() + deadline::ANSWER.as_secs() + 15);

/// The source offered one image and ships another.
#[derive(Debug, thiserror::Error)]
#[error("the image that comes is not the one that was offered")]
struct NotOffered;

/// A migration that has begun to change this host.
#[derive(Debug)]
pub struct Arrival {
    host: &'static ServerContext,
    source: HostId,
    /// The source, for people.
    source_name: String,
    offer: Offer,
    chosen: Addresses,
    /// This host's addresses, as the source knows them.
    own: Vec<IpAddr>,
    /// What the source has said of the original's network namespace.
    wanted: Option<NetworkState>,
    /// The address by which the source talks to this host.
    source_address: Option<IpAddr>,
    readdressed: Vec<Readdressed>,
    anchor: PeerNumber,
    anchors: Anchors,
    work: PathBuf,
    journal: Option<Journal>,
    _guardian: Guardian,
    mtu: u32,
    limits: Limits,
    staged: Option<Box<dyn Staged>>,
    /// Memory that came while the container ran.
    memory: Option<ReceivedMemory>,
    /// Whether the copy needs memory that comes after the decision.
    is_post_copy: bool,
    /// What puts memory in place that follows.
    lazy_pages: Option<LazyPages>,
    network: Option<Network>,
    cgroup: Option<Cgroup>,
    created: Vec<Flow>,
    paths: Trials,
    counting: Counting,
    far_ends: FarEnds,
    spool: Option<Spool>,
    /// Volumes that come with the container, until their directory is made.
    offered_volumes: Vec<OfferedVolume>,
    /// Whether there may be device nodes in them.
    may_have_devices: bool,
    /// The same once it is made.
    volumes: Option<Volumes>,
    /// The systemd unit that is to run the container.
    service: Option<ArrivingService>,
    prepared: Option<Box<dyn PreparedStage>>,
    place: Option<Place>,
    turn: Option<Turn>,
    realtime: Option<RealtimePriority>,
    /// Given back last.
    _lock: Option<ContainerLock>,
}

impl Arrival {
    /// Writes the journal's first record.
    pub async fn begin(
        host: &'static ServerContext,
        (source, source_name): (HostId, String),
        permissions: &Permissions,
        (offer, along): (Offer, Along),
        Looked { verdict, chosen, lock }: Looked,
    ) -> Result<Self, Cause> {
        let disk = permissions.disk.unwrap_or(u64::MAX);
        let limits = Limits { images: offer.image_room(), disk };
        let state = &host.directories.state;
        let anchor = tunnels::allot(&host.directories, source).await?;
        let record = Record::Arrival {
            migration: offer.migration,
            container: offer.id.clone(),
            name: offer.name.clone(),
            addresses: addresses(&offer),
            peer: source,
            source: source_name.clone(),
            began: journal::now(),
        };
        let path = journal::path(state, offer.migration);
        let guardian = guardian::start(&host.directories, host.background.guardian, &path)?;
        let journal = Journal::begin(state, offer.migration, &record)?;
        let work = host.directories.migration(offer.migration);
        Ok(Self {
            host,
            source,
            source_name,
            offer,
            chosen,
            own: verdict.addresses,
            wanted: None,
            source_address: None,
            readdressed: Vec::new(),
            anchor,
            anchors: Anchors::default(),
            work,
            journal: Some(journal),
            _guardian: guardian,
            mtu: u32::MAX,
            limits,
            staged: None,
            memory: None,
            lazy_pages: None,
            network: None,
            cgroup: None,
            created: Vec::new(),
            paths: Trials::default(),
            is_post_copy: false,
            counting: Counting::default(),
            far_ends: FarEnds::default(),
            spool: None,
            offered_volumes: along.volumes,
            service: along.service.map(ArrivingService::of),
            may_have_devices: permissions.privileged,
            volumes: None,
            prepared: None,
            place: None,
            turn: None,
            realtime: None,
            _lock: lock,
        })
    }

    /// Takes over an engine that was started before.
    pub fn use_prepared(&mut self, expected: Option<Expected>) {
        (self.prepared, self.place) = expected.map(Expected::into_parts).unzip();
    }

    /// Runs the steps up to the restored, isolated copy.
    pub async fn proceed(
        &mut self,
        connection: &mut Connection,
        tunnel: message::TunnelEnd,
    ) -> Result<Prepared, Cause> {
        self.begin_volumes().await?;
        self.answer_tunnel(connection, TunnelEnd::from_wire(tunnel)?).await?;
        let mut shipped = false;
        loop {
            match self.next(connection).await? {
                Message::Anchor(anchor) => self.meet_anchor(connection, anchor).await?,
                Message::ImageBegin(announced) if !shipped => {
                    if announced != self.offer.image {
                        return Err(NotOffered.into());
                    }
                    shipped = true;
                    image_import::store(self.host, connection, &announced, self.limits.disk)
                        .await?;
                }
                Message::NetworkState(state) if self.wanted.is_none() => {
                    self.wanted = Some(NetworkState::from_wire(state)?);
                }
                Message::Stage(anchors) => {
                    let (directories, migration) = (&self.host.directories, self.offer.migration);
                    self.anchors.keep(directories, migration, &anchors).await?;
                    if let Some(prepared) = self.stage_and_take_in(connection).await? {
                        return Ok(prepared);
                    }
                }
                // Its turn may come before it has staged.
                Message::AskTurn(()) => self.answer_turn(connection).await?,
                other => self.keep_first_pass(connection, other).await?,
            }
        }
    }

    /// Stages the container and restores it, unless the source has it unstaged meanwhile: then `None`.
    async fn stage_and_take_in(
        &mut self,
        connection: &mut Connection,
    ) -> Result<Option<Prepared>, Cause> {
        let images = self.stage().await?;
        let others = self.readdressed.iter().map(|other| (other.old, other.new)).collect();
        connection.send(&Message::Staged(others)).await?;
        self.take_in(connection, images).await
    }

    /// Removes what was staged, and keeps everything else for another attempt.
    async fn unstage(&mut self, connection: &mut Connection) -> Result<(), Cause> {
        self.paths.end();
        self.counting = Counting::default();
        if let Some(staged) = self.staged.take() {
            staged.abort().await?;
        }
        self.network = None;
        self.lazy_pages = None;
        self.volumes.iter_mut().for_each(Volumes::expect_again);
        self.end_late().await?;
        ImageDir::remove_at(&self.images())?;
        // Everything that was chosen is chosen anew.
        self.readdressed.clear();
        self.wanted = None;
        Ok(connection.send(&Message::Unstaged(())).await?)
    }

    async fn next(&self, connection: &mut Connection) -> Result<Message, Cause> {
        match connection.receive(deadline::NEXT_MESSAGE).await? {
            Message::Abort(id) if id == self.offer.migration => Err(SourceWentBack.into()),
            other => Ok(other),
        }
    }

    /// Gives the source a turn if one is free; it asks again if none is.
    async fn answer_turn(&mut self, connection: &mut Connection) -> Result<(), Cause> {
        if self.turn.is_none() {
            self.turn = Turn::try_take(&self.host.directories.run)?;
            self.realtime = self.turn.as_ref().map(|_| RealtimePriority::begin());
        }
        if self.turn.is_some() {
            // Who is staged next gives way to this turn.
            self.place = None;
        }
        Ok(connection.send(&Message::TurnAnswer(self.turn.is_some())).await?)
    }

    /// Lets the next container be interrupted.
    pub fn end_turn(&mut self) {
        self.realtime = None;
        self.turn = None;
    }

    /// Returns what a copy is made of, once it is prepared; `None` before. The rest goes with it.
    pub fn take_prepared(&mut self) -> Option<Whole> {
        let (staged, network) = (self.staged.take()?, self.network.take()?);
        let (cgroup, journal) = (self.cgroup.take()?, self.journal.take()?);
        let lazy_pages = self.lazy_pages.take();
        Some(Whole { staged, network, cgroup, journal, mtu: self.mtu, lazy_pages })
    }

    /// Removes everything that was made for this migration; what cannot be removed is logged and
    /// stays in the journal.
    pub async fn undo(mut self) {
        let journal = self.journal.take();
        let staged = self.staged.take();
        if let (true, Some(journal)) = (self.clean(staged, false).await, journal)
            && let Err(e) = journal.end()
        {
            tracing::warn!("{}: {}", self.offer.migration, chain(&e));
        }
    }

    /// Does the same for a copy that owns the stage and the journal, and may have been heard; `false` if something is left.
    pub async fn clean(&mut self, staged: Option<Box<dyn Staged>>, is_heard: bool) -> bool {
        let mut clean = true;
        self.paths.end();
        // Its rules would keep the table.
        self.counting = Counting::default();
        let migration = self.offer.migration;
        let mut note = |result: Result<(), Cause>| {
            if let Err(e) = &result {
                tracing::warn!("{migration}: {}", chain(e.as_ref()));
                clean = false;
            }
            result.is_ok()
        };
        if let Some(prepared) = self.prepared.take() {
            prepared.abandon().await;
        }
        let gone = match staged {
            Some(staged) => note(staged.abort().await.map_err(Into::into)),
            None => true,
        };
        if gone {
            note(self.end_service(is_heard).await);
            note(self.undo_volumes().await);
        }
        note(self.forget_flows());
        note(self.end_late().await);
        let of_this = |note: &Note| note.migration == migration;
        note(port_forward::remove(&self.host.directories, of_this).await.map(drop));
        // The directory tells who may remove the container.
        if gone {
            note(self.tidy());
            note(self.forget_memory());
        }
        for peer in self.anchors.numbers().chain([self.anchor]) {
            note(tunnels::release(&self.host.directories, peer, Some(migration)).await);
        }
        clean
    }

    /// Removes images and the volatile directory.
    pub fn tidy(&self) -> Result<(), Cause> {
        tidy(&self.work)
    }

    /// Returns the offer.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns this host, as every conversation sees it.
    pub fn host(&self) -> &'static ServerContext {
        self.host
    }

    fn images(&self) -> PathBuf {
        self.work.join(IMAGES)
    }

    fn stage_directory(&self) -> PathBuf {
        self.work.join(STAGE)
    }
}
