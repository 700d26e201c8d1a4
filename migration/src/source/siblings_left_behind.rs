//! Other containers of the networks that the container leaves. Connections that are open between them go on;
//! new ones fail for as long as they are on different hosts, and the move says so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use engine::Holder;

/// Containers that are named one by one.
const MOST_NAMED: usize = 10;

/// Returns a sentence for each network with other containers that have something to do with this one: they talk
/// to it, by `talking` addresses, or somebody has made a network for them together. `default` is the network of
/// containers that have asked for none.
pub fn warnings(
    container: &str,
    others: &[Holder],
    talking: &BTreeSet<IpAddr>,
    default: &str,
) -> Vec<String> {
    let mut networks: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Holder { address, network, container } in others {
        if network != default || talking.contains(address) {
            networks.entry(network).or_default().insert(container);
        }
    }
    networks.into_iter().map(|(network, names)| warning(container, network, &names)).collect()
}

fn warning(container: &str, network: &str, names: &BTreeSet<&str>) -> String {
    let mut others: Vec<String> =
        names.iter().take(MOST_NAMED).map(|name| (*name).to_owned()).collect();
    if names.len() > MOST_NAMED {
        others.push(format!("{} more", names.len() - MOST_NAMED));
    }
    let stay = if names.len() == 1 { "stays" } else { "stay" };
    let named = match &others[..] {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => others.concat(),
    };
    format!(
        "{named} {stay} behind in network {network}: open connections between {container} and others go on, and \
         new ones fail until they are on one host again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(network: &str, container: &str, address: [u8; 4]) -> Holder {
        Holder {
            address: address.into(),
            network: network.to_owned(),
            container: container.to_owned(),
        }
    }

    #[test]
    fn those_are_named_that_have_to_do_with_it() {
        let talking = [[10, 88, 0, 3].into()].into();
        let others = [
            holder("podman", "stranger", [10, 88, 0, 2]),
            holder("podman", "client", [10, 88, 0, 3]),
            holder("back", "db", [10, 89, 0, 2]),
            holder("back", "cache", [10, 89, 0, 3]),
        ];
        let told = warnings("web", &others, &talking, "podman");
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("cache and db stay behind in network back: open"));
        assert!(told[1].starts_with("client stays behind in network podman"), "{}", told[1]);
        assert!(warnings("web", &others[..1], &talking, "podman").is_empty());
    }

    #[test]
    fn a_thousand_are_told_in_one_line() {
        let other = |n: u8| holder("back", &format!("c{n:03}"), [10, 89, 0, n]);
        let others: Vec<Holder> = (0..=200).map(other).collect();
        let told = warnings("web", &others, &BTreeSet::new(), "podman").concat();
        assert!(told.contains("c009 and 191 more stay behind") && !told.contains("c010"), "{told}");
    }
}
