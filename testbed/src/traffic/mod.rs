//! Traffic that checks itself: an echo and bulk server, and clients that account for every message and every byte. The
//! program `netmig-probe` is a command line for this module. It is linked statically and runs in containers and on lab
//! hosts.

pub mod bulk;
pub mod client_report;
pub mod echo;
pub mod gap;
pub mod packet_capture;
pub mod pattern;
pub mod redis_counter;
pub mod redis_values;
pub mod requests;
pub mod serve;
pub mod stop;

/// The default port of the TCP and UDP echo service.
pub const ECHO_PORT: u16 = 7000;
/// The default port of the bulk transfer and control service.
pub const BULK_PORT: u16 = 7001;
