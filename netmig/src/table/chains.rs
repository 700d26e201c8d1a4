//! The base chains: their hooks and priorities.

use nftnl::{ChainType, Hook};

/// Chain whose rules queue packets.
pub const CHAIN_HOLD: &str = "hold";
/// Chain whose rules queue this host's own packets.
pub const CHAIN_HOLD_OUTPUT: &str = "hold-output";
/// Chain after source NAT: translates addresses to aliases, counts packets and drops those of path
/// trials. Named by earlier versions.
pub const CHAIN_POSTROUTING: &str = "stand-in";
/// Chain before conntrack: `notrack`, translation of aliases, drops. Named by earlier versions.
pub const CHAIN_RAW: &str = "late";
/// Chain that steers forwarded packets.
pub const CHAIN_STEER: &str = "steer";
/// Chain that steers this host's own packets.
pub const CHAIN_STEER_OUTPUT: &str = "steer-output";

/// Chain whose rules DNAT new connections to a container that has moved.
pub const CHAIN_FORWARD: &str = "forward";
/// Chain that does the same for this host's own processes.
pub const CHAIN_FORWARD_OUTPUT: &str = "forward-output";
/// Chain whose rules SNAT some of these connections.
pub const CHAIN_FORWARD_SOURCE: &str = "forward-source";

/// `NF_IP_PRI_RAW`: before conntrack.
const PRIORITY_RAW: i32 = -300;
/// `NF_IP_PRI_MANGLE`.
pub(super) const PRIORITY_MANGLE: i32 = -150;

/// `NF_IP_PRI_NAT_DST`, where engines publish ports.
const PRIORITY_DESTINATION: i32 = -100;
/// `NF_IP_PRI_NAT_SRC`, where they masquerade.
const PRIORITY_SOURCE: i32 = 100;

/// A base chain of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) name: &'static str,
    pub(super) hook: Hook,
    pub(super) kind: ChainType,
    pub(super) priority: i32,
}

/// All base chains.
pub(super) const CHAINS: [BaseChain; 9] = [
    BaseChain {
        name: CHAIN_RAW,
        hook: Hook::PreRouting,
        kind: ChainType::Filter,
        priority: PRIORITY_RAW,
    },
    BaseChain {
        name: CHAIN_HOLD,
        hook: Hook::PreRouting,
        kind: ChainType::Filter,
        priority: PRIORITY_MANGLE - 1,
    },
    BaseChain {
        name: CHAIN_HOLD_OUTPUT,
        hook: Hook::Out,
        kind: ChainType::Filter,
        priority: PRIORITY_MANGLE - 1,
    },
    BaseChain {
        name: CHAIN_POSTROUTING,
        hook: Hook::PostRouting,
        kind: ChainType::Filter,
        priority: PRIORITY_SOURCE + 100,
    },
    BaseChain {
        name: CHAIN_STEER,
        hook: Hook::PreRouting,
        kind: ChainType::Filter,
        priority: PRIORITY_MANGLE,
    },
    BaseChain {
        name: CHAIN_STEER_OUTPUT,
        hook: Hook::Out,
        kind: ChainType::Route,
        priority: PRIORITY_MANGLE,
    },
    BaseChain {
        name: CHAIN_FORWARD,
        hook: Hook::PreRouting,
        kind: ChainType::Nat,
        priority: PRIORITY_DESTINATION - 1,
    },
    BaseChain {
        name: CHAIN_FORWARD_OUTPUT,
        hook: Hook::Out,
        kind: ChainType::Nat,
        priority: PRIORITY_DESTINATION - 1,
    },
    BaseChain {
        name: CHAIN_FORWARD_SOURCE,
        hook: Hook::PostRouting,
        kind: ChainType::Nat,
        priority: PRIORITY_SOURCE - 1,
    },
];
