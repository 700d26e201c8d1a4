//! UDP flows whose way is cut.
//!
//! A host forgets a UDP flow two minutes after its last packet (`nf_conntrack_udp_timeout_stream`), and
//! takes what comes later for a new one, which it would answer from its own address. So while a peer
//! cannot be heard, its flows are not forgotten here. Whether it can is found out by a
//! [knock](tunnel::knock), once flows are about to be forgotten: silence alone may be the flows' own. By a
//! direct way nobody's kernel answers a knock. So both hosts' reconcilers knock at every look there, and each
//! hears the other's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netmig::flow::{Conntrack, Flow, Protocol};
use netmig::peer_number::PeerNumber;
use netmig::tunnel::{self, Kind};

use state::cause::Cause;

/// Flows that have less left, in seconds, are about to be forgotten.
const NEAR: u32 = 90;
/// What they get.
const PROLONGED: u32 = 120;
/// The peer answers a knock within ten seconds if it can be reached.
const ANSWER: Duration = Duration::from_secs(12);
/// By a direct way it knocks itself, every thirteen seconds or oftener; one may be lost.
const OWN_KNOCK: Duration = Duration::from_secs(35);
/// Flows of a peer that is silent for longer are forgotten.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What is known of a peer.
#[derive(Debug)]
struct Way {
    /// What had been heard from it ([`tunnel::Status::heard`]).
    received: u64,
    /// When more had come for the last time.
    heard: Instant,
    /// When it was asked for a sign.
    knocked: Option<Instant>,
}

/// What is known of all peers.
#[derive(Debug, Default)]
pub(super) struct UdpKeepalive {
    ways: BTreeMap<PeerNumber, Way>,
}

impl UdpKeepalive {
    /// Looks at the flows, and does for them what is to be done.
    pub(super) async fn keep(&mut self, peers: &[PeerNumber]) -> Result<(), Cause> {
        self.ways.retain(|peer, _| peers.contains(peer));
        let mut conntrack = Conntrack::open()?;
        let mut near: BTreeMap<PeerNumber, Vec<Flow>> = BTreeMap::new();
        for counted in conntrack.marked()? {
            let flow = counted.flow;
            if flow.protocol != Protocol::Udp || flow.timeout >= NEAR {
                continue;
            }
            let peer = PeerNumber::of_reply(flow.mark).or(PeerNumber::of_original(flow.mark));
            if let Some(peer) = peer.filter(|peer| peers.contains(peer)) {
                near.entry(peer).or_default().push(flow);
            }
        }
        let mut outcome = Ok(());
        for peer in peers {
            let Some(status) = tunnel::status(*peer).await? else { continue };
            let direct = status.kind == Kind::Direct;
            match near.get(peer) {
                Some(flows) => {
                    let answer = if direct { OWN_KNOCK } else { ANSWER };
                    if self.is_cut(*peer, status.heard, answer, Instant::now()) {
                        // What is refused for one of them must not keep those of other peers from it.
                        let prolonged = conntrack.set_timeout(flows, PROLONGED);
                        outcome = outcome.and(prolonged.map(drop));
                    }
                }
                None => drop(self.ways.remove(peer)),
            }
            // A tunnel without any session is being made: its maker greets, and greetings that cross each
            // other may leave one direction dead.
            let greeted = status.last_handshake.is_some();
            if direct || (greeted && near.contains_key(peer)) {
                tunnel::knock(*peer)?;
            }
        }
        Ok(outcome?)
    }

    /// Returns whether a peer that was knocked at has given no sign within the time of an answer. Takes it that it is
    /// knocked at now.
    fn is_cut(&mut self, peer: PeerNumber, received: u64, answer: Duration, now: Instant) -> bool {
        let new = Way { received, heard: now, knocked: None };
        let way = self.ways.entry(peer).or_insert(new);
        // A tunnel made anew counts from zero.
        if way.received != received {
            (way.received, way.heard, way.knocked) = (received, now, None);
        }
        let asked = *way.knocked.get_or_insert(now);
        now.duration_since(asked) >= answer && now.duration_since(way.heard) < PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_cut_when_a_knock_brings_nothing_and_for_no_longer_than_an_hour() {
        let (peer, start) = (PeerNumber::new(3).unwrap(), Instant::now());
        let mut memory = UdpKeepalive::default();
        let mut is_cut = |received, seconds| {
            memory.is_cut(peer, received, ANSWER, start + Duration::from_secs(seconds))
        };
        assert!(!is_cut(100, 0));
        assert!(!is_cut(100, 5));
        assert!(is_cut(100, 15));
        assert!(is_cut(100, 30));
        assert!(!is_cut(150, 45), "it was heard");
        assert!(!is_cut(150, 50));
        assert!(is_cut(150, 60));
        assert!(!is_cut(150, 45 + 3600), "nobody waits for ever");
    }
}
