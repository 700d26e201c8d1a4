//! What goes to the destination before the interruption, and the tunnel by which flows will.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use checkpoint::tree::{Source, Tasks};
use netmig::flow::{NoAlias, Readdressed};
use netmig::tunnel;
use protocol::expect;
use protocol::message::{Data, Message, Tree};
use protocol::wire::PIECE;
use state::cause::Cause;
use state::deadline;
use steering::reconciler;
use steering::tunnels::{self, SteeringLock, TunnelEnd};
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;

use super::Preparation;
use crate::convert::Wire;
use crate::event::Steps;
use crate::source::anchors::Anchors;
use crate::source::container_log::CarriedLog;
use crate::source::engine_orders::Ended;
use crate::source::plan::Plan;
use crate::source::trees::{self, CarriedTree, Which};
use crate::state_stream::StateSink;
use crate::state_stream::peer::PeerSink;

/// The destination's end of the tunnel is of another kind than this host's.
#[derive(Debug, thiserror::Error)]
#[error("the destination has answered with another kind of tunnel than this host asked for")]
struct NotAsAsked;

/// The destination speaks of addresses that are none of the container's.
#[derive(Debug, thiserror::Error)]
#[error("the destination gives the container addresses in place of some that it does not have")]
struct NotItsAddresses;

