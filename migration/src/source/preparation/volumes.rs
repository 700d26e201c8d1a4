//! The files of volumes, while the container runs.

use checkpoint::tree::{Source, Tasks};
use protocol::expect;
use state::cause::Cause;
use state::deadline;

use super::Preparation;
use crate::event::Steps;
use crate::source::trees::{self, CarriedTree, Which};
use crate::state_stream::StateSink;

/// Most passes over all volumes before the container is staged.
const MOST_PASSES: usize = 8;
/// A pass of so few bytes is not worth another one.
const SMALL: u64 = 4 << 20;

/// The destination speaks of another volume than was sent.
#[derive(Debug, thiserror::Error)]
#[error("the destination has confirmed another volume than was sent")]
struct OtherVolume;

impl Preparation<'_> {
    /// Sends all files of the volumes, and then what has changed meanwhile, until that gets no less.
    pub(super) async fn send_volumes(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        if self.migration.plan.volumes.is_empty() {
            return Ok(());
        }
        steps.begin("volumes");
        let before = self.migration.plan.link.connection.sent();
        let mut carried = Vec::new();
        let mut bytes = 0;
        for number in 0..self.migration.plan.volumes.len() {
            let volume = u16::try_from(number)?;
            let source = Source::plain(&self.migration.plan.volumes[number].data)?;
            let pass = move |sink: &dyn StateSink| {
                let which = Which::Volume(volume);
                let (snapshot, stats) =
                    trees::send(which, sink, |records| source.first_pass(Tasks::Running, records))?;
                Ok((CarriedTree { which, source, snapshot }, stats.bytes))
            };
            let (tree, sent) = self.send_parts(steps, pass).await?;
            self.await_volume(volume).await?;
            carried.push(tree);
            bytes += sent;
        }
        for _ in 1..MOST_PASSES {
            let (again, sent) = self.pass_over_volumes(steps, carried, true).await?;
            carried = again;
            if sent < SMALL || sent > bytes / 4 * 3 {
                break;
            }
            bytes = sent;
        }
        steps.add_sent(self.migration.plan.link.connection.sent() - before);
        self.ready.volumes = carried;
        Ok(())
    }

    /// Sends what has changed while the container was staged.
    pub(super) async fn send_volumes_again(&mut self, steps: &mut Steps<'_>) -> Result<(), Cause> {
        let carried = std::mem::take(&mut self.ready.volumes);
        let (carried, _) = self.pass_over_volumes(steps, carried, false).await?;
        self.ready.volumes = carried;
        Ok(())
    }

    /// Sends what has changed in the volumes, and returns how many bytes that were.
    async fn pass_over_volumes(
        &mut self,
        steps: &mut Steps<'_>,
        carried: Vec<CarriedTree>,
        is_confirmed: bool,
    ) -> Result<(Vec<CarriedTree>, u64), Cause> {
        let (mut again, mut bytes) = (Vec::new(), 0);
        for CarriedTree { which, source, snapshot } in carried {
            let pass = move |sink: &dyn StateSink| {
                let (snapshot, stats) = trees::send(which, sink, |records| {
                    source.changes_since(snapshot, Tasks::Running, records)
                })?;
                Ok((CarriedTree { which, source, snapshot }, stats.bytes))
            };
            let (tree, sent) = self.send_parts(steps, pass).await?;
            if let (true, Which::Volume(volume)) = (is_confirmed, which) {
                self.await_volume(volume).await?;
            }
            again.push(tree);
            bytes += sent;
        }
        Ok((again, bytes))
    }

    /// Waits until a pass is on the destination's disk.
    async fn await_volume(&mut self, volume: u16) -> Result<(), Cause> {
        let connection = &mut self.migration.plan.link.connection;
        let applied = expect!(connection, deadline::TREE, VolumeApplied)?;
        if applied == volume { Ok(()) } else { Err(OtherVolume.into()) }
    }
}
