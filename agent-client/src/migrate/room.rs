//! Room in the container's receive buffers, before the processors have anything of a migration to do.

use agent_core::cause::chain;
use checkpoint::cgroup::Cgroup;
use checkpoint::podman::Podman;
use netmig::sockets::room;

/// Larger buffers, which are given their own size back when this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the buffers are as they were"]
pub struct Room(Option<Cgroup>);

impl Room {
    /// Enlarges the buffers of a container about which podman need not be asked. That it runs and may be
    /// moved is found out later, and so is what prevents this.
    pub fn make(podman: &Podman, container: &str) -> Self {
        let cgroup = podman.cgroup(container).filter(|cgroup| {
            let pids = cgroup.pids().unwrap_or_default();
            room::make_room(&pids).is_ok_and(|sockets| sockets > 0)
        });
        Self(cgroup)
    }

    /// Leaves them large: the migration that has begun takes care of them.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(cgroup) = &self.0 else { return };
        // Larger buffers than before do no harm.
        if let Err(e) = room::take_room_back(&cgroup.pids().unwrap_or_default()) {
            tracing::debug!("{}", chain(&e));
        }
    }
}