impl Preparation<'_> {
    /// Makes this host's end of the tunnel and hears of the other one.
    pub(super) async fn offer_tunnel(&mut self) -> Result<TunnelEnd, Cause> {
        let link = &self.migration.plan.link;
        let (peer, address) = (link.peer, link.connection.peer().ip());
        let direct = self.migration.plan.offer.direct.is_some();
        let run = &self.migration.context.directories.run;
        let lock = SteeringLock::take(run).await?;
        let local = tunnels::prepare(peer, address, direct).await?;
        // The journal keeps the tunnel from being removed meanwhile.
        drop(lock);
        self.migration.tunnel_kind = local.kind.to_string();
        let connection = &mut self.migration.plan.link.connection;
        connection.send(&Message::TunnelOffer(local.into_wire())).await?;
        let answer = TunnelEnd::from_wire(expect!(connection, deadline::ANSWER, TunnelAnswer)?)?;
        if answer.is_direct() != direct {
            return Err(NotAsAsked.into());
        }
        self.migration.anchors =
            Anchors::agree(self.migration.context, &mut self.migration.plan).await;
        Ok(answer)
    }

    pub(super) async fn connect_tunnel(&mut self, end: &TunnelEnd) -> Result<(), Cause> {
        let link = &self.migration.plan.link;
        let _lock = SteeringLock::take(&self.migration.context.directories.run).await?;
        tunnels::complete(link.peer, link.connection.peer().ip(), end).await?;
        Ok(reconciler::start(
            &self.migration.context.directories,
            self.migration.context.background.reconciler,
        )?)
    }

    pub(super) async fn ship_image(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        let image = self.migration.plan.offer.image.clone();
        let connection = &mut self.migration.plan.link.connection;
        let before = connection.sent();
        connection.send(&Message::ImageBegin(image.clone())).await?;
        // Its name may be another image's by now.
        let mut save = self.migration.context.engine.save_image(&image.id)?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = save.stream().take(PIECE as u64).read_to_end(&mut piece).await?;
            if read == 0 {
                break;
            }
            connection.send_bulk(&Message::ImageData(Data(piece))).await?;
            steps.add_bytes(read as u64);
        }
        save.finish().await?;
        connection.send(&Message::ImageEnd(())).await?;
        expect!(connection, deadline::IMAGE, ImageStored)?;
        steps.add_sent(connection.sent() - before);
        let destination = &self.migration.plan.link.destination.host;
        self.migration.sent_image = Some(format!(
            "image {} is at {destination} now; remove it there if it is not wanted",
            image.name
        ));
        Ok(())
    }

    /// Waits for the stage, and meanwhile tries the tunnel together with the far end: what the far
    /// end says of a failure counts more than its silence in the tunnel.
    pub(super) async fn await_stage(&mut self) -> Result<(), Cause> {
        let Plan { link, runtime, criu, .. } = &mut self.migration.plan;
        let staged = async {
            let readdressed = expect!(link.connection, deadline::STAGE, Staged)?;
            Ok::<_, Cause>(readdressed)
        };
        let heard = async {
            // The first packet through a tunnel waits for its handshake: not inside the interruption.
            tunnel::establish(link.peer).await?;
            Ok(tunnel::confirm(link.peer).await?)
        };
        let warmed = async { Ok(runtime.warm(criu).await?) };
        let (others, (), ()) = tokio::try_join!(staged, heard, warmed)?;
        let own = &self.migration.plan.addresses;
        let sound = |(old, new): &(IpAddr, IpAddr)| {
            own.contains(old) && old != new && old.is_ipv4() == new.is_ipv4()
        };
        if others.len() > own.len() || !others.iter().all(sound) {
            return Err(NotItsAddresses.into());
        }
        let aliases = &self.migration.plan.aliases;
        let become_new = |(old, new)| {
            let tunnel = aliases.of(old)?.address;
            Ok::<_, NoAlias>(Readdressed { old, tunnel, new })
        };
        self.migration.plan.readdressed =
            others.into_iter().map(become_new).collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(super) async fn send_files(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        let before = self.migration.plan.link.connection.sent();
        let container = &self.migration.plan.container;
        let mut sources = Vec::new();
        if let (Some(upper), Some(merged)) = (&container.upper, &container.merged) {
            sources.push((Tree::Root, Source::overlay(upper, merged)?));
        }
        if let Some(shm) = container.shm.as_deref().filter(|path| path.is_dir()) {
            let shm = seen_inside(shm, self.migration.plan.process.pid)
                .ok_or_else(|| Ended(container.name.clone()))?;
            sources.push((Tree::SharedMemory, Source::plain(&shm)?));
        }
        if let Some(path) = container.log.as_deref().filter(|path| path.is_file()) {
            let mut log = CarriedLog::open(path)?;
            let pass = move |sink: &dyn StateSink| {
                log.pass(sink)?;
                Ok(log)
            };
            let log = self.send_parts(steps, pass).await?;
            self.ready.log = Some(log);
        }
        for (tree, source) in sources {
            let which = Which::Own(tree);
            let pass = move |sink: &dyn StateSink| {
                let (snapshot, _) =
                    trees::send(which, sink, |records| source.first_pass(Tasks::Running, records))?;
                Ok(CarriedTree { which, source, snapshot })
            };
            let carried = self.send_parts(steps, pass).await?;
            let connection = &mut self.migration.plan.link.connection;
            expect!(connection, deadline::TREE, TreeApplied)?;
            self.ready.trees.push(carried);
        }
        steps.add_sent(self.migration.plan.link.connection.sent() - before);
        Ok(())
    }

    /// Sends what `pass` puts into the sink, as it comes, and returns what `pass` returns.
    pub(super) async fn send_parts<T: Send + 'static>(
        &mut self,
        steps: &mut Steps<'_>,
        pass: impl FnOnce(&dyn StateSink) -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, Cause> {
        let (sink, mut parts) = PeerSink::new();
        let pass = spawn_blocking(move || pass(&sink));
        let connection = &mut self.migration.plan.link.connection;
        while let Some(part) = parts.recv().await {
            let payload = part.payload();
            connection.send_bulk(&part.into()).await?;
            steps.add_bytes(payload);
        }
        pass.await?
    }
}

/// Returns the container's mount of its shared memory, by the path through its first process: a file that is open below the
/// engine's own mount would keep the engine from unmounting it when it stops the container. `mount` is the engine's
/// own, which is returned unless the container has the same directory there; `None` is returned when the process has
/// ended.
fn seen_inside(mount: &Path, pid: i32) -> Option<PathBuf> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    std::fs::metadata(&root).ok()?;
    let inside = root.join("dev/shm");
    let identity = |path: &Path| {
        let directory = std::fs::symlink_metadata(path).ok()?;
        Some((directory.dev(), directory.ino()))
    };
    let own = identity(mount);
    Some(if own.is_some() && identity(&inside) == own { inside } else { mount.to_owned() })
}
