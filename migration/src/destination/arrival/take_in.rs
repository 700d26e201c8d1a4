//! Everything that comes until the order to restore: images, files, flows, settings.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use checkpoint::criu::{ConfigDir, Options};
use checkpoint::images::{Chunk, ImageDir, Manifest};
use checkpoint::realtime::{MANY_FILES, RealtimePriority};
use netmig::flow::{self};
use netmig::routing;
use protocol::message::{self, Message, Prepared, Tree};
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use steering::tunnel_aliases::OfOthers;
use tokio::task::block_in_place;

use crate::destination::addresses::addresses;
use crate::destination::claimed_flows::Claims;
use crate::destination::received_state::{Limits, ReceivedState};
use crate::destination::spool::Spool;
use crate::destination::volumes::Volumes;
use crate::state_stream::StatePart;

use crate::convert::{CountedFlows, FlowBatch, Wire};

use super::{AFTER_RESTORE, Arrival, Incomplete, NotOffered, StagedTooLong};

/// What the parts of a container's state are taken with.
struct Receiving<'a> {
    images: &'a ImageDir,
    criu_config: &'a ConfigDir,
    addresses: &'a [IpAddr],
    others: &'a OfOthers,
    claims: &'a Claims,
    /// Number of image files that have come.
    files: usize,
    /// Whether the runtime waits for the restore.
    is_ready: bool,
}

/// Puts what came before there was a container into the container.
fn apply(spool: &Spool, incoming: &mut ReceivedState) -> Result<(), Cause> {
    for part in spool.replay()? {
        incoming.take(part?)?;
    }
    Ok(())
}

impl Arrival {
    /// Takes images, files and flows until the order to restore comes, and restores.
    pub(super) async fn take_in(
        &mut self,
        connection: &mut Connection,
        images: ImageDir,
    ) -> Result<Option<Prepared>, Cause> {
        let staged = self.staged.as_ref().ok_or(Incomplete("itself"))?;
        let staged = staged.container();
        let begin_by = staged.expires.checked_sub(AFTER_RESTORE).ok_or(StagedTooLong)?;
        let mut trees: Vec<(Tree, &Path)> = vec![(Tree::Root, &staged.root)];
        trees.extend(staged.shm.as_deref().map(|shm| (Tree::SharedMemory, shm)));
        let criu_config = ConfigDir::create(&self.work.join("criu"), &Options::restore())?;
        // Volumes take of the same room.
        let of_volumes = self.volumes.as_ref().map_or(0, Volumes::taken);
        let disk = self.limits.disk.saturating_sub(of_volumes);
        let limits = Limits { disk, ..self.limits };
        let mut incoming = ReceivedState::open(&images, limits, &trees, &staged.log)?;
        // Of flows whose anchor this host is the source tells nothing.
        incoming.unscaled = self.is_return();
        incoming.without_symlinks.clone_from(&self.offer.without_symlinks);
        incoming.readdressed =
            self.readdressed.iter().map(|other| (other.old, other.new)).collect();
        if let Some(spool) = &self.spool {
            block_in_place(|| apply(spool, &mut incoming))?;
        }
        let others = OfOthers::read(&self.host.directories, &self.offer.id)?;
        let addresses = addresses(&self.offer);
        let here = routing::host_addresses().await?;
        let claims = Claims::new(self.host, self.offer.id.clone(), self.addresses(), here)?;
        let mut receiving = Receiving {
            images: &images,
            criu_config: &criu_config,
            addresses: &addresses,
            others: &others,
            claims: &claims,
            files: 0,
            is_ready: false,
        };
        let manifest = loop {
            let step = match self.next_before(connection, begin_by).await {
                Ok(Message::Unstage(())) => {
                    // The container may have other addresses when it is staged again.
                    self.created = std::mem::take(&mut incoming.created);
                    drop(incoming);
                    block_in_place(|| self.forget_flows())?;
                    return self.unstage(connection).await.map(|()| None);
                }
                Ok(Message::TryPaths(flows)) => match Vec::from_wire(flows) {
                    Ok(flows) => self.begin_paths(connection, &flows).await,
                    Err(refused) => Err(refused.into()),
                },
                Ok(Message::AskPaths(())) => self.answer_paths(connection).await,
                Ok(Message::EndPaths(())) => {
                    self.paths.end();
                    Ok(())
                }
                Ok(Message::CountFlows(flows)) => match CountedFlows::from_wire(flows) {
                    Ok(flows) => self.count_flows(flows).await,
                    Err(refused) => Err(refused.into()),
                },
                Ok(Message::CountPackets(addresses)) => self.count_packets(&addresses).await,
                Ok(Message::AskTurn(())) => self.answer_turn(connection).await,
                Ok(Message::Restore(manifest)) => match Manifest::from_wire(manifest) {
                    Ok(manifest) => break manifest,
                    Err(refused) => Err(refused.into()),
                },
                Ok(Message::MemoryPages(pages)) => block_in_place(|| self.take_memory(&pages)),
                Ok(Message::EmptyPages(pages)) => block_in_place(|| self.empty_memory(&pages)),
                Ok(Message::MemoryLater(pages)) => block_in_place(|| self.expect_later(&pages)),
                Ok(message) => match StatePart::try_from(message) {
                    Ok(part) => self.take_part(&mut incoming, part, &mut receiving).await,
                    Err(other) => Err(connection.unexpected(&other, "Restore").into()),
                },
                Err(e) => Err(e),
            };
            if let Err(cause) = step {
                self.created = incoming.created;
                return Err(cause);
            }
        };
        let ordered = Instant::now();
        self.paths.end();
        self.realtime = self.turn.as_ref().map(|_| RealtimePriority::begin());
        let settings = std::mem::take(&mut incoming.settings);
        self.far_ends = std::mem::take(&mut incoming.far_ends);
        match incoming.complete(&manifest) {
            Ok(created) => self.created = created,
            Err((created, cause)) => {
                self.created = created;
                return Err(cause);
            }
        }
        self.complete_memory(&images).await?;
        self.put_volumes_in_place()?;
        self.restore(connection, &images, &criu_config, &settings, ordered).await.map(Some)
    }

