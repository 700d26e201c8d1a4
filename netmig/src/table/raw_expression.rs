//! nf_tables expressions that nftnl's Rust wrapper does not have.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;

/// The register that all rules here use.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// The first 32-bit register, which is the beginning of [`REGISTER`].
const FIRST_WORD: u32 = libc::NFT_REG32_00 as u32;

/// An attribute of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Setting {
    U8(u32, u8),
    U16(u32, u16),
    U32(u32, u32),
    Text(u32, &'static CStr),
    Name(u32, CString),
    /// An expression, which libnftnl takes over.
    Inner(u32, Raw),
    /// Bytes of which libnftnl takes ownership.
    Owned(u32, Vec<u8>),
}

/// An expression as a name and attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    name: &'static CStr,
    settings: Vec<Setting>,
}

impl Raw {
    /// Makes `ct KEY`.
    pub(super) fn conntrack(key: i32) -> Self {
        let settings = vec![
            Setting::U32(sys::NFTNL_EXPR_CT_DREG, REGISTER),
            Setting::U32(sys::NFTNL_EXPR_CT_KEY, key.unsigned_abs()),
        ];
        Self { name: c"ct", settings }
    }

    /// Makes `ct original KEY` or `ct reply KEY`.
    pub(super) fn conntrack_of(key: i32, direction: u8) -> Self {
        let mut raw = Self::conntrack(key);
        raw.settings.push(Setting::U8(sys::NFTNL_EXPR_CT_DIR, direction));
        raw
    }

    /// Makes `ct original KEY` or `ct reply KEY`, into the 32-bit registers from this one on, counted from 0.
    pub(super) fn conntrack_into(key: i32, direction: u8, register: u32) -> Self {
        let settings = vec![
            Setting::U32(sys::NFTNL_EXPR_CT_DREG, FIRST_WORD + register),
            Setting::U32(sys::NFTNL_EXPR_CT_KEY, key.unsigned_abs()),
            Setting::U8(sys::NFTNL_EXPR_CT_DIR, direction),
        ];
        Self { name: c"ct", settings }
    }

    /// Makes `add @SET { … counter }`: the key is in the 32-bit registers from the first one on.
    pub(super) fn count_in(set: CString) -> Self {
        let settings = vec![
            Setting::U32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, REGISTER),
            Setting::U32(sys::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_ADD.unsigned_abs()),
            Setting::Name(sys::NFTNL_EXPR_DYNSET_SET_NAME, set),
            Setting::Inner(sys::NFTNL_EXPR_DYNSET_EXPR, Self::counter()),
        ];
        Self { name: c"dynset", settings }
    }

    /// Makes `fib daddr type`.
    pub(super) fn destination_type() -> Self {
        let settings = vec![
            Setting::U32(sys::NFTNL_EXPR_FIB_DREG, REGISTER),
            Setting::U32(sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_ADDRTYPE),
            Setting::U32(sys::NFTNL_EXPR_FIB_FLAGS, FIB_F_DADDR),
        ];
        Self { name: c"fib", settings }
    }

    /// Makes `ip … set`: writes the register's four bytes into the IPv4 header.
    pub(super) fn write_v4(offset: u32) -> Self {
        Self::write(
            offset,
            4,
            &[
                (sys::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, CSUM_INET),
                (sys::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, 10),
            ],
        )
    }

    /// Makes `ip6 … set`: writes the register's sixteen bytes into the IPv6 header, which has no
    /// checksum.
    pub(super) fn write_v6(offset: u32) -> Self {
        Self::write(offset, 16, &[])
    }

    /// Writes into the network header. The checksum of TCP or UDP covers its addresses and is
    /// updated.
    fn write(offset: u32, length: u32, checksum: &[(u32, u32)]) -> Self {
        let numbers = [
            (sys::NFTNL_EXPR_PAYLOAD_SREG, REGISTER),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, libc::NFT_PAYLOAD_NETWORK_HEADER.unsigned_abs()),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, length),
            (sys::NFTNL_EXPR_PAYLOAD_FLAGS, L4_PSEUDO_HEADER),
        ];
        let all = numbers.iter().chain(checksum);
        let settings = all.map(|(attribute, value)| Setting::U32(*attribute, *value)).collect();
        Self { name: c"payload", settings }
    }

    /// Makes `meta nftrace set` from the register's first byte.
    pub(super) fn trace() -> Self {
        let settings = vec![
            Setting::U32(sys::NFTNL_EXPR_META_SREG, REGISTER),
            Setting::U32(sys::NFTNL_EXPR_META_KEY, libc::NFT_META_NFTRACE.unsigned_abs()),
        ];
        Self { name: c"meta", settings }
    }

    /// Makes `counter`.
    pub(super) fn counter() -> Self {
        Self { name: c"counter", settings: Vec::new() }
    }

    /// Makes `notrack`.
    pub(super) fn notrack() -> Self {
        Self { name: c"notrack", settings: Vec::new() }
    }

    /// Makes `queue num N [bypass]` (`nft_queue`).
    pub(super) fn queue(number: u16, bypass: bool) -> Self {
        let settings = vec![
            Setting::U16(sys::NFTNL_EXPR_QUEUE_NUM, number),
            Setting::U16(sys::NFTNL_EXPR_QUEUE_TOTAL, 1),
            Setting::U16(sys::NFTNL_EXPR_QUEUE_FLAGS, u16::from(bypass)),
        ];
        Self { name: c"queue", settings }
    }

    /// Returns the xtables target NFQUEUE through `nft_compat`, revision 3.
    pub(super) fn xt_nfqueue(number: u16, bypass: bool) -> Self {
        // struct xt_NFQ_info_v3 { u16 queuenum, queues_total, flags; }, padded as XT_ALIGN does.
        let info = [number, 1, u16::from(bypass), 0].map(u16::to_ne_bytes).concat();
        let settings = vec![
            Setting::Text(sys::NFTNL_EXPR_TG_NAME, c"NFQUEUE"),
            Setting::U32(sys::NFTNL_EXPR_TG_REV, 3),
            Setting::Owned(sys::NFTNL_EXPR_TG_INFO, info),
        ];
        Self { name: c"target", settings }
    }
}

