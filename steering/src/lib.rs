//! What this host does for containers whose connections it carries: tunnels, marks, ports and firewall rules,
//! from the first migration until the last flow has ended.
//!
//! ```text
//! a number and a tunnel for each peer   (peer_numbers, tunnels, tunnel_end, tunnel_aliases, fwmark)
//! containers that were moved away       (moved_containers, port_forward, opened_firewall, flow_end)
//! the kernel follows the notes          (reconciler, steering_lock, flow_counters)
//! ```

pub mod carried_flows;
pub mod flow_counters;
pub mod flow_termination;
pub mod fwmark_setting;
pub mod moved_containers;
pub mod opened_firewall;
pub mod peer_numbers;
pub mod port_forward;
pub mod reconciler;
pub mod steering_lock;
pub mod tunnel_aliases;
mod tunnel_endpoint;
pub mod tunnels;
