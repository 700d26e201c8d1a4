//! Echo clients. They send numbered, checked messages at a steady rate and account for every reply.

mod client;
mod echo_message;
mod idle;
mod pacer;
mod tally;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

pub use echo_message::{Message, SIZE_MIN};

use super::client_report::EchoReport;
use super::stop::Stop;

/// The settings of an echo client.
#[derive(Debug, Clone)]
pub struct EchoPlan {
    /// The echo server.
    pub server: SocketAddr,
    /// Messages a second, over all connections together; 0 sends none.
    pub rate: f64,
    /// TCP connections or UDP flows (source ports) that share the rate.
    pub connections: u32,
    /// Further TCP connections that stay idle until the end.
    pub idle: u32,
    /// Bytes of a message, at least [`SIZE_MIN`].
    pub size: usize,
    /// The time limit for missing replies at the end.
    pub drain: Duration,
    /// Whether the report has the round-trip time of each message.
    pub record_latencies: bool,
}

/// Runs a TCP echo client to its end. Calls `ready` when every connection is established and the first reply has come
/// (at once if the rate is 0).
///
/// # Errors
/// A connection could not be established at the start, or the kernel refused a descriptor. The report has later
/// errors.
pub fn tcp(plan: &EchoPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<EchoReport> {
    let idle = idle::IdleConnections::open(plan.server, plan.idle)?;
    let mut channels = Vec::with_capacity(plan.connections as usize);
    for _ in 0..plan.connections {
        channels.push(tcp::TcpChannel::connect(plan.server, plan.size)?);
    }
    let mut report = client::run(plan, channels, stop, ready)?;
    report.idle = u64::from(plan.idle);
    let (alive, dead) = idle.check(plan.drain);
    report.idle_alive = alive;
    report.error_messages.extend(dead);
    Ok(report)
}

/// Runs a UDP echo client to its end. Calls `ready` when the first reply has come.
///
/// # Errors
/// A socket could not be opened. The report has later errors.
pub fn udp(plan: &EchoPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<EchoReport> {
    let mut channels = Vec::with_capacity(plan.connections as usize);
    for _ in 0..plan.connections {
        channels.push(udp::UdpChannel::open(plan.server, plan.size)?);
    }
    client::run(plan, channels, stop, ready)
}
