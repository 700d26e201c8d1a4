//! Traffic that checks itself: an echo and bulk server, and clients that account for every message
//! and every byte. The program `netmig-probe` is a thin command line around this module; it is
//! linked statically and runs in containers as well as on lab hosts.

pub mod bulk;
pub mod client_report;
pub mod echo;
pub mod gap;
pub mod packet_capture;
pub mod pattern;
pub mod redis_counter;
pub mod requests;
pub mod serve;
pub mod stop;

/// Port of the TCP and UDP echo service, unless told otherwise.
pub const ECHO_PORT: u16 = 7000;
/// Port of the bulk transfer and control service, unless told otherwise.
pub const BULK_PORT: u16 = 7001;
