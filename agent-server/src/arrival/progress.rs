//! From the tunnel to a prepared, isolated copy. Whatever of it has been made, [`Arrival::undo`]
//! removes.

mod flows;
mod network;
mod preparation;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_core::aliases::OfOthers;
use agent_core::cause::{Cause, chain};
use agent_core::deadline;
use agent_core::forward::{self, Note};
use agent_core::guardian::{self, Guardian};
use agent_core::identity::HostId;
use agent_core::journal::{self, Journal, Record};
use agent_core::message::{Message, Offer, Prepared, Tree, TunnelEnd};
use agent_core::peers;
use agent_core::permissions::Permissions;
use agent_core::turn::{Place, Turn};
use agent_core::wire::Connection;
use checkpoint::criu::{ConfigDir, Options};
use checkpoint::images::{Chunk, ImageDir};
use checkpoint::stage::{Early, Staged};
use checkpoint::urgency::{MANY_FILES, Urgency};
use netmig::flow::{self, Flow, Readdressed};
use netmig::isolation::Port;
use netmig::peer::PeerNumber;
use netmig::sandbox::Sandbox;
use netmig::tunnel;
use tokio::task::block_in_place;

use super::addresses::addresses;
use super::anchors::Anchors;
use super::check::Addresses;
use super::expected::Expected;
use super::image;
use super::incoming::{Incoming, Limits};
use super::work::{IMAGES, STAGE, tidy};
use crate::cli::GUARDIAN;
use crate::host::Host;

/// The source wants to go back.
#[derive(Debug, thiserror::Error)]
#[error("the source went back")]
struct SourceWentBack;