    /// Takes a part of the container's state.
    async fn take_part(
        &mut self,
        incoming: &mut ReceivedState,
        part: StatePart,
        receiving: &mut Receiving<'_>,
    ) -> Result<(), Cause> {
        match block_in_place(|| incoming.take(part))? {
            Some(StatePart::Chunks(chunks)) => {
                let chunks = Vec::<Chunk>::from_wire(chunks)?;
                receiving.files += chunks.iter().filter(|chunk| chunk.is_first()).count();
                if receiving.files > MANY_FILES {
                    self.realtime = None;
                }
                block_in_place(|| incoming.chunks(&chunks))?;
                if !receiving.is_ready && chunks.iter().any(Chunk::is_descriptors) {
                    receiving.is_ready = true;
                    self.expect_memory(receiving.images).await?;
                    self.make_ready(receiving.images, receiving.criu_config).await?;
                }
                Ok(())
            }
            Some(StatePart::Flows(batch)) => self.take_flows(incoming, batch, receiving),
            Some(
                part @ (StatePart::SharedMemory(_)
                | StatePart::EmptySharedMemory(_)
                | StatePart::SharedMemoryEnd(_)),
            ) => block_in_place(|| self.take_shared_memory(part)),
            Some(part @ (StatePart::VolumeChange(_) | StatePart::VolumeEnd(_))) => {
                self.take_of_volume(part)
            }
            _ => Ok(()),
        }
    }

    /// Makes the entries of flows that the source has sent.
    fn take_flows(
        &self,
        incoming: &mut ReceivedState,
        batch: message::FlowBatch,
        &mut Receiving { addresses, others, claims, .. }: &mut Receiving<'_>,
    ) -> Result<(), Cause> {
        let batch = FlowBatch::from_wire(batch)?;
        let hop = self.next_hop(batch.anchor)?;
        // It knows these addresses from this host.
        if batch.at_destination.iter().any(|ip| !self.own.contains(ip)) {
            return Err(NotOffered.into());
        }
        block_in_place(|| {
            others.check_far(&batch.aliases)?;
            let (aliases, readdressed) = (&batch.aliases[..], &self.readdressed[..]);
            let udp_timeout = flow::udp_timeout();
            let arrival = flow::Relocation { hop, aliases, readdressed, udp_timeout };
            incoming.flows(&batch, addresses, &arrival, claims)
        })
    }

    /// Returns the next message, if it comes before the engine would give up what is staged.
    async fn next_before(
        &self,
        connection: &mut Connection,
        end: Instant,
    ) -> Result<Message, Cause> {
        let end = tokio::time::Instant::from_std(end);
        match tokio::time::timeout_at(end, self.next(connection)).await {
            Ok(message) => message,
            Err(_) => Err(StagedTooLong.into()),
        }
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
}
