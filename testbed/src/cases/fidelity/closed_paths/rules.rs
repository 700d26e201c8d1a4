//! Firewalls of other people, as nftables rules.

/// A firewall that accepts the containers' bridge alone.
pub(in crate::cases::fidelity) const BRIDGE_ALONE: &str = "\
table inet fw {
    chain guard {
        type filter hook forward priority 10; policy drop;
        iifname \"podman*\" accept
        oifname \"podman*\" accept
    }
}
";
/// A firewall that accepts one outgoing interface alone.
pub(in crate::cases::fidelity) const ONE_WAY_OUT: &str = "\
table inet fw {
    chain guard {
        type filter hook forward priority 10; policy drop;
        iifname \"podman*\" oifname eth0 accept
        iifname eth0 oifname \"podman*\" accept
    }
}
";
/// A firewall that also accepts established connections.
pub(in crate::cases::fidelity) const ESTABLISHED_TOO: &str = "\
table inet fw {
    chain guard {
        type filter hook forward priority 10; policy drop;
        ct state established,related accept
        iifname \"podman*\" accept
        oifname \"podman*\" accept
    }
}
";
/// A firewall that accepts everything until a rule is added.
pub(in crate::cases::fidelity) const OPEN: &str = "\
table inet fw {
    chain guard {
        type filter hook forward priority 10; policy accept;
    }
}
";
/// A firewall that lets this host's own processes open no connections but those of agents.
pub(in crate::cases::fidelity) const OUTPUT_CLOSED: &str = "\
table inet fw {
    chain guard {
        type filter hook output priority 0; policy drop;
        ct state established,related accept
        meta l4proto { icmp, icmpv6 } accept
        oifname lo accept
        tcp dport 7472 accept
    }
}
";
/// A script that waits until packets are held and closes the path then.
pub(in crate::cases::fidelity) const CLOSE: &str = "\
echo ready >&2
until nft list chain inet netmig hold 2>/dev/null | grep -q jump; do :; done
nft add rule inet fw guard oifname 'netmig*' drop
";
/// A program that opens an idle connection and prints its port.
pub(in crate::cases::fidelity) const IDLE: &str = "\
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('port', s.getsockname()[1], file=sys.stderr, flush=True)
time.sleep(600)
";