/// podman made a container without something that every container has.
#[derive(Debug, thiserror::Error)]
#[error("podman staged the container without {0}")]
struct Incomplete(&'static str);

/// podman was killed, or died.
#[derive(Debug, thiserror::Error)]
#[error("podman ended while the container was being restored")]
struct EngineGone;

/// The source offered one image and ships another.
#[derive(Debug, thiserror::Error)]
#[error("the image that comes is not the one that was offered")]
struct NotOffered;

/// A migration that has begun to change this host.
#[derive(Debug)]
pub struct Arrival {
    host: &'static Host,
    source: HostId,
    offer: Offer,
    chosen: Addresses,
    readdressed: Vec<Readdressed>,
    anchor: PeerNumber,
    anchors: Anchors,
    work: PathBuf,
    journal: Option<Journal>,
    _guardian: Guardian,
    mtu: u32,
    limits: Limits,
    staged: Option<Staged>,
    network: Option<Network>,
    created: Vec<Flow>,
    early: Option<Early>,
    place: Option<Place>,
    turn: Option<Turn>,
    urgency: Option<Urgency>,
}

/// The staged container's network.
#[derive(Debug)]
pub struct Network {
    /// Its port of the host's bridge.
    pub port: Port,
    /// Its own side.
    pub sandbox: Sandbox,
    /// Where its network namespace is.
    pub namespace: PathBuf,
    /// Other containers of its network that it left here and comes back to, with their Ethernet addresses.
    pub here: Vec<(IpAddr, [u8; 6])>,
}

impl Arrival {
    /// Writes the journal's first record.
    pub async fn begin(
        host: &'static Host,
        source: HostId,
        permissions: &Permissions,
        offer: Offer,
        chosen: Addresses,
    ) -> Result<Self, Cause> {
        let disk = permissions.disk.unwrap_or(u64::MAX);
        let limits = Limits { images: offer.image_room(), disk };
        let state = &host.directories.state;
        let anchor = peers::allot(&host.directories, source).await?;
        let record = Record::Arrival {
            migration: offer.migration,
            container: offer.id.clone(),
            name: offer.name.clone(),
            addresses: addresses(&offer),
            peer: source,
        };
        let path = journal::path(state, offer.migration);
        let guardian = guardian::start(&host.directories, &[GUARDIAN], &path)?;
        let journal = Journal::begin(state, offer.migration, &record)?;
        let work = host.directories.migration(offer.migration);
        Ok(Self {
            host,
            source,
            offer,
            chosen,
            readdressed: Vec::new(),
            anchor,
            anchors: Anchors::default(),
            work,
            journal: Some(journal),
            _guardian: guardian,
            mtu: u32::MAX,
            limits,
            staged: None,
            network: None,
            created: Vec::new(),
            early: None,
            place: None,
            turn: None,
            urgency: None,
        })
    }

    /// Takes over a podman that was started before.
    pub fn use_early(&mut self, expected: Option<Expected>) {
        (self.early, self.place) = expected.map(Expected::into_parts).unzip();
    }

    /// Runs the steps up to the restored, isolated copy.
    pub async fn proceed(
        &mut self,
        connection: &mut Connection,
        tunnel: TunnelEnd,
    ) -> Result<Prepared, Cause> {
        self.answer_tunnel(connection, tunnel).await?;
        let mut shipped = false;
        loop {
            match self.next(connection).await? {
                Message::Anchor(anchor) => self.meet_anchor(connection, anchor).await?,
                Message::ImageBegin(announced) if !shipped => {
                    if announced != self.offer.image {
                        return Err(NotOffered.into());
                    }
                    shipped = true;
                    image::store(self.host, connection, &announced, self.limits.disk).await?;
                }
                Message::Stage(anchors) => {
                    let (directories, migration) = (&self.host.directories, self.offer.migration);
                    break self.anchors.keep(directories, migration, &anchors).await?;
                }
                other => return Err(connection.unexpected(&other, "Stage").into()),
            }
        }
        let images = self.stage().await?;
        let others = self.readdressed.iter().map(|other| (other.old, other.new)).collect();
        connection.send(&Message::Staged(others)).await?;
        self.take_in(connection, images).await
    }

    async fn next(&self, connection: &mut Connection) -> Result<Message, Cause> {
        match connection.receive(deadline::NEXT_MESSAGE).await? {
            Message::Abort(id) if id == self.offer.migration => Err(SourceWentBack.into()),
            other => Ok(other),
        }
    }

    /// Takes images, files and flows until the order to restore comes, and restores.
    async fn take_in(
        &mut self,
        connection: &mut Connection,
        images: ImageDir,
    ) -> Result<Prepared, Cause> {
        let staged = self.staged.as_ref().ok_or(Incomplete("itself"))?;
        let mut trees: Vec<(Tree, &Path)> = vec![(Tree::Root, &staged.bundle.root)];
        trees.extend(staged.bundle.shm.as_deref().map(|shm| (Tree::SharedMemory, shm)));
        let criu_config = ConfigDir::create(&self.work.join("criu"), &Options::restore())?;
        let mut incoming = Incoming::open(&images, self.limits, &trees, &staged.log)?;
        let mut is_ready = false;
        // Of flows whose anchor this host is the source tells nothing.
        incoming.unscaled = self.is_return();
        incoming.readdressed =
            self.readdressed.iter().map(|other| (other.old, other.new)).collect();
        let others = OfOthers::read(&self.host.directories, &self.offer.id)?;
        let addresses = addresses(&self.offer);
        let mut files = 0;
        let manifest = loop {
            let step = match self.next(connection).await {
                Ok(Message::Chunks(chunks)) => {
                    files += chunks.iter().filter(|chunk| chunk.is_first()).count();
                    if files > MANY_FILES {
                        self.urgency = None;
                    }
                    let mut taken = block_in_place(|| incoming.chunks(&chunks));
                    if taken.is_ok() && !is_ready && chunks.iter().any(Chunk::is_descriptors) {
                        is_ready = true;
                        taken = self.make_ready(&images, &criu_config).await;
                    }
                    taken
                }
                Ok(Message::TreeChange(change)) => block_in_place(|| incoming.change(change)),
                Ok(Message::TreeEnd(end)) => match block_in_place(|| incoming.end_pass(&end)) {
                    Ok(true) => {
                        connection.send(&Message::TreeApplied(end.tree)).await.map_err(Into::into)
                    }
                    other => other.map(drop),
                },
                Ok(Message::LogData(data)) => block_in_place(|| incoming.log(&data.0)),
                Ok(Message::Flows(batch)) => match self.next_hop(batch.anchor) {
                    Ok(hop) => block_in_place(|| {
                        others.check_far(&batch.stand_ins)?;
                        let (stand_ins, readdressed) =
                            (&batch.stand_ins[..], &self.readdressed[..]);
                        let udp_timeout = flow::udp_timeout();
                        let arrival = flow::Arrival { hop, stand_ins, readdressed, udp_timeout };
                        incoming.flows(&batch.flows, &addresses, &arrival)
                    }),
                    Err(cause) => Err(cause),
                },
                Ok(Message::AskTurn(())) => self.answer_turn(connection).await,
                Ok(Message::Restore(manifest)) => break manifest,
                Ok(other) => Err(connection.unexpected(&other, "Restore").into()),
                Err(e) => Err(e),
            };
            if let Err(cause) = step {
                self.created = incoming.created;
                return Err(cause);
            }
        };
        let ordered = Instant::now();
        self.urgency = self.turn.as_ref().map(|_| Urgency::begin());
        match incoming.complete(&manifest) {
            Ok(created) => self.created = created,
            Err((created, cause)) => {
                self.created = created;
                return Err(cause);
            }
        }
        self.restore(&images, &criu_config, ordered).await
    }

    /// Starts the runtime, up to CRIU.
    async fn make_ready(
        &mut self,
        images: &ImageDir,
        criu_config: &ConfigDir,
    ) -> Result<(), Cause> {
        let staged = self.staged.as_mut().ok_or(Incomplete("itself"))?;
        Ok(staged.make_ready(images.path(), criu_config.path(), deadline::STAGE).await?)
    }

    /// Gives the source a turn if one is free; it asks again if none is.
    async fn answer_turn(&mut self, connection: &mut Connection) -> Result<(), Cause> {
        if self.turn.is_none() {
            self.turn = Turn::try_take(&self.host.directories.run)?;
            self.urgency = self.turn.as_ref().map(|_| Urgency::begin());
        }
        if self.turn.is_some() {
            // Who is staged next gives way to this turn.
            self.place = None;
        }
        Ok(connection.send(&Message::TurnAnswer(self.turn.is_some())).await?)
    }

    /// Lets the next container be interrupted.
    pub fn end_turn(&mut self) {
        self.urgency = None;
        self.turn = None;
    }

    async fn restore(
        &mut self,
        images: &ImageDir,
        criu_config: &ConfigDir,
        ordered: Instant,
    ) -> Result<Prepared, Cause> {
        let staged = self.staged.as_mut().ok_or(Incomplete("itself"))?;
        let go = Instant::now();
        staged.restore(images.path(), criu_config.path(), deadline::STAGE).await?;
        if !staged.is_awaited() {
            return Err(EngineGone.into());
        }
        tunnel::check(self.anchor)?;
        Ok(prepared(go - ordered, go.elapsed()))
    }

    /// What a copy is made of, once it is prepared; `None` before. The rest goes with it.
    pub fn take_prepared(&mut self) -> Option<(Staged, Network, Journal, u32)> {
        Some((self.staged.take()?, self.network.take()?, self.journal.take()?, self.mtu))
    }

    /// Removes everything that was made for this migration; what cannot be removed is logged and
    /// stays in the journal.
    pub async fn undo(mut self) {
        let journal = self.journal.take();
        let staged = self.staged.take();
        if let (true, Some(journal)) = (self.clean(staged).await, journal)
            && let Err(e) = journal.end()
        {
            tracing::warn!("{}: {}", self.offer.migration, chain(&e));
        }
    }

    /// The same for a copy that owns the stage and the journal; `false` if something is left.
    pub async fn clean(&mut self, staged: Option<Staged>) -> bool {
        let mut clean = true;
        let migration = self.offer.migration;
        let mut note = |result: Result<(), Cause>| {
            if let Err(e) = &result {
                tracing::warn!("{migration}: {}", chain(e.as_ref()));
                clean = false;
            }
            result.is_ok()
        };
        if let Some(early) = self.early.take() {
            early.abandon().await;
        }
        let gone = match staged {
            Some(staged) => note(staged.abort().await.map_err(Into::into)),
            None => true,
        };
        note(self.forget_flows());
        note(self.end_late().await);
        let of_this = |note: &Note| note.migration == migration;
        note(forward::remove(&self.host.directories, of_this).await.map(drop));
        // The directory tells who may remove the container.
        if gone {
            note(self.tidy());
        }
        for peer in self.anchors.numbers().chain([self.anchor]) {
            note(peers::release(&self.host.directories, peer, Some(migration)).await);
        }
        clean
    }

    /// Removes images and the volatile directory.
    pub fn tidy(&self) -> Result<(), Cause> {
        tidy(&self.work)
    }

    /// The offer.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// This host, as every conversation sees it.
    pub fn host(&self) -> &'static Host {
        self.host
    }

    fn images(&self) -> PathBuf {
        self.work.join(IMAGES)
    }

    fn stage_directory(&self) -> PathBuf {
        self.work.join(STAGE)
    }
}

/// The times of a restore in the protocol's unit.
fn prepared(entries: Duration, restore: Duration) -> Prepared {
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    Prepared { entries_us: micros(entries), restore_us: micros(restore) }
}
