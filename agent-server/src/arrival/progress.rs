//! From the tunnel to a prepared, isolated copy. Whatever of it has been made, [`Arrival::undo`]
//! removes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_core::carried::{self, Carried};
use agent_core::cause::{Cause, chain};
use agent_core::deadline;
use agent_core::directories::create_private;
use agent_core::forward::{self, Note, Role};
use agent_core::guardian;
use agent_core::host;
use agent_core::identity::{self, HostId};
use agent_core::journal::{self, Journal, Record};
use agent_core::keeper;
use agent_core::message::{AnchorTunnel, Forwarder, Message, Offer, Prepared, Tree, TunnelEnd};
use agent_core::peers::{self, Claim, PeerLock};
use agent_core::permissions::Permissions;
use agent_core::turn::{Place, Turn, give_way};
use agent_core::wire::Connection;
use checkpoint::criu::{ConfigDir, Options};
use checkpoint::images::{Chunk, ImageDir};
use checkpoint::podman::Metadata;
use checkpoint::runtime::Runtime;
use checkpoint::stage::{self, Conflict, Early, Stage, Staged};
use checkpoint::urgency::Urgency;
use netmig::beside::Detour;
use netmig::flow::{self, Conntrack, Flow, Readdressed, StandIn};
use netmig::isolation::Port;
use netmig::netns::Namespace;
use netmig::peer::PeerNumber;
use netmig::sandbox::{Others, Sandbox};
use netmig::table::{HoldTag, Table, TableError};
use netmig::tunnel;
use tokio::task::block_in_place;

use super::anchors::Anchors;
use super::check::Addresses;
use super::copy::Copy;
use super::expected::Expected;
use super::incoming::{Incoming, Limits};
use super::{addresses, image, pairs, prepared};
use crate::cli::{GUARDIAN, KEEPER};
use crate::session::Host;

/// Where images go, below a migration's volatile directory.
const IMAGES: &str = "images";
/// The same for what staging needs.
pub const STAGE: &str = "stage";

/// How long packets of flows that have come home may be on their way through the tunnel and back.
const LATE: Duration = Duration::from_millis(400);

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

