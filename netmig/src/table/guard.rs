//! A second table that `nft flush ruleset` does not remove.
//!
//! When somebody flushes all rules, flows would break before anything could be put back: their packets
//! would not be steered any more, and not even be translated, since the kernel translates only as long
//! as there is some chain of type `nat`. A far end's next packet would then reach this host itself, which
//! answers with a reset. A table with an *purpose* is left alone by a flush that is not its purpose's
//! (`nft_flush`, `net/netfilter/nf_tables_api.c`, from 5.12 on); it lasts as long as its purpose's socket,
//! and with the flag *persist* (from 6.9 on) beyond that, as a table that anybody may change.
//!
//! So the process that keeps a host's flows owns `inet netmig-guard`: the steering rules once more, and
//! an empty chain of type `nat`.

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
/// Its chain that keeps translation working.
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
    /// Without CAP_NET_ADMIN, or on a kernel without nfnetlink.
    pub fn open() -> Result<Self, TableError> {
        let connection = Connection::open(Protocol::Netfilter).map_err(TableError::Open)?;
        Ok(Self { connection, flags: OWNER | PERSIST })
    }

    /// Makes the table, or makes it fit these peers; takes one over whose purpose has gone. Not while
    /// packets are held in this network namespace if it is not there yet: they would all be dropped.
    ///
    /// `Ok(false)`: this kernel knows no purposes of tables.
    ///
    /// # Errors
    /// When nftables refuses, for one because another process owns the table.
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

    /// Removes the table; absent means done. Not while packets are held in this network namespace.
    ///
    /// # Errors
    /// When nftables refuses, for one because another process owns the table.
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

/// Whether a refusal means that the kernel does not know one of the table's flags.
fn unknown_flag(error: &SocketError) -> bool {
    matches!(error.refusal(), Some(Errno::EOPNOTSUPP | Errno::EINVAL))
}

/// The message that makes the guard table; nftnl's own knows no flags.
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
