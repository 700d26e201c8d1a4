//! Steps 3 to 5: everything slow, while the container runs. What is changed here is undone here.

mod exchange;
mod look;
mod tools;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use checkpoint::criu::{ConfigDir, Options};
use checkpoint::images::ImageDir;
use netmig::flow::{Conntrack, Exchange};
use netmig::hold::{HoldRules, OnHolderLoss, PreparedHold};
use netmig::sockets::{Backlogs, TcpSockets, UdpQueues, room};
use netmig::table::HoldTag;
use netmig::tunnel;
use ownership::source::may_end;
use protocol::expect;
use protocol::message::Message;
use state::cause::{Cause, chain};
use state::deadline;
use state::directories::create_private;
use state::guardian::{self, Guardian};
use state::interrupt_slot::Turn;
use state::journal::{self, Journal, Record};
use steering::moved_containers;
use steering::port_forward::{Away, Note, Role};
use steering::tunnels::{self, SteeringLock};
use steering::{opened_firewall, port_forward};
use tokio::task::block_in_place;

use super::anchors::Anchors;
use super::dump::PreparedDump;
use super::failure::Failure;
use super::path_trial;
use super::plan::Plan;
use super::ports;
use super::siblings::Besides;
use super::{destination_rpc, interrupt_slot};
use crate::context::Context;
use crate::convert::Wire;
use crate::event::Steps;
use tools::Ready;
pub use tools::{NotPrepared, Tools};

/// How long a staged container waits for its turn.
const STAGED_WAIT: Duration = Duration::from_millis(600);
/// How long the killed tasks of the original may take to be gone.
const KILLED: Duration = Duration::from_secs(10);

/// A migration that has begun to change this host.
pub struct Preparation<'a> {
    context: &'a Context,
    plan: Plan,
    journal: Journal,
    _guardian: Guardian,
    work: PathBuf,
    ready: Ready,
    is_dumping: bool,
    exchange: Exchange,
}

