//! What the packets of a flow say that were counted on both hosts. A flow is dead if packets of one direction come to a
//! place on their way, and none of them to the next one: whatever its ends do, that is no guess.

use netmig::table::{PacketCount, Passage};

/// So many that have come and not left are no accident.
pub(super) const SEVERAL: u64 = 3;

/// A host that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    Source,
    Destination,
}

/// The direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Towards,
    From,
}

impl Way {
    pub(super) const BOTH: [Self; 2] = [Self::Towards, Self::From];

    pub(super) fn of(self, passage: &Passage) -> PacketCount {
        match self {
            Self::Towards => passage.towards,
            Self::From => passage.from,
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Towards => Self::From,
            Self::From => Self::Towards,
        }
    }
}

/// Where the packets of a flow are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    /// Whether they pass the source after the move: it is the flow's anchor.
    pub(super) by_source: bool,
    /// Whether the far end is the source or the destination itself: what is for a process of a host does not leave
    /// it.
    pub(super) far_is_source: bool,
    pub(super) far_is_destination: bool,
}

/// What was counted in a time; `None` where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) source: Option<Passage>,
    pub(super) destination: Option<Passage>,
}

/// A place at which packets are counted, and how many there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    host: Host,
    packets: u64,
}

/// Packets that did not get from one place to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) way: Way,
    /// The last host that they came to.
    pub(super) at: Host,
    /// Whether they left it, and did not come to the other one.
    pub(super) is_between: bool,
    pub(super) packets: u64,
}

/// What is known of a direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Packets come to its end.
    Passes,
    /// They did, and none has come since the first look.
    HasPassed,
    /// None has come anywhere.
    Rests,
    /// Some did not get through, too few to tell.
    Doubtful(Gap),
    /// None of several gets through.
    Dead(Gap),
}

/// Returns the places on the way of packets, in order.
fn places(sides: Sides, way: Way, counted: &Counted) -> Vec<Place> {
    let of = |host: Host, passage: Option<Passage>, is_last: bool| {
        let count = passage.map(|passage| way.of(&passage));
        let came = count.map(|count| Place { host, packets: count.came });
        let left = count.filter(|_| !is_last).map(|count| Place { host, packets: count.left });
        came.into_iter().chain(left).collect::<Vec<_>>()
    };
    let is_from = way == Way::From;
    let source = counted.source.filter(|_| sides.by_source);
    let source = of(Host::Source, source, is_from && sides.far_is_source);
    let destination =
        of(Host::Destination, counted.destination, is_from && sides.far_is_destination);
    match way {
        Way::Towards => [source, destination].concat(),
        Way::From => [destination, source].concat(),
    }
}

fn gap(places: &[Place], way: Way, least: u64, may_be_between: bool) -> Option<Gap> {
    let mut pairs = places.iter().zip(places.iter().skip(1));
    let (before, _) = pairs.find(|(before, after)| {
        before.packets >= least
            && after.packets == 0
            && (may_be_between || before.host == after.host)
    })?;
    let is_between = places.iter().rfind(|place| place.host == before.host) == Some(before)
        && places.iter().any(|place| place.host != before.host);
    Some(Gap { way, at: before.host, is_between, packets: before.packets })
}

/// Returns what is known of a direction, given what was counted since the move and since the first look.
pub(super) fn state(sides: Sides, way: Way, all: &Counted, recent: &Counted) -> State {
    let (all, recent) = (places(sides, way, all), places(sides, way, recent));
    let reached = |places: &[Place]| places.last().is_some_and(|place| place.packets > 0);
    if reached(&recent) {
        return State::Passes;
    }
    // The two hosts began to count at different moments.
    let dead = gap(&recent, way, SEVERAL, true).or_else(|| gap(&all, way, SEVERAL, false));
    if let Some(gap) = dead {
        return State::Dead(gap);
    }
    match gap(&recent, way, 1, true).or_else(|| gap(&all, way, 1, false)) {
        Some(gap) => State::Doubtful(gap),
        None if reached(&all) => State::HasPassed,
        None => State::Rests,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LED: Sides = Sides { by_source: true, far_is_source: false, far_is_destination: false };

    fn at(came: u64, left: u64) -> Option<Passage> {
        let count = PacketCount { came, left };
        Some(Passage { towards: count, from: count })
    }

    fn seen(way: Way, source: Option<Passage>, destination: Option<Passage>) -> State {
        let counted = Counted { source, destination };
        state(LED, way, &counted, &counted)
    }

    #[test]
    fn a_flow_is_dead_where_packets_do_not_get_to_the_next_place() {
        let dead = |way, at, is_between, packets| State::Dead(Gap { way, at, is_between, packets });
        let (source, destination) = (Host::Source, Host::Destination);
        let towards = |a, b| seen(Way::Towards, a, b);
        assert_eq!(towards(at(9, 9), at(9, 9)), State::Passes);
        assert_eq!(towards(at(9, 1), at(1, 1)), State::Passes);
        assert_eq!(towards(at(9, 0), at(0, 0)), dead(Way::Towards, source, false, 9));
        assert_eq!(towards(at(9, 8), at(0, 0)), dead(Way::Towards, source, true, 8));
        assert_eq!(towards(at(9, 8), at(7, 0)), dead(Way::Towards, destination, false, 7));
        let from = |a, b| seen(Way::From, a, b);
        assert_eq!(from(at(0, 0), at(5, 0)), dead(Way::From, destination, false, 5));
        assert_eq!(from(at(0, 0), at(5, 4)), dead(Way::From, destination, true, 4));
        assert_eq!(from(at(4, 0), at(5, 4)), dead(Way::From, source, false, 4));
        assert_eq!(from(at(0, 0), at(0, 0)), State::Rests);
    }

    #[test]
    fn few_packets_are_no_proof() {
        let doubtful =
            Gap { way: Way::From, at: Host::Destination, is_between: false, packets: SEVERAL - 1 };
        assert_eq!(seen(Way::From, at(0, 0), at(2, 0)), State::Doubtful(doubtful));
        let between = Gap { is_between: true, ..doubtful };
        assert_eq!(seen(Way::From, at(0, 0), at(2, 2)), State::Doubtful(between));
    }

    #[test]
    fn what_passed_until_the_first_look_says_nothing_of_later_packets() {
        let all = Counted { source: at(20, 20), destination: at(20, 12) };
        let recent = |came| Counted { source: at(came, came), destination: at(came, 0) };
        let state = |came| state(LED, Way::Towards, &all, &recent(came));
        assert_eq!(state(0), State::HasPassed);
        assert!(matches!(state(1), State::Doubtful(_)));
        assert!(matches!(state(3), State::Dead(_)));
    }

    #[test]
    fn what_a_host_takes_itself_does_not_leave_it() {
        let counted = Counted { source: at(5, 0), destination: at(5, 5) };
        let of = |sides: Sides| state(sides, Way::From, &counted, &counted);
        assert!(matches!(of(LED), State::Dead(_)));
        assert_eq!(of(Sides { far_is_source: true, ..LED }), State::Passes);
        // The source is not on the way of a flow whose anchor is another host.
        assert_eq!(of(Sides { by_source: false, ..LED }), State::Passes);
        let local = Sides { by_source: false, far_is_destination: true, ..LED };
        let counted = Counted { source: None, destination: at(5, 0) };
        assert_eq!(state(local, Way::From, &counted, &counted), State::Passes);
        assert!(matches!(state(local, Way::Towards, &counted, &counted), State::Dead(_)));
        // Nothing was counted anywhere.
        assert_eq!(state(local, Way::From, &Counted::default(), &Counted::default()), State::Rests);
    }
}
