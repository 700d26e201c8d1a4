//! What is in the way of packets, once for all kinds of flows in whose way it is.

use std::fmt;

use netmig::path_trial::PacketDirection;

/// Something on one host that lets packets not pass.
#[derive(Debug, PartialEq, Eq)]
pub struct Obstacle {
    host: String,
    /// What it is, and what to do about it.
    reason: String,
    /// Kinds of flows, and the direction of their packets.
    kinds: Vec<(String, PacketDirection)>,
}

impl Obstacle {
    /// Notes that packets of a kind are stopped on a host for a reason.
    pub fn note(
        all: &mut Vec<Self>,
        (host, reason): (String, String),
        kind: (String, PacketDirection),
    ) {
        match all.iter_mut().find(|one| one.host == host && one.reason == reason) {
            Some(known) if known.kinds.contains(&kind) => {}
            Some(known) => known.kinds.push(kind),
            None => all.push(Self { host, reason, kinds: vec![kind] }),
        }
    }

    fn kinds(&self, way: PacketDirection) -> Vec<&str> {
        let of_way = self.kinds.iter().filter(|(_, of)| *of == way);
        of_way.map(|(kind, _)| kind.as_str()).collect()
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, reason, .. } = self;
        let towards = self.kinds(PacketDirection::ToContainer);
        let from = self.kinds(PacketDirection::FromContainer);
        match (&towards[..], &from[..]) {
            (kinds, []) => write!(f, "packets of {} would not get to the container", list(kinds)),
            ([], kinds) => write!(f, "packets of {} would not get from the container", list(kinds)),
            (to, from) if to == from => {
                write!(f, "packets of {} would get neither to the container nor from it", list(to))
            }
            (to, from) => write!(
                f,
                "packets of {} would not get to the container, and those of {} not from it",
                list(to),
                list(from)
            ),
        }?;
        write!(f, ": on {host} {reason}")
    }
}

fn list(kinds: &[&str]) -> String {
    match kinds {
        [others @ .., last] if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        kinds => kinds.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: PacketDirection = PacketDirection::ToContainer;
    const FROM: PacketDirection = PacketDirection::FromContainer;

    fn told(all: &[(&str, &str, PacketDirection)]) -> Vec<String> {
        let mut obstacles = Vec::new();
        for (reason, kind, way) in all {
            let what = ("a".to_owned(), (*reason).to_owned());
            Obstacle::note(&mut obstacles, what, ((*kind).to_owned(), *way));
        }
        obstacles.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_reason_is_told_once_with_all_kinds() {
        let all = [("fw", "tcp", TO), ("fw", "tcp", FROM), ("fw", "udp", TO), ("fw", "udp", FROM)];
        let both = "packets of tcp and udp would get neither to the container nor from it: on a fw";
        assert_eq!(told(&all), [both]);
        let to = "packets of tcp, udp and sctp would not get to the container: on a fw";
        assert_eq!(told(&[all[0], all[2], ("fw", "sctp", TO), all[0]]), [to]);
        let mixed =
            "packets of tcp would not get to the container, and those of udp not from it: on a fw";
        assert_eq!(told(&[all[0], all[3]]), [mixed]);
    }

    #[test]
    fn other_reasons_are_other_sentences() {
        let [first, second] = ["x", "y"].map(|reason| (reason, "tcp", TO));
        assert_eq!(told(&[first, second, first]).len(), 2);
    }
}