impl<'a> Preparation<'a> {
    /// Writes the journal's first record.
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
        let journal = Journal::begin(&context.directories.state, migration, &record)?;
        let work = context.directories.migration(migration);
        Ok(Self {
            context,
            plan,
            journal,
            _guardian: guardian,
            work,
            ready: Ready::default(),
            is_dumping: false,
            exchange: Exchange::default(),
        })
    }

    /// Runs the steps.
    pub async fn prepare(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        self.make_room()?;
        steps.begin("tunnel");
        let remote = self.offer_tunnel().await?;
        if self.plan.image_missing {
            self.connect_tunnel(&remote).await?;
            // Not after minutes of shipping.
            tunnel::establish(self.plan.link.peer).await?;
            steps.begin("image");
            self.ship_image(steps).await?;
        }
        // They may take minutes, and the far end's engine holds a lock while the container is staged.
        steps.begin("files, first pass");
        self.send_files(steps).await?;
        steps.begin("stage");
        self.order_stage().await?;
        // The far end's engine works for a third of a second. In that time this host makes the tunnel
        // and the hold ready, and reads the programs into memory: the first dump on a host takes
        // twice as long as later ones.
        if !self.plan.image_missing {
            self.connect_tunnel(&remote).await?;
        }
        // What passes in the time that is left until the interruption is in use.
        self.ready.in_use = self.watch().await;
        self.note_forwarding().await?;
        block_in_place(|| self.prepare_hold())?;
        self.prepare_removal();
        block_in_place(|| self.start_runtime())?;
        self.await_stage().await?;
        steps.begin("try paths");
        let warnings = path_trial::check(self.context, &mut self.plan).await?;
        self.plan.warnings.extend(warnings);
        steps.end();
        let turn = interrupt_slot::take(self.context, &mut self.plan, STAGED_WAIT).await?;
        self.ready.turn = match turn {
            Some(turn) => Some(turn),
            None => Some(self.stage_in_turn(steps).await?),
        };
        // Again, for sockets that are new, or got their own size back after an earlier move.
        self.make_room()?;
        self.start_far_runtime().await?;
        block_in_place(|| self.ready.in_use.look(&self.plan.namespace))
    }

    /// Has the container unstaged, since its turn does not come, and staged again once it has come: the far
    /// end's engine holds a lock meanwhile, and whoever lists its containers waits for that.
    async fn stage_in_turn(&mut self, steps: &mut Steps<'_>) -> Result<Turn, Cause> {
        steps.begin("wait for other moves");
        let connection = &mut self.plan.link.connection;
        connection.send(&Message::Unstage(())).await?;
        expect!(connection, deadline::STAGE, Unstaged)?;
        let turn = interrupt_slot::take(self.context, &mut self.plan, deadline::TURN).await?;
        let turn = turn.ok_or(interrupt_slot::NoTurn)?;
        steps.begin("stage again");
        self.order_stage().await?;
        self.await_stage().await?;
        steps.end();
        Ok(turn)
    }

    /// For datagrams that will have been held, and for those that come while the processors have this
    /// migration's work to do. The copy gets its buffers' own size back from the far end.
    fn make_room(&self) -> Result<(), Cause> {
        room::make_room(&self.plan.cgroup.pids()?)?;
        Ok(())
    }

    /// Has the runtime do everything that comes before CRIU.
    fn start_runtime(&mut self) -> Result<(), Cause> {
        if let (Some(images), Some(config)) = (&self.ready.images, &self.ready.criu_config) {
            let dump = PreparedDump::start(&self.plan, &self.work, images, config)?;
            self.ready.dump = Some(dump);
        }
        Ok(())
    }

    /// Has the one of the far end do so as well: it has given this turn already, and answers when its
    /// runtime waits.
    async fn start_far_runtime(&mut self) -> Result<(), Cause> {
        let Some(dump) = &mut self.ready.dump else { return Err(NotPrepared.into()) };
        let chunks = block_in_place(|| dump.first_chunks())?;
        let connection = &mut self.plan.link.connection;
        connection.send(&Message::Chunks(chunks.into_wire())).await?;
        connection.send(&Message::AskTurn(())).await?;
        expect!(connection, deadline::STAGE, TurnAnswer)?;
        Ok(())
    }

    /// Notes what is to be forwarded once the move is decided.
    async fn note_forwarding(&self) -> Result<(), Cause> {
        let Some(away) = &self.plan.away else { return Ok(()) };
        let directories = &self.context.directories;
        let lock = SteeringLock::take(&directories.run).await?;
        forwarding(&self.plan, away).write(directories, &lock)
    }

    /// Sockets, buffers, directories: nothing of them is made inside the interruption.
    fn prepare_hold(&mut self) -> Result<(), Cause> {
        create_private(&self.work)?;
        let images = self.work.join("images");
        self.ready.images = Some(ImageDir::create(&images, self.plan.offer.image_room())?);
        let options = Options { watched: self.plan.watched.clone(), ..Options::dump() };
        self.ready.criu_config = Some(ConfigDir::create(&self.work.join("criu"), &options)?);
        let published = ports::offered(&self.plan.container.ports);
        let rules = HoldRules {
            addresses: self.plan.addresses.clone(),
            published: published.iter().map(|p| (p.protocol, p.host_port)).collect(),
            on_loss: OnHolderLoss::Accept,
        };
        self.ready.hold = Some(PreparedHold::new(self.hold_tag()?, &rules)?);
        self.ready.queues = Some(UdpQueues::open(&self.plan.namespace)?);
        self.ready.backlogs = Some(Backlogs::open(&self.plan.namespace)?);
        self.ready.sockets = Some(TcpSockets::open(&self.plan.namespace)?);
        self.ready.conntrack = Some(Conntrack::open()?);
        self.ready.besides = Some(Besides::find(&self.context.directories, &self.plan)?);
        self.tell_of_siblings()
    }

    /// The engine's own start is a third of what it takes to remove the original, and can come first.
    fn prepare_removal(&mut self) {
        match self.context.engine.prepare_removal() {
            Ok(removal) => self.ready.removal = removal,
            Err(e) => tracing::debug!("{}", chain(&e)),
        }
    }

    /// Has the engine remove the original, whose tasks are killed before: engines and runtimes thaw what they
    /// end, and the original may not run again, nor be started anew by its restart policy.
    pub async fn remove_original(&mut self) -> Result<(), Cause> {
        let id = &self.plan.container.id;
        self.context.engine.ignore_exit(id, self.plan.process.monitor).await?;
        block_in_place(|| self.plan.cgroup.kill(Instant::now() + KILLED))?;
        match self.ready.removal.take() {
            Some(prepared) => prepared.remove(id).await?,
            None => self.context.engine.remove(id).await?,
        }
        Ok(())
    }

    async fn order_stage(&mut self) -> Result<(), Cause> {
        let anchors = self.ready.anchors.hosts().into_values().collect();
        let state = Message::NetworkState(self.plan.network.state().clone().into_wire());
        let connection = &mut self.plan.link.connection;
        connection.send(&state).await?;
        Ok(connection.send(&Message::Stage(anchors)).await?)
    }

    /// Hands out everything for the interruption.
    pub fn take_tools(&mut self) -> Result<Tools, NotPrepared> {
        self.ready.take()
    }

    /// Has the far end undo its part. One that failed has done so; one that cannot be reached will.
    async fn abort(&mut self) {
        let migration = self.plan.offer.migration;
        let connection = &mut self.plan.link.connection;
        if connection.send(&Message::Abort(migration)).await.is_ok() {
            let _ = connection.receive_aborted(deadline::ANSWER).await;
            return;
        }
        // What was being sent when the time was over can neither be ended nor taken back. A user who
        // tries again at once must not meet what the far end has not removed yet.
        connection.close().await;
        let far_end = self.plan.far_end();
        let told = destination_rpc::abort(self.context, &far_end);
        match tokio::time::timeout(deadline::ANSWER, told).await {
            Ok(Ok(())) => {}
            other => tracing::debug!(?other, "the destination was not seen to undo its part"),
        }
    }

    /// Undoes everything: the far end drops its part, this host's kernel is as it was.
    pub async fn go_back(self, cause: Cause) -> Failure {
        self.go_back_without(cause, Vec::new()).await
    }

    /// The same for a container of which some things could not be undone: it may be frozen or cut off still.
    /// Its journal stays, so that the guardian goes on with it.
    pub async fn go_back_without(mut self, cause: Cause, stuck: Vec<String>) -> Failure {
        // That the kernel cannot tell does not mean that it has ended.
        let ended = matches!(self.plan.cgroup.is_populated(), Ok(false));
        let mut leftovers = if ended { Vec::new() } else { stuck.clone() };
        let migration = self.plan.offer.migration;
        self.abort().await;
        self.ready.anchors.withdraw().await;
        drop(self.ready.hold.take());
        // Its rules would keep the table.
        drop(self.take_in_use());
        if let Some(dump) = self.ready.dump.take() {
            dump.abandon().await;
        }
        if let Some(removal) = self.ready.removal.take() {
            removal.abandon().await;
        }
        // Larger buffers than before do no harm, so this is no leftover.
        let pids = self.plan.cgroup.pids().unwrap_or_default();
        if let Err(e) = room::take_room_back(&pids) {
            tracing::debug!("{}", chain(&e));
        }
        if !self.is_dumping {
            leftovers.extend(self.tidy().err().map(|e| chain(e.as_ref())));
        }
        let of_this = |note: &Note| note.migration == migration;
        let unforwarded = port_forward::remove(&self.context.directories, of_this).await;
        leftovers.extend(unforwarded.err().map(|e| chain(e.as_ref())));
        let forgotten =
            moved_containers::forget_ended(&self.context.directories, Some(migration)).await;
        leftovers.extend(forgotten.err().map(|e| chain(e.as_ref())));
        let closed = opened_firewall::withdraw(&self.context.directories, migration).await;
        leftovers.extend(closed.err().map(|e| chain(e.as_ref())));
        let peer = self.plan.link.peer;
        let unused = tunnels::release(&self.context.directories, peer, Some(migration)).await;
        leftovers.extend(unused.err().map(|e| chain(e.as_ref())));
        if may_end(leftovers.is_empty()) {
            leftovers.extend(self.journal.end().err().map(|e| chain(&e)));
        }
        if !ended && !stuck.is_empty() {
            return Failure::Stuck { container: self.plan.container.name, cause, leftovers };
        }
        if leftovers.is_empty() && !ended {
            return Failure::undone(cause);
        }
        Failure::RolledBack { cause, ended, leftovers }
    }

    /// Removes the migration's volatile directory.
    pub fn tidy(&mut self) -> Result<(), Cause> {
        ImageDir::remove_at(&self.work.join("images"))?;
        match std::fs::remove_dir_all(&self.work) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Notes that CRIU is still at work on the container: its images must stay until it has ended.
    pub fn leave_dump(&mut self) {
        self.is_dumping = true;
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan, to talk to the destination.
    pub fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// The journal.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// What every migration of this host needs.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The migration's volatile directory.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The third hosts that are anchors of flows.
    pub fn anchors(&mut self) -> &mut Anchors {
        &mut self.ready.anchors
    }

    /// How the tunnel is made, for people.
    pub fn tunnel_kind(&self) -> &str {
        &self.ready.tunnel_kind
    }

    /// The tag of the hold's rules.
    pub fn hold_tag(&self) -> Result<HoldTag, Cause> {
        Ok(self.plan.offer.migration.to_string().parse()?)
    }

    /// The journal's end: nothing of the migration is left here. Tunnels that carry no flow from here
    /// go, too.
    pub async fn end(self) -> Result<(), Cause> {
        let container = &self.plan.container;
        let directories = &self.context.directories;
        self.carried(self.exchange.clone()).note(directories).await?;
        port_forward::remove(directories, port_forward::here(&container.id)).await?;
        // Its rules would keep the table.
        let migration = Some(self.plan.offer.migration);
        moved_containers::forget_ended(directories, migration).await?;
        for peer in self.plan.anchors.keys().copied().chain([self.plan.link.peer]) {
            tunnels::release(directories, peer, migration).await?;
        }
        Ok(self.journal.end()?)
    }
}

/// The note of what is to be forwarded once the move is decided.
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