/// The staged container is not where the offer says.
#[derive(Debug, thiserror::Error)]
#[error("the staged container does not have the address {address} that was offered")]
struct OtherAddress {
    address: IpAddr,
}

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
    mtu: u32,
    limits: Limits,
    staged: Option<Staged>,
    network: Option<Network>,
    created: Vec<Flow>,
    early: Option<Early>,
    place: Option<Place>,
    turn: Option<(Turn, Urgency)>,
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
    pub fn begin(
        host: &'static Host,
        source: HostId,
        permissions: &Permissions,
        offer: Offer,
        chosen: Addresses,
    ) -> Result<Self, Cause> {
        let disk = permissions.disk.unwrap_or(u64::MAX);
        let limits = Limits { images: offer.image_room(), disk };
        let state = &host.directories.state;
        let anchor = identity::peer_number(state, source)?;
        let record = Record::Arrival {
            migration: offer.migration,
            container: offer.id.clone(),
            name: offer.name.clone(),
            addresses: addresses(&offer),
            peer: source,
        };
        let journal = Journal::begin(state, offer.migration, &record)?;
        let path = journal::path(state, offer.migration);
        if let Err(e) = guardian::start(&host.directories, &[GUARDIAN], &path) {
            journal.end()?;
            return Err(e.into());
        }
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
            mtu: u32::MAX,
            limits,
            staged: None,
            network: None,
            created: Vec::new(),
            early: None,
            place: None,
            turn: None,
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

    async fn answer_tunnel(
        &mut self,
        connection: &mut Connection,
        offer: TunnelEnd,
    ) -> Result<(), Cause> {
        let address = connection.peer().ip();
        // What was allowed is what was offered.
        if offer.is_direct() != self.offer.direct.is_some() {
            return Err(NotOffered.into());
        }
        let answer = self.connect(self.anchor, address, &offer).await?;
        let (migration, here, there) = (self.offer.migration, &answer.kind, &offer.kind);
        tracing::info!("{migration}: tunnel to {address}: {here} here, {there} there");
        // It takes the kernel a moment to say, and nobody waits for it.
        tokio::task::spawn_blocking(move || match queueing() {
            Ok(queue) => tracing::info!("{migration}: packet queue of this kernel: {queue}"),
            Err(e) => tracing::warn!("{migration}: {}", chain(&e)),
        });
        Ok(connection.send(&Message::TunnelAnswer(answer)).await?)
    }

    /// Makes the tunnel to a third host by which some of the flows will come.
    async fn meet_anchor(
        &mut self,
        connection: &mut Connection,
        anchor: AnchorTunnel,
    ) -> Result<(), Cause> {
        let stranger = !self.offer.anchors.contains(&anchor.host) || anchor.host == self.host.id;
        if stranger || anchor.end.is_direct() {
            return Err(NotOffered.into());
        }
        let number = identity::peer_number(&self.host.directories.state, anchor.host)?;
        if let Some(journal) = &mut self.journal {
            block_in_place(|| journal.append(&Record::Anchor { peer: anchor.host }))?;
        }
        self.anchors.add(anchor.host, number);
        let answer = self.connect(number, anchor.address, &anchor.end).await?;
        self.anchors.listen(anchor.host);
        Ok(connection.send(&Message::TunnelAnswer(answer)).await?)
    }

    /// Makes ready for new connections that other hosts will lead here, if they will.
    async fn take_new_connections(&self) -> Result<(), Cause> {
        let there = |host| host == self.source || self.anchors.number(host).is_some();
        for forwarder in self.offer.forwarders.iter().filter(|one| there(one.host)) {
            let note = Note {
                id: self.offer.id.clone(),
                name: self.offer.name.clone(),
                addresses: self.addresses(),
                readdressed: self.ways_of(forwarder),
                host: forwarder.host,
                migration: self.offer.migration,
                role: Role::Here,
            };
            let _lock = PeerLock::take(&self.host.directories.run).await?;
            note.write(&self.host.directories)?;
            note.apply(&self.host.directories.state)?;
        }
        Ok(())
    }

    /// Addresses by which a host's new connections come for those that the container has here, where
    /// they differ.
    fn ways_of(&self, forwarder: &Forwarder) -> Vec<(IpAddr, IpAddr)> {
        let way = |old: IpAddr| {
            let other = self.readdressed.iter().find(|other| other.old == old);
            let known = forwarder.readdressed.iter().find(|(_, own)| *own == old);
            let by = match (known, other) {
                (Some((by, _)), _) => *by,
                (None, Some(other)) if forwarder.host == self.source => other.tunnel,
                _ => old,
            };
            (by, other.map_or(old, |other| other.new))
        };
        let ways = addresses(&self.offer).into_iter().map(way);
        ways.filter(|(by, own)| by != own).collect()
    }

    /// Ends what this host forwarded for the container, which is here again.
    pub async fn end_forwarding(&self) -> Result<(), Cause> {
        let id = &self.offer.id;
        let away = |note: &Note| note.id == *id && note.away().is_some();
        forward::remove(&self.host.directories, away).await.map(drop)
    }

    /// Makes this host's end of the tunnel to a peer, and gives it.
    async fn connect(
        &mut self,
        peer: PeerNumber,
        address: IpAddr,
        end: &TunnelEnd,
    ) -> Result<TunnelEnd, Cause> {
        let _lock = PeerLock::take(&self.host.directories.run).await?;
        let (local, mtu) = peers::connect(peer, address, end).await?;
        keeper::start(&self.host.directories, KEEPER)?;
        self.mtu = self.mtu.min(mtu);
        Ok(local)
    }

    /// Builds everything around the container and cuts its network off.
    async fn stage(&mut self) -> Result<ImageDir, Cause> {
        create_private(&self.work)?;
        let mut metadata: Metadata = std::mem::take(&mut self.offer.description).into();
        if let Addresses::Former(pairs) = &self.chosen {
            metadata.readdress(pairs)?;
        }
        let stage = Stage {
            podman: self.host.podman.clone(),
            info: self.host.engine.clone(),
            metadata,
            fresh_addresses: self.chosen == Addresses::Fresh,
            log: Vec::new(),
            work: self.stage_directory(),
            shim: self.host.shim.clone(),
            lease: deadline::LEASE,
            deadline: deadline::STAGE,
        };
        let may_choose = self.offer.any_address && self.chosen == Addresses::Own;
        let runtime = Runtime::new(&host::find_program(&self.offer.runtime)?, None)?;
        let criu = host::find_program("criu")?;
        if self.place.is_none() {
            self.place = Place::take(&self.host.directories.run, deadline::PLACE).await;
        }
        give_way(&self.host.directories.run, deadline::GIVE_WAY).await;
        // CRIU looks at a kernel once after a boot, for 30 ms; podman's work is long enough for it.
        let (staged, warmed, heard, anchors) = tokio::join!(
            begin(stage, self.early.take(), may_choose),
            runtime.warm(&criu),
            tunnel::confirm(self.anchor),
            self.anchors.heard()
        );
        let (staged, chosen_here) = staged?;
        if chosen_here {
            self.chosen = Addresses::Fresh;
        }
        let staged = self.staged.insert(staged);
        warmed?;
        heard?;
        anchors?;
        let path = staged.bundle.netns.clone().ok_or(Incomplete("a network namespace"))?;
        let namespace = Namespace::at_path(&path)?;
        let sandbox = Sandbox::open(&namespace)?;
        let interface = sandbox.interfaces().first().ok_or(Incomplete("an interface"))?;
        // Flows are taken over for these addresses, so they have to be the container's.
        let there: Vec<IpAddr> =
            sandbox.interfaces().iter().flat_map(|i| &i.addresses).map(|(ip, _)| *ip).collect();
        let wanted = self.settle_addresses(&there)?;
        if let Some(address) = wanted.into_iter().find(|ip| !there.contains(ip)) {
            return Err(OtherAddress { address }.into());
        }
        let port = Port::of_container(&namespace, &interface.name)?;
        // Isolated from birth: nobody hears the copy before the commit.
        port.block()?;
        if self.is_return() {
            let _lock = PeerLock::take(&self.host.directories.run).await?;
            Table::open()?.pass_late(&self.late_tag()?, self.anchor, &self.late_ways())?;
        }
        self.take_new_connections().await?;
        let here = self.left_here()?;
        self.network = Some(Network { port, sandbox, namespace: path, here });
        Ok(ImageDir::create(&self.images(), self.limits.images)?)
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
        let addresses = addresses(&self.offer);
        let manifest = loop {
            let step = match self.next(connection).await {
                Ok(Message::Chunks(chunks)) => {
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
                        let (stand_ins, readdressed) =
                            (&batch.stand_ins[..], &self.readdressed[..]);
                        let arrival = flow::Arrival { hop, stand_ins, readdressed };
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
            let turn = Turn::try_take(&self.host.directories.run)?;
            self.turn = turn.map(|turn| (turn, Urgency::begin()));
        }
        if self.turn.is_some() {
            // Who is staged next gives way to this turn.
            self.place = None;
        }
        Ok(connection.send(&Message::TurnAnswer(self.turn.is_some())).await?)
    }

    /// Lets the next container be interrupted.
    pub fn end_turn(&mut self) {
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

    /// The copy, once it is prepared; `None` before.
    pub fn into_copy(mut self) -> Option<Copy> {
        let (staged, network, journal) =
            (self.staged.take()?, self.network.take()?, self.journal.take()?);
        let mtu = self.mtu;
        Some(Copy::new(self, staged, network, journal, mtu))
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

    /// The peer by which an anchor's flows come here.
    fn next_hop(&self, anchor: Option<HostId>) -> Result<PeerNumber, Cause> {
        match anchor {
            None => Ok(self.anchor),
            Some(host) => self.anchors.number(host).ok_or_else(|| NotOffered.into()),
        }
    }

    /// Whether this host is the anchor of flows: the container comes back.
    fn is_return(&self) -> bool {
        self.offer.anchors.contains(&self.host.id)
    }

    fn late_tag(&self) -> Result<HoldTag, Cause> {
        Ok(self.offer.migration.to_string().parse()?)
    }

    /// The addresses for which packets of flows that come home arrive, each before the one that the
    /// container has here.
    fn late_ways(&self) -> Vec<(IpAddr, IpAddr)> {
        let HostId(this) = self.host.id;
        let own = addresses(&self.offer).into_iter();
        let mut ways: Vec<_> = own.zip(self.addresses()).collect();
        for other in &self.readdressed {
            ways.push((StandIn::new(other.new, this).address, other.new));
            // Of the source's own flows.
            ways.push((other.tunnel, other.new));
        }
        ways
    }

    async fn end_late(&self) -> Result<(), Cause> {
        if !self.is_return() {
            return Ok(());
        }
        let _lock = PeerLock::take(&self.host.directories.run).await?;
        Ok(Table::open()?.remove_late(&self.late_tag()?)?)
    }

    /// Leads the flows whose anchor this host is to the container here. The source has let its
    /// held packets go: they have come, or are about to.
    pub fn lead_home(&self) -> Result<(), Cause> {
        if self.is_return() {
            let container = self.addresses();
            let led = block_in_place(|| Conntrack::open()?.lead(&container, self.anchor, None))?;
            tracing::info!("{}: {led} flows came home", self.offer.migration);
        }
        Ok(())
    }

    /// Notes whose the flows are that lead from here to other hosts.
    pub fn note_container(&self) -> Result<(), Cause> {
        self.carried().note(&self.host.directories)
    }

    /// Containers of its network here with which it has had flows since it left this host.
    fn left_here(&self) -> Result<Vec<(IpAddr, [u8; 6])>, Cause> {
        let note = carried::find(&self.host.directories, &self.offer.id)?;
        let own = self.addresses();
        let detours = note.into_iter().flat_map(|note| note.detours);
        Ok(detours.filter(|d| own.contains(&d.towards)).map(|d| (d.beside, d.mac)).collect())
    }

    /// The other containers of its network that the copy needs to be told of. Those that it has left
    /// where it comes from are noted here.
    pub fn others(&self, network: &Network) -> Result<Others, Cause> {
        let interface = network.sandbox.interface_at(&network.port)?;
        let own = self.addresses();
        let gateways = &network.port.bridge().addresses;
        let is_left = |end: &IpAddr| interface.is_on_link(*end) && !gateways.contains(end);
        let ends = self.created.iter().filter_map(|flow| flow.other_end(&own));
        let left: BTreeSet<IpAddr> = ends.filter(is_left).collect();
        if let Some(mac) = interface.mac
            && !left.is_empty()
        {
            let detour = |address: &IpAddr| Detour {
                namespace: network.namespace.clone(),
                interface: interface.index,
                mac,
                towards: *address,
                beside: *address,
            };
            let detours = left.iter().map(detour).collect();
            Carried { detours, ..self.carried() }.note(&self.host.directories)?;
        }
        Ok(Others { left: left.into_iter().collect(), here: network.here.clone() })
    }

    /// Lets other containers of its network here reach the container by themselves again.
    pub fn rejoin(&self) -> Result<(), Cause> {
        carried::rejoin(&self.host.directories, &self.offer.id).map(drop)
    }

    fn carried(&self) -> Carried {
        let Offer { id, name, .. } = &self.offer;
        Carried::new(id, name, &self.addresses(), flow::Exchange::default())
    }

    /// Ends what only the move itself needed of the network, once the journal has ended.
    pub async fn settle_network(&self, network: &Network) -> Result<(), Cause> {
        if self.is_return() {
            tokio::time::sleep(LATE).await;
        }
        let mut outcome = self.end_late().await;
        outcome = outcome.and(self.claim_source_tunnel());
        let others: Vec<IpAddr> = network.here.iter().map(|(address, _)| *address).collect();
        outcome = outcome.and(carried::forget_between(&self.addresses(), &others));
        // What stood for this host's gateways is not needed by a container that is here.
        outcome = outcome.and(self.carried().note_and_apply(&self.host.directories).await);
        for peer in self.anchors.numbers().chain([self.anchor]) {
            let migration = Some(self.offer.migration);
            let released = peers::release(&self.host.directories, peer, migration).await;
            outcome = outcome.and(released);
        }
        outcome
    }

    /// Keeps the tunnel to the source, by which the packets of third hosts' flows come until these hosts
    /// lead them here.
    fn claim_source_tunnel(&self) -> Result<(), Cause> {
        let with: Vec<_> = self.anchors.numbers().collect();
        if with.is_empty() {
            return Ok(());
        }
        let claim = Claim { with, to: self.anchor, container: self.addresses() };
        claim.write(&self.host.directories, self.offer.migration)
    }

    /// The container's addresses here.
    fn addresses(&self) -> Vec<IpAddr> {
        let here = |old: IpAddr| {
            let other = self.readdressed.iter().find(|other| other.old == old);
            other.map_or(old, |other| other.new)
        };
        addresses(&self.offer).into_iter().map(here).collect()
    }

    /// Notes which addresses the staged container has got in place of its own, given all that it has;
    /// gives those that it must have.
    fn settle_addresses(&mut self, there: &[IpAddr]) -> Result<Vec<IpAddr>, Cause> {
        let own = addresses(&self.offer);
        let others: Vec<(IpAddr, IpAddr)> = match &self.chosen {
            Addresses::Own => Vec::new(),
            Addresses::Former(others) => others.clone(),
            Addresses::Fresh => pairs(&own, there).filter(|(old, new)| old != new).collect(),
        };
        let HostId(source) = self.source;
        self.readdressed = others.into_iter().map(|pair| Readdressed::new(pair, source)).collect();
        let wanted = self.addresses();
        if !self.readdressed.is_empty()
            && let Some(journal) = &mut self.journal
        {
            let addresses = wanted.clone();
            block_in_place(|| journal.append(&Record::Readdressed { addresses }))?;
        }
        Ok(wanted)
    }

    fn forget_flows(&mut self) -> Result<(), Cause> {
        if self.created.is_empty() {
            return Ok(());
        }
        Conntrack::open()?.delete(&self.created)?;
        self.created.clear();
        Ok(())
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

/// Stages; with other addresses if podman does not let the container have its own and it may have
/// others, which is told as well. They may have been given away since this host looked, or belong to no
/// network here.
async fn begin(
    stage: Stage,
    early: Option<Early>,
    may_choose: bool,
) -> Result<(Staged, bool), stage::Error> {
    let again = Stage { fresh_addresses: true, ..stage.clone() };
    match stage.begin(early).await {
        Err(stage::Error::Conflict {
            conflict: Conflict::Address(_) | Conflict::Network(_),
            ..
        }) if may_choose => Ok((again.begin(None).await?, true)),
        other => other.map(|staged| (staged, false)),
    }
}

/// Removes what is in a migration's volatile directory, and the directory. Absent means done.
pub fn tidy(work: &Path) -> Result<(), Cause> {
    ImageDir::remove_at(&work.join(IMAGES))?;
    match std::fs::remove_dir_all(work) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// How packets are held on this host when a container leaves it again.
fn queueing() -> Result<&'static str, TableError> {
    Ok(Table::open()?.queueing()?.name())
}