/// `NFT_PAYLOAD_CSUM_INET` and `NFT_PAYLOAD_L4CSUM_PSEUDOHDR` (the same file).
const CSUM_INET: u32 = 1;
const L4_PSEUDO_HEADER: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_DADDR` (`include/uapi/linux/netfilter/nf_tables.h`).
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 1 << 1;

impl Expression for Raw {
    fn to_expr(&self, _rule: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        self.allocate()
    }
}

impl Raw {
    fn allocate(&self) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a NUL-terminated static string.
        let Some(expression) = NonNull::new(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) })
        else {
            // libnftnl knows all these names; what is left is a failed tiny allocation, which
            // nftnl and the standard library answer in the same way.
            std::process::abort();
        };
        for setting in &self.settings {
            set(expression, setting);
        }
        expression
    }
}

fn set(expression: NonNull<sys::nftnl_expr>, setting: &Setting) {
    let expression = expression.as_ptr();
    match setting {
        // SAFETY (all arms): the expression was just allocated and is not shared; libnftnl
        // copies numbers and strings. The type of each attribute is the one that libnftnl's
        // expression of that name gives it (src/expr/*.c).
        Setting::U8(attribute, value) => {
            // SAFETY: as above.
            unsafe { sys::nftnl_expr_set_u8(expression, *attribute as u16, *value) };
        }
        Setting::U16(attribute, value) => {
            // SAFETY: as above.
            unsafe { sys::nftnl_expr_set_u16(expression, *attribute as u16, *value) };
        }
        Setting::U32(attribute, value) => {
            // SAFETY: as above.
            unsafe { sys::nftnl_expr_set_u32(expression, *attribute as u16, *value) };
        }
        Setting::Text(attribute, value) => {
            // SAFETY: as above.
            unsafe { sys::nftnl_expr_set_str(expression, *attribute as u16, value.as_ptr()) };
        }
        Setting::Name(attribute, value) => {
            // SAFETY: as above.
            unsafe { sys::nftnl_expr_set_str(expression, *attribute as u16, value.as_ptr()) };
        }
        Setting::Inner(attribute, inner) => {
            // SAFETY: libnftnl puts this expression, which nobody else has, into its list, and frees it with the
            // outer one (src/expr/dynset.c).
            unsafe {
                let data = inner.allocate().as_ptr().cast_const().cast();
                sys::nftnl_expr_set(expression, *attribute as u16, data, 0);
            }
        }
        Setting::Owned(attribute, value) => {
            // SAFETY: libnftnl keeps the pointer of this attribute and frees it with free(3), so
            // it must come from malloc(3); it is written within its size before it is passed on.
            unsafe {
                let memory = libc::malloc(value.len()).cast::<u8>();
                if memory.is_null() {
                    std::process::abort();
                }
                memory.copy_from_nonoverlapping(value.as_ptr(), value.len());
                let (data, length) = (memory.cast_const().cast(), value.len() as u32);
                sys::nftnl_expr_set(expression, *attribute as u16, data, length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compat_target_says_queue_total_and_bypass() {
        let Raw { settings, .. } = Raw::xt_nfqueue(0x1234, true);
        let Some(Setting::Owned(_, info)) = settings.last() else { panic!("no info") };
        let words: Vec<_> =
            info.chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
        assert_eq!(words, [0x1234, 1, 1, 0]);
    }
}
