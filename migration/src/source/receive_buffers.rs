//! Room in the container's receive buffers, before the processors have anything of a migration to do.

use checkpoint::cgroup::Cgroup;
use netmig::sockets::receive_buffers;
use state::cause::chain;

/// Larger buffers, which are given their own size back when this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the buffers are as they were"]
pub struct Room(Option<Cgroup>);

impl Room {
    /// Enlarges the buffers of a container's sockets. What prevents this is found out later.
    pub fn make(cgroup: Option<Cgroup>) -> Self {
        let cgroup = cgroup.filter(|cgroup| {
            let pids = cgroup.pids().unwrap_or_default();
            receive_buffers::enlarge(&pids).is_ok_and(|sockets| sockets > 0)
        });
        Self(cgroup)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(cgroup) = &self.0 else { return };
        // Larger buffers than before do no harm.
        if let Err(e) = receive_buffers::restore(&cgroup.pids().unwrap_or_default()) {
            tracing::debug!("{}", chain(&e));
        }
    }
}
