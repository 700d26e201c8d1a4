//! A lab of hosts on one machine, and traffic that checks itself.
pub mod traffic;
