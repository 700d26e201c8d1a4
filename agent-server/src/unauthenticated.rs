//! Limits connections whose client is not authenticated yet (as `MaxStartups` of sshd_config(5) does).
//!
//! Anybody can open them, so each costs little and lasts a few seconds. When there are too many, the oldest one makes
//! room: a paired host needs milliseconds for its handshake, and the client of a connection that is dropped loses
//! nothing but that.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Connections that may be at this stage.
const PLACES: usize = 128;
/// Of these, from one address, or one network of IPv6 addresses.
const PLACES_OF_ONE: usize = 32;
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(60);
/// Hosts get networks of this size and choose addresses in them as they like, in bits.
const NETWORK: u32 = 64;

/// The places, oldest first.
#[derive(Debug, Default)]
pub struct Unauthenticated {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    waiting: Vec<Entry>,
    next: u64,
    warned: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    network: IpAddr,
    task: Option<AbortHandle>,
}

/// A place in the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Unauthenticated {
    /// Gives a place to a new connection, taking it from the oldest one of the same network, or of
    /// all, if there is no other.
    pub fn enter(&self, address: IpAddr) -> Ticket {
        let network = network_of(address);
        let mut all = self.lock();
        let of_one = all.waiting.iter().filter(|entry| entry.network == network).count();
        let oldest = if of_one >= PLACES_OF_ONE {
            all.waiting.iter().position(|entry| entry.network == network)
        } else {
            (all.waiting.len() >= PLACES).then_some(0)
        };
        if let Some(index) = oldest {
            let entry = all.waiting.remove(index);
            entry.task.inspect(AbortHandle::abort);
            all.warn(entry.network);
        }
        let ticket = Ticket(all.next);
        all.next += 1;
        all.waiting.push(Entry { ticket, network, task: None });
        ticket
    }

    /// Notes which task serves a connection, so that it can be ended.
    pub fn serve(&self, ticket: Ticket, task: AbortHandle) {
        if let Some(entry) = self.lock().waiting.iter_mut().find(|g| g.ticket == ticket) {
            entry.task = Some(task);
        }
    }

    /// Gives the place back; `false` if it was taken away, and the connection has to end.
    pub fn leave(&self, ticket: Ticket) -> bool {
        let waiting = &mut self.lock().waiting;
        let place = waiting.iter().position(|entry| entry.ticket == ticket);
        place.map(|index| waiting.remove(index)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // The list is whole between any two statements of this file.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Says so once a minute: a flood may not fill the log.
    fn warn(&mut self, network: IpAddr) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= QUIET) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                "too many connections do not show who they are, one of them from {network}; the \
                 oldest are dropped"
            );
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let mask = u128::MAX << (u128::BITS - NETWORK);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_pushes_out_only_its_own() {
        let limit = Unauthenticated::default();
        let other = limit.enter(address("192.0.2.1"));
        let flood: Vec<Ticket> = (0..1000).map(|_| limit.enter(address("192.0.2.9"))).collect();
        assert!(limit.leave(other));
        assert!(!limit.leave(flood[0]));
        assert!(!limit.leave(flood[1000 - PLACES_OF_ONE - 1]));
        assert!(limit.leave(flood[1000 - PLACES_OF_ONE]));
        assert!(limit.leave(flood[999]));
    }

    #[test]
    fn many_addresses_push_out_the_oldest() {
        let limit = Unauthenticated::default();
        let all: Vec<Ticket> =
            (0..=PLACES).map(|n| limit.enter(IpAddr::from([198, 51, 100, n as u8]))).collect();
        assert!(!limit.leave(all[0]));
        assert!(limit.leave(all[1]));
        assert!(!limit.leave(all[1]));
    }

    #[test]
    fn one_ipv6_network_counts_as_one() {
        assert_eq!(network_of(address("2001:db8::1")), network_of(address("2001:db8::ffff:2")));
        assert_ne!(network_of(address("2001:db8::1")), network_of(address("2001:db8:0:1::1")));
        assert_eq!(network_of(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[tokio::test]
    async fn the_task_of_a_place_that_is_taken_ends() {
        let limit = Unauthenticated::default();
        let first = limit.enter(address("192.0.2.9"));
        let task = tokio::spawn(std::future::pending::<()>());
        limit.serve(first, task.abort_handle());
        for _ in 0..PLACES_OF_ONE {
            limit.enter(address("192.0.2.9"));
        }
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
