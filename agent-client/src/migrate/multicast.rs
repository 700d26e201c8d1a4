//! Whether a container uses multicast, which no host can be the anchor of.

use std::fs;

/// What is told of such a container.
pub const NOT_KEPT: &str = "the container uses multicast, which is not kept: what it sends goes to the \
                            destination's network from now on, and what is sent to its groups stays at \
                            this host's";

/// Whether the network namespace of a process has sent multicast over IPv4. Who joins a group has, too:
/// it says so to routers (IGMP). Over IPv6 every interface does, so that tells nothing.
pub fn is_used(pid: i32) -> bool {
    let counters = fs::read_to_string(format!("/proc/{pid}/net/netstat")).unwrap_or_default();
    sent(&counters).is_some_and(|packets| packets > 0)
}

/// `OutMcastPkts` of the namespace's counters: a line of names, and one of values (proc_net(5)).
fn sent(counters: &str) -> Option<u64> {
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_ascii_whitespace().position(|name| name == "OutMcastPkts")?;
    values.split_ascii_whitespace().nth(place)?.parse().ok()
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
}
