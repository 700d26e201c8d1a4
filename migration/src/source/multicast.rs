//! Whether a container uses multicast, which no host can be the anchor of.

use std::fs;
use std::net::Ipv6Addr;

/// What is told of such a container.
pub const NOT_KEPT: &str = "the container uses multicast, which is not kept: what it sends goes to the \
                            destination's network from now on, and what is sent to its groups stays at \
                            this host's";

/// Returns whether the network namespace of a process has sent multicast, or is member of a group.
pub fn is_used(pid: i32) -> bool {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
    // Who joins a group over IPv4 has sent, too: it says so to routers (IGMP).
    sent(&read("netstat")).is_some_and(|packets| packets > 0)
        || sent6(&read("snmp6")).is_some_and(|packets| packets > 0)
        || joined6(&read("igmp6"))
}

/// Reads `OutMcastPkts` of the namespace's counters: a line of names, and one of values (proc_net(5)).
fn sent(counters: &str) -> Option<u64> {
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_ascii_whitespace().position(|name| name == "OutMcastPkts")?;
    values.split_ascii_whitespace().nth(place)?.parse().ok()
}

/// Returns the number of multicast packets over IPv6 that the kernel has surely not sent by itself. All of its own are ICMPv6:
/// it asks for neighbours and routers, and reports groups. `counters` has a line for each counter, name and value.
fn sent6(counters: &str) -> Option<u64> {
    let value = |name: &str| {
        let mut lines = counters.lines().map(str::split_ascii_whitespace);
        lines.find_map(|mut words| {
            (words.next()? == name).then(|| words.next()?.parse::<u64>().ok())?
        })
    };
    Some(value("Ip6OutMcastPkts")?.saturating_sub(value("Icmp6OutMsgs")?))
}

/// Returns whether there is a membership that the kernel does not make by itself; the third word of a line is the
/// group (`igmp6_mc_seq_show`).
fn joined6(memberships: &str) -> bool {
    memberships
        .lines()
        .filter_map(|line| u128::from_str_radix(line.split_ascii_whitespace().nth(2)?, 16).ok())
        .any(|group| !is_kernels(Ipv6Addr::from_bits(group)))
}

/// Returns whether the kernel joins a group by itself: that of all nodes, of all routers (where packets are forwarded), or of
/// the nodes whose addresses end in the same three bytes (RFC 4291, 2.7.1 and 2.8).
fn is_kernels(group: Ipv6Addr) -> bool {
    match group.segments() {
        [0xff01 | 0xff02 | 0xff05, 0, 0, 0, 0, 0, 0, 1 | 2] => true,
        [0xff02, 0, 0, 0, 0, 1, high, _] => high >> 8 == 0xff,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_by_its_name() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InMcastPkts OutMcastPkts X\nIpExt: 4 7 9\n";
        assert_eq!(sent(text), Some(7));
        for broken in
            ["", "IpExt: OutMcastPkts\n", "IpExt: A\nIpExt: 1\n", "IpExt: OutMcastPkts\nIpExt:\n"]
        {
            assert_eq!(sent(broken), None, "{broken:?}");
        }
        assert!(!is_used(-1));
    }

    #[test]
    fn what_the_kernel_sends_by_itself_over_ipv6_does_not_count() {
        let counters = |all, own| {
            format!("Ip6InReceives  \t3\nIp6OutMcastPkts   \t{all}\nIcmp6OutMsgs  \t{own}\n")
        };
        assert_eq!(sent6(&counters(21, 26)), Some(0));
        assert_eq!(sent6(&counters(31, 26)), Some(5));
        assert_eq!(sent6("Ip6OutMcastPkts\n"), None);
    }

    #[test]
    fn groups_that_every_interface_has_do_not_count() {
        let own = "2    eth0            ff0200000000000000000001ff000002     1 00000004 0\n\
                   2    eth0            ff020000000000000000000000000001     1 0000000C 0\n\
                   2    eth0            ff010000000000000000000000000001     1 00000008 0\n";
        assert!(!joined6(own));
        let joined = "2    eth0            ff020000000000000000000000000123     1 00000004 0\n";
        assert!(joined6(&format!("{own}{joined}")));
        assert!(!joined6("nonsense\n2 eth0 xyz\n"));
    }
}
