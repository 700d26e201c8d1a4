//! The preparation: everything slow, while the container runs. What is changed here is undone here.

mod baseline;
mod memory_transfer;
mod streams;
mod tools;
mod transfer;
mod volumes;

use std::time::Duration;

use checkpoint::criu::{ConfigDir, MemoryApart, Options};
use checkpoint::images::ImageDir;
use netmig::flow::Conntrack;
use netmig::hold::{HoldRules, OnHolderLoss, PreparedHold};
use netmig::sockets::{Backlogs, TcpSockets, UdpQueues, receive_buffers};
use netmig::tunnel;
use protocol::expect;
use protocol::message::Message;
use state::cause::{Cause, chain};
use state::deadline;
use state::directories::create_private;
use state::interrupt_slot::Turn;
use steering::port_forward::{Away, Note, Role};
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::bridged_flows::Besides;
use super::engine_orders;
use super::failure::Failure;
use super::interrupt_slot;
use super::landlock::LandlockWatch;
use super::memory_rounds::MemoryRounds;
use super::migration::Migration;
use super::path_trial;
use super::plan::Plan;
use super::ports;
use super::prepared_dump::PreparedDump;
use crate::convert::Wire;
use crate::event::Steps;
use crate::request;
use tools::Ready;
pub use tools::{NotPrepared, Tools};

/// How long a staged container waits for its turn.
const STAGED_WAIT: Duration = Duration::from_millis(600);

/// A migration that is being prepared.
pub struct Preparation<'a> {
    migration: Migration<'a>,
    ready: Ready,
}

impl<'a> Preparation<'a> {
    /// Begins to prepare it.
    #[must_use]
    pub fn of(migration: Migration<'a>) -> Self {
        Self { migration, ready: Ready::default() }
    }

    /// Runs the steps.
    pub async fn prepare(
        &mut self,
        steps: &mut Steps<'_>,
        options: &request::Options,
    ) -> Result<(), Cause> {
        self.make_room()?;
        self.open_streams(options.streams).await?;
        steps.begin("tunnel");
        let remote = self.offer_tunnel().await?;
        if self.migration.plan.image_missing {
            self.connect_tunnel(&remote).await?;
            // Not after minutes of shipping.
            tunnel::establish(self.migration.plan.link.peer).await?;
            steps.begin("image");
            self.ship_image(steps).await?;
        }
        // They may take minutes, and the far end's engine holds a lock while the container is staged.
        steps.begin("files, first pass");
        self.send_files(steps).await?;
        self.send_volumes(steps).await?;
        self.send_memory(steps, options).await?;
        steps.begin("stage");
        self.order_stage().await?;
        // The far end's engine works for a third of a second. In that time this host makes the tunnel
        // and the hold ready, and reads the programs into memory: the first dump on a host takes
        // twice as long as later ones.
        if !self.migration.plan.image_missing {
            self.connect_tunnel(&remote).await?;
        }
        // What passes in the time that is left until the interruption is in use.
        self.migration.in_use = block_in_place(|| self.watch());
        self.note_forwarding().await?;
        block_in_place(|| self.prepare_hold())?;
        self.prepare_removal();
        block_in_place(|| self.start_runtime())?;
        self.await_stage().await?;
        steps.begin("try paths");
        let warnings = path_trial::check(self.migration.context, &mut self.migration.plan).await?;
        self.migration.plan.warnings.extend(warnings);
        steps.end();
        let turn =
            interrupt_slot::take(self.migration.context, &mut self.migration.plan, STAGED_WAIT)
                .await?;
        self.ready.turn = match turn {
            Some(turn) => Some(turn),
            None => Some(self.stage_in_turn(steps).await?),
        };
        // Not earlier: until the container is frozen, its unit does not restart it if it ends by itself.
        self.migration.guard_unit().await?;
        // Again, for sockets that are new, or got their own size back after an earlier move.
        self.make_room()?;
        self.have_counted().await?;
        self.start_far_runtime().await?;
        self.send_volumes_again(steps).await?;
        self.send_memory_again(options).await?;
        let Migration { context, plan, .. } = &self.migration;
        engine_orders::check(&*context.engine, &plan.container).await?;
        self.ready.landlock = LandlockWatch::begin(plan, options)?;
        block_in_place(|| self.migration.in_use.look(&self.migration.plan.namespace))
    }

    /// Has the container unstaged, since its turn does not come, and staged again once it has come: the far
    /// end's engine holds a lock meanwhile, and whoever lists its containers waits for that.
    async fn stage_in_turn(&mut self, steps: &mut Steps<'_>) -> Result<Turn, Cause> {
        steps.begin("wait for other moves");
        let connection = &mut self.migration.plan.link.connection;
        connection.send(&Message::Unstage(())).await?;
        expect!(connection, deadline::STAGE, Unstaged)?;
        let turn =
            interrupt_slot::take(self.migration.context, &mut self.migration.plan, deadline::TURN)
                .await?;
        let turn = turn.ok_or(interrupt_slot::NoTurn)?;
        steps.begin("stage again");
        self.order_stage().await?;
        self.await_stage().await?;
        steps.end();
        Ok(turn)
    }

