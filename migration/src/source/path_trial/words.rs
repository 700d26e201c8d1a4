//! What is in the way of packets, and what a user can do about it, in words.

use netmig::path_trial::{DropRule, Fate};
use state::peer_text::PeerText;

use super::Side;

/// A host on which packets do not come through.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub side: Side,
    /// Its name.
    pub host: &'a str,
}

/// The two hosts, in the order in which packets pass them.
pub type Stretch<'a> = [(Side, &'a Fate, &'a [PeerText]); 2];

/// Returns where a packet has ended and of what, if it has not arrived. `name` tells a host's name.
pub fn in_the_way(stretch: Stretch<'_>, name: impl Fn(Side) -> String) -> Option<(Side, String)> {
    let [(first, at_first, first_suspects), (second, at_second, second_suspects)] = stretch;
    if *at_second == Fate::Arrived {
        return None;
    }
    let by = |side: Side, barrier: &DropRule| dropped(barrier, At { side, host: &name(side) });
    Some(match (at_first, at_second) {
        (Fate::Dropped(barrier), _) => (first, by(first, barrier)),
        (_, Fate::Dropped(barrier)) => (second, by(second, barrier)),
        (_, Fate::Stuck) => (second, lost(second_suspects)),
        (_, Fate::Forwarded) => {
            (second, "they are led back into the tunnel (ip rule)".to_owned())
        }
        (Fate::Forwarded, _) => (
            second,
            "they do not come out of the tunnel, or something drops them before netfilter".to_owned(),
        ),
        (Fate::Arrived, _) => (
            first,
            "they are led elsewhere than into the tunnel, by a routing rule (ip rule)".to_owned(),
        ),
        (Fate::Stuck, _) => (first, lost(first_suspects)),
        (Fate::Unseen, _) => (
            first,
            "something drops them before netfilter: XDP, tc, or a chain of a lower priority than -300"
                .to_owned(),
        ),
    })
}

fn lost(suspects: &[PeerText]) -> String {
    format!(
        "they are lost between their arrival and their departure; by one of: {}",
        suspects.join(", ")
    )
}

fn dropped(barrier: &DropRule, at: At<'_>) -> String {
    let DropRule { table, chain, rule, .. } = barrier;
    let mut what = format!("{barrier} drops them");
    if rule.is_some() {
        what += &format!(" (nft -a list chain {} {table} {chain})", barrier.family_name());
    }
    format!("{what}; {}", remedy(barrier, at))
}

/// Returns what to do about a chain. A command line has only names in it that no shell takes for anything else.
fn remedy(barrier: &DropRule, at: At<'_>) -> String {
    let DropRule { table, chain, .. } = barrier;
    let (family, host) = (barrier.family_name(), at.host);
    let is_plain =
        |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if !is_plain(table) || !is_plain(chain) {
        return format!("have it accept what comes from and goes to interfaces netmig* on {host}");
    }
    let ways = |first: &str, second: &str| match chain.as_str() {
        // There a packet has one of the two interfaces alone.
        "PREROUTING" => first.to_owned(),
        "POSTROUTING" => second.to_owned(),
        _ => format!("{first}; {second}"),
    };
    if barrier.is_of_iptables() {
        let program = if family == "ip6" { "ip6tables" } else { "iptables" };
        let of = if table == "filter" { String::new() } else { format!(" -t {table}") };
        let rule = |way: &str| format!("{program}{of} -I {chain} {way} netmig+ -j ACCEPT");
        return format!(
            "--open-firewall leaves chains of iptables alone, which could not list them any more with such rules; \
             on {host} run: {}",
            ways(&rule("-i"), &rule("-o"))
        );
    }
    if !barrier.can_be_opened() {
        return format!("have it accept packets of these flows on {host}");
    }
    let rule =
        |way: &str| format!("nft 'insert rule {family} {table} {chain} {way} \"netmig*\" accept'");
    let rules = ways(&rule("iifname"), &rule("oifname"));
    match at.side {
        Side::Source => format!("use --open-firewall, or on {host} run: {rules}"),
        Side::Destination => {
            format!("--open-firewall opens chains of the source alone; on {host} run: {rules}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barrier(family: u8, table: &str, chain: &str) -> DropRule {
        DropRule { family, table: table.to_owned(), chain: chain.to_owned(), rule: None }
    }

    fn reason(first: Fate, second: Fate) -> Option<(bool, String)> {
        let stretch = [(Side::Source, &first, &[][..]), (Side::Destination, &second, &[][..])];
        let name = |side| if side == Side::Source { "a".to_owned() } else { "b".to_owned() };
        in_the_way(stretch, name).map(|(side, reason)| (side == Side::Source, reason))
    }

    #[test]
    fn what_is_in_the_way_is_looked_for_in_the_packets_order() {
        let guard = || Fate::Dropped(barrier(1, "fw", "guard"));
        assert_eq!(reason(Fate::Forwarded, Fate::Arrived), None);
        // A message of the trace may be lost; what has arrived has arrived.
        assert_eq!(reason(Fate::Unseen, Fate::Arrived), None);
        let (at_source, text) = reason(guard(), Fate::Unseen).unwrap();
        assert!(at_source && text.contains("policy of chain guard") && text.contains("inet fw"));
        let (at_source, text) = reason(Fate::Forwarded, guard()).unwrap();
        assert!(!at_source && text.contains("guard"));
        assert!(!reason(Fate::Forwarded, Fate::Stuck).unwrap().0);
        assert!(reason(Fate::Stuck, Fate::Unseen).unwrap().0);
        assert!(!reason(Fate::Forwarded, Fate::Unseen).unwrap().0);
    }

    #[test]
    fn it_is_said_on_which_host_what_is_to_be_done() {
        let at = |side, host| At { side, host };
        let here = remedy(&barrier(1, "fw", "guard"), at(Side::Source, "a"));
        assert!(
            here.starts_with("use --open-firewall, or on a run: nft 'insert rule inet fw guard")
        );
        let there = remedy(&barrier(1, "fw", "guard"), at(Side::Destination, "b"));
        assert!(
            there.contains("of the source alone; on b run: nft 'insert rule inet fw guard iifname")
        );
        let of_iptables = remedy(&barrier(10, "filter", "FORWARD"), at(Side::Source, "a"));
        assert!(of_iptables.contains("ip6tables -I FORWARD -i netmig+ -j ACCEPT; ip6tables"));
        let raw = remedy(&barrier(2, "raw", "PREROUTING"), at(Side::Source, "a"));
        assert!(raw.ends_with("on a run: iptables -t raw -I PREROUTING -i netmig+ -j ACCEPT"));
        let of_bridges = remedy(&barrier(7, "fw", "guard"), at(Side::Source, "a"));
        assert!(!of_bridges.contains("--open-firewall"), "{of_bridges}");
    }

    #[test]
    fn no_command_line_has_a_peers_words_in_it() {
        for strange in ["x; reboot", "$(reboot)", "a b", "x\u{1b}[2J", "'"] {
            for barrier in [barrier(1, strange, "guard"), barrier(2, "filter", strange)] {
                let said = remedy(&barrier, At { side: Side::Destination, host: "b" });
                assert!(!said.contains(strange), "{said}");
            }
        }
    }
}
