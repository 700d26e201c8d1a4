//! Finding the rule of this host that drops what it sends to the other end of a tunnel.
//!
//! What WireGuard sends, and what is sent to try a tunnel, are this host's own packets: they pass
//! the output hook, where a host's firewall may drop them. The trace of nftables
//! ([`crate::path_trial`]) names the rule.

use std::net::IpAddr;

use super::Error;
use super::handshake::DESTINATION;
use crate::flow::Protocol;
use crate::path_trial::{DropRule, Fate, Tracer};
use crate::peer_number::PeerNumber;
use crate::table::{RuleTag, Table, TableError};

/// Traces this host's own packets to the other end. Dropping it removes its rules.
pub(super) struct OutputTrace {
    tag: RuleTag,
    table: Table,
    tracer: Tracer,
    port: u16,
}

/// A trace that could not be started or read says nothing about the tunnel.
#[derive(Debug, thiserror::Error)]
enum TraceError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Trace(#[from] crate::netlink::SocketError),
}

impl OutputTrace {
    /// Starts tracing what goes into the tunnel to try it, and UDP packets from the tunnel's port, 0
    /// where there is none. `None` if that is not possible.
    pub(super) fn begin(interface: &str, port: u16) -> Option<Self> {
        let peer = PeerNumber::of_interface(interface)?;
        let begin = || {
            let tracer = Tracer::open()?;
            let mut table = Table::open()?;
            let tag = table.trace_output(peer, DESTINATION.1, port)?;
            Ok::<_, TraceError>(Self { tag, table, tracer, port })
        };
        begin().inspect_err(|error| tracing::debug!("{interface}: {error}")).ok()
    }

    /// Returns the rule or policy that has dropped one of these packets, if any has.
    pub(super) fn dropped(&mut self) -> Option<DropRule> {
        let mut found = None;
        let port = self.port;
        let read = self.tracer.read(|(protocol, tuple), fate| {
            let is_greeting = (tuple.destination, tuple.destination_port)
                == (IpAddr::V4(DESTINATION.0), DESTINATION.1);
            let is_outer = port != 0 && tuple.source_port == port;
            if let Fate::Dropped(rule) = fate
                && protocol == Protocol::Udp
                && (is_greeting || is_outer)
            {
                found = Some(rule);
            }
        });
        if let Err(error) = read {
            tracing::debug!("{error}");
        }
        found
    }

    /// Fails if one of these packets was dropped.
    pub(super) fn check(&mut self, interface: &str) -> Result<(), Error> {
        match self.dropped() {
            Some(rule) => {
                Err(Error::OutputBlocked { interface: interface.to_owned(), rule: Some(rule) })
            }
            None => Ok(()),
        }
    }
}

impl Drop for OutputTrace {
    fn drop(&mut self) {
        if let Err(error) = self.table.remove_path_trial(&self.tag) {
            // They go with the tunnel.
            tracing::warn!("cannot remove rules that trace packets: {error}");
        }
    }
}