    /// Enlarges receive buffers, for datagrams that will have been held, and for those that come while the processors have this
    /// migration's work to do. The copy gets its buffers' own size back from the far end.
    fn make_room(&self) -> Result<(), Cause> {
        receive_buffers::enlarge(&self.migration.plan.cgroup.pids()?)?;
        Ok(())
    }

    /// Has the runtime do everything that comes before CRIU.
    fn start_runtime(&mut self) -> Result<(), Cause> {
        if let (Some(images), Some(config)) = (&self.ready.images, &self.ready.criu_config) {
            let dump =
                PreparedDump::start(&self.migration.plan, &self.migration.work, images, config)?;
            self.ready.dump = Some(dump);
        }
        Ok(())
    }

    /// Has the one of the far end do so as well: it has given this turn already, and answers when its
    /// runtime waits.
    async fn start_far_runtime(&mut self) -> Result<(), Cause> {
        let Some(dump) = &mut self.ready.dump else { return Err(NotPrepared.into()) };
        let chunks = block_in_place(|| dump.first_chunks())?;
        let connection = &mut self.migration.plan.link.connection;
        connection.send(&Message::Chunks(chunks.into_wire())).await?;
        connection.send(&Message::AskTurn(())).await?;
        expect!(connection, deadline::STAGE, TurnAnswer)?;
        Ok(())
    }

    /// Notes what is to be forwarded once the move is decided.
    async fn note_forwarding(&self) -> Result<(), Cause> {
        let Some(away) = &self.migration.plan.away else { return Ok(()) };
        let directories = &self.migration.context.directories;
        let lock = SteeringLock::take(&directories.run).await?;
        forwarding(&self.migration.plan, away).write(directories, &lock)
    }

    /// Sockets, buffers, directories: nothing of them is made inside the interruption.
    fn prepare_hold(&mut self) -> Result<(), Cause> {
        create_private(&self.migration.work)?;
        let images = self.migration.work.join("images");
        self.ready.images =
            Some(ImageDir::create(&images, self.migration.plan.offer.image_room())?);
        let apart = self.ready.memory.as_ref().map(MemoryRounds::apart);
        let options = Options {
            watched: self.migration.plan.watched.clone(),
            parent: apart.map(|apart| apart.parent().to_owned()),
            ..Options::dump()
        };
        let config = ConfigDir::create(&self.migration.work.join("criu"), &options)?;
        self.ready.criu_config = Some(config.with_notes(apart.and_then(MemoryApart::notes))?);
        let published = ports::offered(&self.migration.plan.container.ports);
        let rules = HoldRules {
            addresses: self.migration.plan.addresses.clone(),
            published: published.iter().map(|p| (p.protocol, p.host_port)).collect(),
            on_loss: OnHolderLoss::Accept,
        };
        self.ready.hold = Some(PreparedHold::new(self.migration.hold_tag()?, &rules)?);
        self.ready.queues = Some(UdpQueues::open(&self.migration.plan.namespace)?);
        self.ready.backlogs = Some(Backlogs::open(&self.migration.plan.namespace)?);
        self.ready.sockets = Some(TcpSockets::open(&self.migration.plan.namespace)?);
        self.ready.conntrack = Some(Conntrack::open()?);
        self.ready.besides =
            Some(Besides::find(&self.migration.context.directories, &self.migration.plan)?);
        self.tell_of_siblings()
    }

    /// Starts the engine's removal of the original beforehand: the engine's own start is a third of that time.
    fn prepare_removal(&mut self) {
        match self.migration.context.engine.prepare_removal() {
            Ok(removal) => self.migration.removal = removal,
            Err(e) => tracing::debug!("{}", chain(&e)),
        }
    }

    async fn order_stage(&mut self) -> Result<(), Cause> {
        let anchors = self.migration.anchors.hosts().into_values().collect();
        let state = self.migration.plan.network.state().clone();
        let state = Message::NetworkState(state.into_wire());
        let connection = &mut self.migration.plan.link.connection;
        connection.send(&state).await?;
        Ok(connection.send(&Message::Stage(anchors)).await?)
    }

    /// Hands out everything for the interruption.
    ///
    /// # Errors
    /// Something of it was not made ready. The migration comes back, to be undone.
    pub fn finish(mut self) -> Result<(Migration<'a>, Tools), Box<(Self, NotPrepared)>> {
        match self.ready.take() {
            Ok(tools) => Ok((self.migration, tools)),
            Err(e) => Err(Box::new((self, e))),
        }
    }

    /// Undoes everything.
    pub async fn go_back(mut self, cause: Cause) -> Failure {
        drop(self.ready.hold.take());
        if let Some(dump) = self.ready.dump.take() {
            dump.abandon().await;
        }
        self.migration.go_back(cause, Vec::new()).await
    }
}

/// Returns the note of what is to be forwarded once the move is decided.
fn forwarding(plan: &Plan, away: &Away) -> Note {
    Note {
        id: plan.container.id.clone(),
        name: plan.container.name.clone(),
        addresses: plan.addresses.clone(),
        readdressed: Vec::new(),
        host: plan.link.host,
        migration: plan.offer.migration,
        role: Role::Away(away.clone()),
    }
}
