//! A prepared copy: restored, whole, frozen, and cut off from every network.

use checkpoint::cgroup::Cgroup;
use checkpoint::lazy_pages::LazyPages;
use engine::Kind;
use engine::stage::Staged;
use ownership::destination::{Holding, after_removal};
use protocol::message::Finished;
use state::cause::{Cause, chain};
use state::journal::{Journal, Record};
use tokio::task::block_in_place;

use super::arrival::{Arrival, MemoryGone, Network, Whole};
use super::counted_flows::CountedFlows;
use super::following_memory::FollowingMemory;
use super::outstanding_pages::watch;
use netmig::container_network::SiblingAddresses;
use netmig::sockets::receive_buffers;

/// A copy that waits for its source's decision. Either [`Copy::activate`] makes it the container,
/// or [`Copy::remove`] removes it.
#[derive(Debug)]
pub struct Copy {
    arrival: Arrival,
    staged: Box<dyn Staged>,
    network: Network,
    /// Frozen until the activation.
    cgroup: Cgroup,
    journal: Journal,
    mtu: u32,
    others: SiblingAddresses,
    /// What puts memory in place that follows, until the activation.
    lazy_pages: Option<LazyPages>,
    /// Tells after the activation whether that memory was lost.
    following: Option<FollowingMemory>,
    /// Whether the journal says that it is the container.
    was_activated: bool,
}

impl Copy {
    /// Takes over what an arrival has made; `None` if it is not complete.
    pub async fn of(mut arrival: Arrival) -> Option<Self> {
        let Whole { staged, network, cgroup, journal, mtu, lazy_pages } =
            arrival.take_prepared()?;
        // A socket that was restored stays at its smallest segment size until the MTU of its route
        // changes; and no packet that the container sends may be too large for the tunnel.
        if let Err(e) = network.sandbox.set_route_mtu(mtu) {
            tracing::warn!("{}: {}", arrival.offer().migration, chain(&e));
        }
        let others = arrival.others(&network).await.unwrap_or_else(|e| {
            tracing::warn!("{}: {}", arrival.offer().migration, chain(e.as_ref()));
            SiblingAddresses::default()
        });
        Some(Self {
            arrival,
            staged,
            network,
            cgroup,
            journal,
            mtu,
            others,
            lazy_pages,
            following: None,
            was_activated: false,
        })
    }

    /// Returns the engine that is to run it.
    pub fn engine(&self) -> Kind {
        self.arrival.host().engine.kind()
    }

    /// Returns the container's ID.
    pub fn container(&self) -> &str {
        &self.arrival.offer().id
    }

    /// Returns whether it can become the container still: the engine that is to run it is there, and so is its memory.
    pub fn is_whole(&self) -> bool {
        let has_memory = self.lazy_pages.as_ref().is_none_or(LazyPages::is_well);
        has_memory && self.staged.is_awaited()
    }

    /// Makes the copy audible: it is the container from here on.
    pub async fn activate(&mut self) -> Result<(), Cause> {
        if !self.was_activated {
            block_in_place(|| self.journal.append(&Record::Activated))?;
            self.was_activated = true;
        }
        // From the record on nothing removes the copy, and no process presumes that it should.
        self.staged.keep().await?;
        self.network.port.unblock()?;
        self.arrival.join_far_ends();
        // Without its gateway's address the copy's first packets go out after the question for it, which is
        // asked each second.
        let Network { port, sandbox, .. } = &self.network;
        if let Err(e) = sandbox.seed_neighbours(port, &self.others) {
            tracing::warn!("{}: {}", self.arrival.offer().migration, chain(&e));
        }
        self.cgroup.thaw()?;
        if let Some(mut lazy_pages) = self.lazy_pages.take() {
            if let Err(e) = lazy_pages.go().await {
                tracing::warn!("{}: {}", self.arrival.offer().migration, chain(&e));
            }
            let run = &self.arrival.host().directories.run;
            self.following = Some(FollowingMemory::watch(lazy_pages, self.arrival.offer(), run));
        }
        self.arrival.end_turn();
        tracing::info!(
            "{}: container {} runs here now (route MTU {})",
            self.arrival.offer().migration,
            self.arrival.offer().name,
            self.mtu
        );
        Ok(())
    }

    /// Hands on what is counted of its flows, which goes on after the container is handed over.
    pub fn take_counted(&mut self) -> Option<CountedFlows> {
        self.arrival.take_counted()
    }

    /// Hands the container over to the engine and removes what the migration needed. The journal is
    /// kept as the memory of it.
    pub async fn finish(mut self) -> Result<Finished, Cause> {
        // Flows come home whether they can be noted or not.
        for settled in [
            self.arrival.note_container().await,
            self.arrival.lead_home(),
            self.arrival.rejoin().await,
            self.arrival.end_forwarding().await,
        ] {
            if let Err(e) = settled {
                tracing::warn!("{}: {}", self.arrival.offer().migration, chain(e.as_ref()));
            }
        }
        if let Err(e) = block_in_place(|| self.arrival.sync_volumes()) {
            tracing::warn!("{}: {}", self.arrival.offer().migration, chain(e.as_ref()));
        }
        // The source has the original still.
        if self.following.as_ref().is_some_and(FollowingMemory::is_lost) {
            return Err(MemoryGone.into());
        }
        let restored = self.staged.commit().await?;
        let pid = restored.pid;
        let local = self.arrival.local_ends().to_vec();
        let record = Record::HandedOver { pid, local: local.clone() };
        block_in_place(|| self.journal.append(&record))?;
        self.arrival.settle_volumes().await?;
        self.arrival.hand_service_over().await?;
        if let Err(e) = self.arrival.tidy() {
            tracing::warn!("{}: {}", self.arrival.offer().migration, chain(e.as_ref()));
        }
        if let Err(e) = self.arrival.settle_network(&self.network).await {
            tracing::warn!("{}: {}", self.arrival.offer().migration, chain(e.as_ref()));
        }
        self.journal.archive(&self.arrival.host().directories.state)?;
        if self.arrival.is_post_copy() {
            watch(self.arrival.host(), self.arrival.offer().migration);
        }
        Ok(Finished {
            pid,
            full_buffers: receive_buffers::dropped_datagrams(pid).unwrap_or(0),
            local,
        })
    }

    /// Removes the copy and everything made for it; returns what this host holds of it then. What cannot be
    /// removed stays in the journal, to be settled by its guardian. A copy that may have been heard is
    /// remembered as lost.
    pub async fn remove(mut self) -> Holding {
        if self.was_activated
            && let Err(e) = self.arrival.leave_volumes().await
        {
            tracing::warn!("{}: {}", self.arrival.offer().migration, chain(e.as_ref()));
        }
        if !self.arrival.clean(Some(self.staged), self.was_activated).await {
            return after_removal(false);
        }
        let migration = self.arrival.offer().migration;
        let state = &self.arrival.host().directories.state;
        let ended = if self.was_activated {
            let noted = block_in_place(|| self.journal.append(&Record::Lost));
            noted.and_then(|()| self.journal.archive(state)).map(|()| Holding::Lost)
        } else {
            self.journal.end().map(|()| after_removal(true))
        };
        ended.unwrap_or_else(|e| {
            tracing::warn!("{migration}: {}", chain(&e));
            after_removal(false)
        })
    }
}
