//! A flow that is watched, and what is told of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use netmig::flow::{Direction, Flow, FlowEnds, Protocol, Readdressed};
use netmig::path_trial::is_one_host;
use netmig::table::Passage;
use state::host;

use super::verdict::{Gap, Host, SEVERAL, Sides, State, Way};
use super::{Counts, Looked};

/// `TCP_CONNTRACK_ESTABLISHED` (`include/uapi/linux/netfilter/nf_conntrack_tcp.h`).
const ESTABLISHED: u8 = 3;
/// Flows that are named one by one.
const MOST_NAMED: usize = 20;

/// The addresses of both hosts.
pub(super) struct Hosts<'a> {
    pub(super) source: &'a BTreeSet<IpAddr>,
    pub(super) destination: &'a [IpAddr],
    /// The gateways of the container: each host has one with this address, and processes of the anchor may come by it.
    pub(super) gateways: &'a [IpAddr],
}

/// A flow that is watched.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// As the container had it here.
    pub(super) ends: FlowEnds,
    /// As it has it at the destination.
    pub(super) there: FlowEnds,
    pub(super) sides: Sides,
    flow: Flow,
    direction: Direction,
    /// What passed before the interruption; `None` if that is not known.
    before: Option<Passage>,
    /// Whether it is known to have been in use.
    pub(super) is_in_use: bool,
}

impl Watched {
    /// Returns a flow of a container with these addresses, some of which are others at the destination; `None` if it is
    /// not that container's.
    pub(super) fn of(
        flow: &Flow,
        container: &[IpAddr],
        readdressed: &[Readdressed],
        hosts: &Hosts<'_>,
        before: Option<&Counts>,
    ) -> Option<Self> {
        let (direction, ends) = (flow.direction(container)?, flow.ends(container)?);
        // What is left of a connection that its ends were closing may well be dropped.
        if flow.tcp.is_some_and(|tcp| tcp.state != ESTABLISHED) {
            return None;
        }
        let far = ends.far.ip();
        if !is_one_host(far) {
            // A group is no far end, and nothing of it is led anywhere.
            return None;
        }
        let is_anchor = flow.anchor(container).is_none();
        let (far_is_source, far_is_destination) =
            (hosts.source.contains(&far), hosts.destination.contains(&far));
        // The bridge sends on what two containers of one network say, without this host's seeing a packet.
        let is_bridged = is_anchor && !flow.is_translated() && !far_is_source;
        let before = before.filter(|_| !is_bridged);
        let before = before.map(|counts| counts.get(&ends).copied().unwrap_or_default());
        let sides = Sides {
            by_source: is_anchor && !far_is_destination,
            far_is_source,
            far_is_destination: far_is_destination || hosts.gateways.contains(&far),
        };
        let other = readdressed.iter().find(|other| other.old == ends.own.ip());
        let own = SocketAddr::new(other.map_or(ends.own.ip(), |other| other.new), ends.own.port());
        let there = FlowEnds { own, ..ends };
        let mut watched =
            Self { ends, there, sides, flow: flow.clone(), direction, before, is_in_use: false };
        watched.is_in_use = Way::BOTH.iter().any(|way| watched.passed_before(*way) > 0);
        Some(watched)
    }

    /// Returns how many packets of a direction passed this host before.
    fn passed_before(&self, way: Way) -> u64 {
        let count = self.before.map(|before| way.of(&before)).unwrap_or_default();
        if way == Way::From && self.sides.far_is_source { count.came } else { count.left }
    }

    /// Whether a direction may have been in use: it was, or nobody knows.
    fn may_have_passed(&self, way: Way) -> bool {
        self.before.is_none() || self.passed_before(way) > 0 || self.is_in_use_by_tcp()
    }

    fn is_in_use_by_tcp(&self) -> bool {
        self.is_in_use && self.ends.protocol == Protocol::Tcp
    }

    /// Names it, as the beginning of a sentence.
    fn name(&self) -> String {
        if self.ends.protocol == Protocol::Tcp {
            return format!("the TCP connection of {} with {}", self.ends.own, self.ends.far);
        }
        let original = self.flow.original;
        let opened = match self.direction {
            Direction::Inbound => "to",
            Direction::Outbound => "of the container to",
        };
        let to = SocketAddr::new(original.destination, original.destination_port);
        let from = SocketAddr::new(original.source, original.source_port);
        format!("the UDP flow {opened} {to} (from {from})")
    }

    fn packets(&self) -> &'static str {
        if self.ends.protocol == Protocol::Tcp { "packets" } else { "datagrams" }
    }
}

/// What was found out about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Packets of every direction in use come to its end.
    Passes,
    /// They did, and none has come since the first look.
    HasPassed,
    /// None has come anywhere.
    Quiet,
    /// It was not in use, as far as is known.
    Unused,
    /// One direction goes on, and of the other one, which did before, nothing is seen.
    Silent(Way),
    /// Some packets did not get through, too few to tell.
    Doubtful(Gap),
    /// None of several gets through.
    Dead(Gap),
    /// The same of what the container sends by a connection of which nothing comes any more: its far end may have closed it.
    Unheard(Gap),
}

