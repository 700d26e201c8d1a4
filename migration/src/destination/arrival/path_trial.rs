//! Packets that try the ways of flows, before the container's interruption.
//!
//! They are made on this host by a peer's word. So each is one that the container itself could send to a host
//! elsewhere, it can leave this host by the way to that peer alone, and there is a bounded number of them.

use std::time::{Duration, Instant};

use netmig::flow::{self, Flow, Readdressed};
use netmig::path_trial::{self, Fate, MOST, PacketDirection, ROUNDS, Trial, suspects};
use netmig::routing;
use protocol::message::{MAX_TRIALS, Message};
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use steering::tunnels::SteeringLock;
use tokio::task::block_in_place;

use super::{Arrival, Incomplete};
use crate::convert::{TriedPath, Wire};

/// How long packets that were sent may be on their way.
const ARRIVE: Duration = Duration::from_millis(150);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// What the source asks for is no part of trying the ways of the container's flows.
#[derive(Debug, thiserror::Error)]
#[error("the source asks to try ways that no flow of the container takes, or too often")]
struct NoSuchWay;

/// What a source has tried of the ways of a container's flows.
#[derive(Debug, Default)]
pub(super) struct Trials {
    /// The one that is under way.
    current: Option<Trial>,
    /// How many were begun, and how often the current one was asked about.
    begun: usize,
    asked: usize,
}

impl Trials {
    /// Ends the one that is under way.
    pub(super) fn end(&mut self) {
        self.current = None;
    }
}

impl Arrival {
    /// Makes ready for packets of flows like these, or tells the source why it cannot.
    pub(super) async fn begin_paths(
        &mut self,
        connection: &mut Connection,
        flows: &[Flow],
    ) -> Result<(), Cause> {
        let container = self.offer.networks.iter().flat_map(|n| n.addresses.clone());
        let container: Vec<_> = container.collect();
        self.paths.end();
        (self.paths.begun, self.paths.asked) = (self.paths.begun + 1, 0);
        let here: Vec<_> = routing::host_addresses().await?.into_iter().collect();
        let may_be_tried = |flow: &Flow| path_trial::may_be_tried(flow, &container, &here);
        if self.paths.begun > MAX_TRIALS || flows.len() > MOST || !flows.iter().all(may_be_tried) {
            return Err(NoSuchWay.into());
        }
        // What stands for its addresses in the tunnel does so only once the source's rules are there.
        let plain = |other: &Readdressed| Readdressed { tunnel: other.old, ..*other };
        let readdressed: Vec<_> = self.readdressed.iter().map(plain).collect();
        let arrival = flow::Relocation {
            hop: self.anchor,
            aliases: &[],
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
        let lock = SteeringLock::take(&self.host.directories.run).await?;
        let own = self.addresses();
        let bridge = self.network.as_ref().ok_or(Incomplete("a network"))?.port.bridge().index;
        let begun = block_in_place(|| {
            let mut trial = Trial::begin(&tag, self.anchor, &there, &own)?;
            trial.open(bridge)?;
            Ok::<_, path_trial::Error>(trial)
        });
        drop(lock);
        let reason = match begun {
            Ok(trial) => {
                self.paths.current = Some(trial);
                None
            }
            Err(e) => Some(chain(&e).into()),
        };
        Ok(connection.send(&Message::PathsReady(reason)).await?)
    }

    /// Tells what has become of them, and sends such as the container would send.
    pub(super) async fn answer_paths(&mut self, connection: &mut Connection) -> Result<(), Cause> {
        let network = self.network.as_ref().ok_or(Incomplete("a network"))?;
        let bridge = network.port.bridge().clone();
        self.paths.asked += 1;
        let may_ask = self.paths.asked <= ROUNDS;
        let Some(trial) = self.paths.current.as_mut().filter(|_| may_ask) else {
            return Err(NoSuchWay.into());
        };
        let mut unsent = vec![true; trial.len()];
        let tunnel = self.anchor.interface();
        let give_up = Instant::now() + ARRIVE;
        let tried = loop {
            let mut tried = Vec::with_capacity(trial.len());
            for (number, unsent) in unsent.iter_mut().enumerate() {
                let towards = trial.fate(number, PacketDirection::ToContainer)?;
                // An answer to what has not come would make a known connection of a new one.
                let may_send = !trial.is_new(number) || towards == Fate::Arrived;
                if may_send && std::mem::take(unsent) {
                    trial.send(number, PacketDirection::FromContainer, bridge.index)?;
                }
                let from = trial.fate(number, PacketDirection::FromContainer)?;
                let ipv4 = trial.is_ipv4(number);
                let by = if from == Fate::Stuck { &bridge.name } else { &tunnel };
                let suspects = match (&towards, &from) {
                    (Fate::Stuck, _) | (_, Fate::Stuck) => {
                        suspects(by, ipv4).into_iter().map(Into::into).collect()
                    }
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
        Ok(connection.send(&Message::PathsTried(tried.into_wire())).await?)
    }
}
