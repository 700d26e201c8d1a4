//! A second table that `nft flush ruleset` does not remove.
//!
//! When all rules are flushed, flows break before netmig can restore its rules. Their packets are
//! no longer steered, and not even translated, since the kernel translates only as long as there is
//! a chain of type `nat`. A far end's next packet would reach this host itself, which answers with
//! a reset. A table with an *owner* survives a flush by others (`nft_flush`,
//! `net/netfilter/nf_tables_api.c`, from 5.12 on). It lasts as long as its owner's socket, and with
//! the flag *persist* (from 6.9 on) beyond that, as a table that anyone may change.
//!
//! So the process that keeps a host's flows owns `inet netmig-guard`: the steering rules once more,
//! and an empty chain of type `nat`.

use std::ffi::{CStr, CString, c_char, c_void};

use nftnl::nftnl_sys as sys;
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily, Rule};
use nix::errno::Errno;

use super::chains::PRIORITY_MANGLE;
use super::{CHAIN_STEER, CHAIN_STEER_OUTPUT, Purpose, TableError, Transaction, rules};
use crate::netlink::{Connection, Protocol, SocketError};
use crate::peer_number::PeerNumber;

/// Name of the table, in family `inet`.
pub const GUARD: &CStr = c"netmig-guard";
/// The chain that keeps NAT working.
const CHAIN_NAT: &str = "translation";
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY_NAT: i32 = -100;
/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST` (`include/uapi/linux/netfilter/nf_tables.h`).
const OWNER: u32 = 1 << 1;
const PERSIST: u32 = 1 << 2;

/// The guard table, owned by this value's socket.
pub struct Guard {
    connection: Connection,
    flags: u32,
}

impl Guard {
    /// Opens a connection to nftables; changes nothing.
    ///
    /// # Errors
    /// [`TableError::Open`] without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, TableError> {
        let connection = Connection::open(Protocol::Netfilter).map_err(TableError::Open)?;
        Ok(Self { connection, flags: OWNER | PERSIST })
    }

    /// Creates the table, or updates it for these peers; takes over one whose owner has died. If
    /// the table does not exist yet, no packet may be held in this network namespace: all would be
    /// dropped.
    ///
    /// Returns false on a kernel without owners of tables.
    ///
    /// # Errors
    /// [`TableError::Refused`] when nftables refuses, for example because another process owns the
    /// table.
    pub fn protect(&mut self, peers: &[PeerNumber]) -> Result<bool, TableError> {
        match self.replace(peers) {
            // The flag to persist is younger than purposes.
            Err(TableError::Refused { source, .. })
                if self.flags & PERSIST != 0 && unknown_flag(&source) =>
            {
                self.flags = OWNER;
                match self.replace(peers) {
                    Err(TableError::Refused { source, .. }) if unknown_flag(&source) => Ok(false),
                    other => other.map(|()| true),
                }
            }
            other => other.map(|()| true),
        }
    }

    fn replace(&mut self, peers: &[PeerNumber]) -> Result<(), TableError> {
        let table = nftnl::Table::new(GUARD, ProtoFamily::Inet);
        let mut batch = Batch::new();
        batch.add(&OwnedTable { flags: self.flags }, MsgType::Add);
        let chains = [
            (CHAIN_NAT, Hook::PreRouting, ChainType::Nat, PRIORITY_NAT),
            (CHAIN_STEER, Hook::PreRouting, ChainType::Filter, PRIORITY_MANGLE),
            (CHAIN_STEER_OUTPUT, Hook::Out, ChainType::Route, PRIORITY_MANGLE),
        ];
        for (name, hook, kind, priority) in chains {
            let mut chain = Chain::new(CString::new(name)?, &table);
            chain.set_hook(hook, priority);
            chain.set_type(kind);
            chain.set_policy(Policy::Accept);
            batch.add(&chain, MsgType::Add);
            // A removal that names no rule removes all of the chain.
            batch.add(&Rule::new(&chain), MsgType::Del);
        }
        for peer in peers {
            for rule in &rules::steering(*peer) {
                rules::add(&mut batch, &table, rule, &Purpose::Peer(*peer))?;
            }
        }
        self.commit(batch, "protect flows against a flush of all rules")
    }

    /// Removes the table; an absent table is not an error. No packet may be held in this network
    /// namespace.
    ///
    /// # Errors
    /// As [`Guard::protect`].
    pub fn remove(&mut self) -> Result<(), TableError> {
        let table = nftnl::Table::new(GUARD, ProtoFamily::Inet);
        let mut batch = Batch::new();
        batch.add(&table, MsgType::Del);
        match self.commit(batch, "remove the table that protects flows") {
            Err(TableError::Refused { source, .. }) if source.refusal() == Some(Errno::ENOENT) => {
                Ok(())
            }
            other => other,
        }
    }

    fn commit(&mut self, batch: Batch, act: &str) -> Result<(), TableError> {
        let refusals = Transaction::new(batch).refusals(&mut self.connection)?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some((_, refused)) => {
                Err(TableError::Refused { act: act.to_owned(), source: refused.into() })
            }
        }
    }
}

/// Returns whether a refusal means that the kernel does not know one of the table's flags.
fn unknown_flag(error: &SocketError) -> bool {
    matches!(error.refusal(), Some(Errno::EOPNOTSUPP | Errno::EINVAL))
}

/// The message that creates the guard table; nftnl's own has no flags.
struct OwnedTable {
    flags: u32,
}

// SAFETY: writes one netlink message of well below a page to `buf`, as libnftnl builds it.
unsafe impl NlMsg for OwnedTable {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, _: MsgType) {
        // SAFETY: the caller gives a buffer for one message. The table is allocated, filled, written
        // and freed here; libnftnl copies the name.
        unsafe {
            let table = sys::nftnl_table_alloc();
            if table.is_null() {
                // As nftnl and the standard library answer a failed tiny allocation.
                std::process::abort();
            }
            let family = ProtoFamily::Inet as u32;
            sys::nftnl_table_set_u32(table, sys::NFTNL_TABLE_FAMILY as u16, family);
            sys::nftnl_table_set_str(table, sys::NFTNL_TABLE_NAME as u16, GUARD.as_ptr());
            sys::nftnl_table_set_u32(table, sys::NFTNL_TABLE_FLAGS as u16, self.flags);
            let header = sys::nftnl_nlmsg_build_hdr(
                buf.cast::<c_char>(),
                libc::NFT_MSG_NEWTABLE as u16,
                ProtoFamily::Inet as u16,
                libc::NLM_F_ACK as u16,
                seq,
            );
            sys::nftnl_table_nlmsg_build_payload(header, table);
            sys::nftnl_table_free(table);
        }
    }
}
