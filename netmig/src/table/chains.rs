//! The base chains: where they hook in, and before or after whom.

use nftnl::{ChainType, Hook};

/// Chain whose rules queue packets.
pub const CHAIN_HOLD: &str = "hold";
/// Chain whose rules queue this host's own packets.
pub const CHAIN_HOLD_OUTPUT: &str = "hold-output";
/// Chain that exchanges addresses for their stand-ins.
pub const CHAIN_POSTROUTING: &str = "stand-in";
/// Chain that lets packets past conntrack.
pub const CHAIN_RAW: &str = "late";
/// Chain that steers forwarded packets.
pub const CHAIN_STEER: &str = "steer";
/// Chain that steers this host's own packets.
pub const CHAIN_STEER_OUTPUT: &str = "steer-output";

/// Chain that leads new connections to a container that has moved.
pub const CHAIN_FORWARD: &str = "forward";
/// Chain that does the same for this host's own processes.
pub const CHAIN_FORWARD_OUTPUT: &str = "forward-output";
/// Chain that gives some of these connections another source.
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

/// All of them.
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