impl Finding {
    /// Returns what the states of both directions say.
    pub(super) fn of(watched: &Watched, states: [State; 2]) -> Self {
        let of = |way: Way| states[usize::from(way == Way::From)];
        let used = || Way::BOTH.into_iter().filter(|way| watched.may_have_passed(*way));
        let mut doubtful = None;
        for way in used() {
            match of(way) {
                State::Dead(gap) => {
                    let is_tcp = watched.ends.protocol == Protocol::Tcp;
                    let is_wanted = way == Way::Towards || of(Way::Towards) == State::Passes;
                    return if is_tcp && !is_wanted { Self::Unheard(gap) } else { Self::Dead(gap) };
                }
                State::Doubtful(gap) => doubtful = doubtful.or(Some(gap)),
                _ => {}
            }
        }
        if let Some(gap) = doubtful {
            return Self::Doubtful(gap);
        }
        if !watched.is_in_use {
            return Self::Unused;
        }
        let fell_silent = |way: &Way| {
            of(*way) == State::Rests
                && watched.passed_before(*way) >= SEVERAL
                && of(way.other()) == State::Passes
        };
        if let Some(way) = used().find(fell_silent) {
            return Self::Silent(way);
        }
        if used().any(|way| of(way) == State::Rests) {
            Self::Quiet
        } else if used().all(|way| of(way) == State::Passes) {
            Self::Passes
        } else {
            Self::HasPassed
        }
    }

    /// Whether it is worth while to wait for more.
    pub(super) fn is_in_doubt(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Doubtful(_) | Self::Dead(_) | Self::Unheard(_))
    }

    /// Whether nothing was seen of a flow that was in use.
    pub(super) fn is_quiet(&self) -> bool {
        *self == Self::Quiet
    }

    /// Whether nothing more need be known.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Passes | Self::Unused)
    }
}

fn whom(way: Way) -> &'static str {
    match way {
        Way::Towards => "for the container",
        Way::From => "from the container",
    }
}

/// Tells what was found out. `unknown` says why the destination's part is not known, if it is not.
pub(super) fn tell(
    found: &[(&Watched, &Finding)],
    destination: &str,
    unknown: Option<&str>,
    waited: Duration,
) -> Looked {
    let here = host::name();
    let name = |host: Host| if host == Host::Source { here.as_str() } else { destination };
    let other = |host: Host| if host == Host::Source { destination } else { here.as_str() };
    let seconds = waited.as_secs();
    let (mut lost, mut unverified, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
    let mut dead = BTreeSet::new();
    // Connections first.
    let mut found = found.to_vec();
    found.sort_by_key(|(one, _)| one.ends);
    for (one, finding) in found {
        if matches!(finding, Finding::Dead(_) | Finding::Unheard(_)) {
            dead.insert(one.ends);
        }
        let (flow, packets) = (one.name(), one.packets());
        match finding {
            Finding::Dead(Gap { way, at, is_between: false, packets: came })
            | Finding::Unheard(Gap { way, at, is_between: false, packets: came }) => lost.push(format!(
                "{flow} was in use, and none of {came} {packets} {} that came to {} in the {seconds} s since the move has \
                 left it; look for what drops them there",
                whom(*way),
                name(*at)
            )),
            Finding::Dead(Gap { way, at, packets: left, .. })
            | Finding::Unheard(Gap { way, at, packets: left, .. }) => lost.push(format!(
                "{flow} was in use, and none of {left} {packets} {} that left {} in the {seconds} s since the move has come \
                 to {}; look for what drops them between the two hosts",
                whom(*way),
                name(*at),
                other(*at)
            )),
            Finding::Doubtful(Gap { way, at, is_between, packets: came }) => {
                let what = match is_between {
                    false => format!("came to {} in the {seconds} s since the move and did not leave it", name(*at)),
                    true => format!(
                        "left {} in the {seconds} s since the move and did not come to {}",
                        name(*at),
                        other(*at)
                    ),
                };
                doubtful.push(format!(
                    "{flow}: {came} {packets} {} {what}, too few to tell whether it lives",
                    whom(*way)
                ));
            }
            Finding::Silent(way) => {
                let reason = unknown.map(|reason| format!("; {reason}")).unwrap_or_default();
                unverified.push(format!(
                    "{flow}: nothing {} was seen in the {seconds} s since the move, though its other direction goes \
                     on{reason}",
                    whom(*way)
                ));
            }
            _ => {
                if let Some(reason) = unknown
                    && one.ends.protocol == Protocol::Udp
                    && (one.is_in_use || one.before.is_none())
                {
                    unverified.push(format!("{flow}: {reason}"));
                }
            }
        }
    }
    let shortened = |mut all: Vec<String>, what: &str| {
        if all.len() > MOST_NAMED {
            let more = all.split_off(MOST_NAMED).len();
            all.push(format!("{more} more flows {what}"));
        }
        all
    };
    Looked {
        dead,
        lost: shortened(lost, "that are dead in the same way"),
        unverified: shortened(unverified, "of which the same is to be said"),
        doubtful: shortened(doubtful, "of which the same is to be said"),
    }
}
