//! Policy rules.
//!
//! Attribute numbers are those of `include/uapi/linux/fib_rules.h`.

use super::{Configuration, Kind, hexadecimal};
use crate::netlink::attribute::{attributes, find, find_text, find_u32, ip_address, u32_at};
use crate::netlink::route::list;
use crate::netlink::{Connection, SocketError};

/// Bytes of `struct fib_rule_hdr`.
const HEADER: usize = 12;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_OIFNAME: u16 = 17;
const FRA_PROTOCOL: u16 = 21;

/// The rules that every namespace has: preference and table (ip-rule(8)). IPv6 has the first two.
const USUAL: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// Reads rules other than the default ones, and reports default ones that are missing.
pub(super) fn read(socket: &mut Connection, into: &mut Configuration) -> Result<(), SocketError> {
    for (family, protocol, usual) in
        [(libc::AF_INET, "IPv4", &USUAL[..]), (libc::AF_INET6, "IPv6", &USUAL[..2])]
    {
        let mut fixed = [0; HEADER];
        fixed[0] = u8::try_from(family).unwrap_or(0);
        let mut found = Vec::new();
        for payload in list(socket, libc::RTM_GETRULE, &fixed)? {
            // A kernel without a family answers with the rules of all.
            if payload.first() != fixed.first() {
                continue;
            }
            let (rule, text) = describe(&payload);
            if text.is_empty() && usual.contains(&rule) {
                found.push(rule);
            } else {
                let (preference, table) = rule;
                let rule = format!("{protocol} rule {preference}:{text} lookup {table}");
                into.add_own(Kind::Rule, rule);
            }
        }
        // A kernel without rules of this family has none of them.
        let is_there = !found.is_empty();
        for (preference, table) in usual.iter().filter(|rule| is_there && !found.contains(rule)) {
            let text = format!("no {protocol} rule {preference}: lookup {table} any more");
            into.add_own(Kind::Rule, text);
        }
    }
    Ok(())
}

/// Returns a rule's preference and table, and the rest of it as text.
fn describe(payload: &[u8]) -> ((u32, u32), String) {
    let (header, rest) = payload.split_at_checked(HEADER).unwrap_or_default();
    let byte = |at: usize| header.get(at).copied().unwrap_or(0);
    let mut text = String::new();
    for (kind, prefix, word) in [(FRA_SRC, byte(2), "from"), (FRA_DST, byte(1), "to")] {
        if let Some(address) = find(rest, kind).and_then(ip_address) {
            text.push_str(&format!(" {word} {address}/{prefix}"));
        }
    }
    for (kind, word) in [(FRA_IIFNAME, "iif"), (FRA_OIFNAME, "oif")] {
        if let Some(interface) = find_text(rest, kind) {
            text.push_str(&format!(" {word} {interface}"));
        }
    }
    let (tos, action, flags) = (byte(3), byte(7), u32_at(header, 8).unwrap_or(0));
    if (tos, action, flags) != (0, 1, 0) {
        text.push_str(&format!(" tos {tos} action {action} flags {flags:#x}"));
    }
    for (kind, value) in attributes(rest) {
        let is_usual = match kind {
            FRA_SUPPRESS_PREFIXLEN => value == [0xff; 4],
            FRA_SRC | FRA_DST | FRA_IIFNAME | FRA_OIFNAME => true,
            FRA_PRIORITY | FRA_TABLE | FRA_PROTOCOL => true,
            _ => value.iter().all(|byte| *byte == 0),
        };
        if !is_usual {
            text.push_str(&format!(" attribute {kind} {}", hexadecimal(value)));
        }
    }
    let table = find_u32(rest, FRA_TABLE).unwrap_or_else(|| u32::from(byte(4)));
    ((find_u32(rest, FRA_PRIORITY).unwrap_or(0), table), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::put;

    #[test]
    fn a_rule_is_told_with_all_that_it_looks_at() {
        let mut payload = vec![2, 0, 32, 0, 77, 0, 0, 1, 0, 0, 0, 0];
        put(&mut payload, FRA_SRC, &[192, 0, 2, 77]);
        put(&mut payload, FRA_PRIORITY, &32765_u32.to_ne_bytes());
        put(&mut payload, FRA_SUPPRESS_PREFIXLEN, &[0xff; 4]);
        put(&mut payload, 10, &7_u32.to_be_bytes());
        let (rule, text) = describe(&payload);
        assert_eq!(rule, (32765, 77));
        assert_eq!(text, " from 192.0.2.77/32 attribute 10 00000007");
        assert_eq!(describe(&[]), ((0, 0), " tos 0 action 0 flags 0x0".to_owned()));
    }
}
