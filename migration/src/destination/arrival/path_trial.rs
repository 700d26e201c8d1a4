//! Packets that try the ways of flows, before the container's interruption.

use std::time::{Duration, Instant};

use agent_core::cause::{Cause, chain};
use agent_core::message::{Message, TriedPath};
use agent_core::peers::PeerLock;
use agent_core::wire::Connection;
use netmig::flow::{self, Flow, Readdressed};
use netmig::path::{self, Fate, MOST, Trial, Way, suspects};
use tokio::task::block_in_place;

use super::{Arrival, Incomplete, NotOffered};

/// How long packets that were sent may be on their way.
const ARRIVE: Duration = Duration::from_millis(150);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

impl Arrival {
    /// Makes ready for packets of flows like these, or tells the source why it cannot.
    pub(super) async fn begin_paths(
        &mut self,
        connection: &mut Connection,
        flows: &[Flow],
    ) -> Result<(), Cause> {
        let container = self.offer.networks.iter().flat_map(|n| n.addresses.clone());
        let container: Vec<_> = container.collect();
        if flows.len() > MOST || flows.iter().any(|flow| flow.direction(&container).is_none()) {
            return Err(NotOffered.into());
        }
        // What stands for its addresses in the tunnel does so only once the source's rules are there.
        let plain = |other: &Readdressed| Readdressed { tunnel: other.old, ..*other };
        let readdressed: Vec<_> = self.readdressed.iter().map(plain).collect();
        let arrival = flow::Arrival {
            hop: self.anchor,
            stand_ins: &[],
            readdressed: &readdressed,
            udp_timeout: flow::udp_timeout(),
        };
        let there = |flow: &Flow| {
            let there = flow.at_destination(&container, &arrival)?;
            // New connections have no history on either host.
            Some(if flow.status == 0 { Flow { status: 0, ..there } } else { there })
        };
        let there: Vec<Flow> = flows.iter().filter_map(there).collect();
        let tag = self.offer.migration.to_string().parse()?;
        let lock = PeerLock::take(&self.host.directories.run).await?;
        let own = self.addresses();
        let bridge = self.network.as_ref().ok_or(Incomplete("a network"))?.port.bridge().index;
        let begun = block_in_place(|| {
            let mut trial = Trial::begin(&tag, self.anchor, &there, &own)?;
            trial.open(bridge)?;
            Ok::<_, path::Error>(trial)
        });
        drop(lock);
        let reason = match begun {
            Ok(trial) => {
                self.paths = Some(trial);
                None
            }
            Err(e) => Some(chain(&e)),
        };
        Ok(connection.send(&Message::PathsReady(reason)).await?)
    }

    /// Tells what has become of them, and sends such as the container would send.
    pub(super) async fn answer_paths(&mut self, connection: &mut Connection) -> Result<(), Cause> {
        let network = self.network.as_ref().ok_or(Incomplete("a network"))?;
        let bridge = network.port.bridge().clone();
        let Some(trial) = &mut self.paths else { return Err(NotOffered.into()) };
        let mut unsent = vec![true; trial.len()];
        let tunnel = self.anchor.interface();
        let give_up = Instant::now() + ARRIVE;
        let tried = loop {
            let mut tried = Vec::with_capacity(trial.len());
            for (number, unsent) in unsent.iter_mut().enumerate() {
                let towards = trial.fate(number, Way::Towards)?;
                // An answer to what has not come would make a known connection of a new one.
                let may_send = !trial.is_new(number) || towards == Fate::Arrived;
                if may_send && std::mem::take(unsent) {
                    trial.send(number, Way::From, bridge.index)?;
                }
                let from = trial.fate(number, Way::From)?;
                let ipv4 = trial.is_ipv4(number);
                let by = if from == Fate::Stuck { &bridge.name } else { &tunnel };
                let suspects = match (&towards, &from) {
                    (Fate::Stuck, _) | (_, Fate::Stuck) => suspects(by, ipv4),
                    _ => Vec::new(),
                };
                tried.push(TriedPath { towards, from, suspects });
            }
            let settled = |one: &TriedPath| one.towards.is_settled() && one.from.is_settled();
            if tried.iter().all(settled) || Instant::now() >= give_up {
                break tried;
            }
            tokio::time::sleep(PAUSE).await;
        };
        Ok(connection.send(&Message::PathsTried(tried)).await?)
    }
}
