//! Policy rules that compare packet marks, whoever made them.

use std::fmt;

use futures::TryStreamExt;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::{Error, PROTOCOL, address_family};
use crate::fwmark::MarkBits;
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::TABLE_BASE;

/// A policy rule that compares packet marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// Whether it is an IPv6 rule; otherwise an IPv4 rule.
    pub v6: bool,
    /// Its preference: the kernel evaluates rules of lower ones first.
    pub preference: u32,
    /// The mark with which it compares.
    pub mark: u32,
    /// The bits that it compares.
    pub mask: u32,
    /// Whether it matches packets with any other mark.
    pub inverted: bool,
    /// Whether it is one of netmig's.
    pub ours: bool,
}

impl MarkRule {
    fn read(rule: &RuleMessage, v6: bool) -> Option<Self> {
        let (mut preference, mut mark, mut mask, mut marked) = (0, None, None, false);
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Priority(number) => preference = *number,
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                RuleAttribute::Protocol(protocol) => {
                    marked = *protocol == RouteProtocol::from(PROTOCOL);
                }
                _ => {}
            }
        }
        if mark.is_none() && mask.is_none() {
            return None;
        }
        Some(Self {
            v6,
            preference,
            mark: mark.unwrap_or(0),
            mask: mask.unwrap_or(u32::MAX),
            inverted: rule.header.flags.contains(RuleFlags::Invert),
            ours: marked && is_ours(preference),
        })
    }

    /// Returns whether this rule and netmig's rules could match the same packets, if netmig used
    /// these bits.
    ///
    /// A rule that compares whole marks leaves no bits to others. It does no harm if its mark has
    /// none of netmig's bits: a packet has either this mark or a peer's. An inverted rule that is
    /// evaluated before netmig's matches peers' packets too.
    #[must_use]
    pub fn clashes_with(&self, bits: MarkBits) -> bool {
        if self.ours || self.mask & bits.mask() == 0 {
            return false;
        }
        let is_whole = self.mask == u32::MAX;
        let comes_first = self.preference <= TABLE_BASE + u32::from(u8::MAX);
        !is_whole || self.mark & bits.mask() != 0 || (self.inverted && comes_first)
    }
}

impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let not = if self.inverted { "not " } else { "" };
        let Self { preference, mark, mask, .. } = self;
        write!(
            f,
            "the {family} rule with preference {preference} ({not}fwmark {mark:#x}/{mask:#x})"
        )
    }
}

fn is_ours(preference: u32) -> bool {
    (1..=u32::from(u8::MAX)).contains(&preference.wrapping_sub(TABLE_BASE))
}

/// Returns the policy rules of this network namespace that compare packet marks, including
/// netmig's.
///
/// # Errors
/// [`Error::Socket`], [`Error::Rules`].
pub async fn mark_rules() -> Result<Vec<MarkRule>, Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let mut rules = list(&handle, IpVersion::V4, false).await?;
    rules.extend(list(&handle, IpVersion::V6, true).await?);
    Ok(rules)
}

async fn list(handle: &Handle, version: IpVersion, v6: bool) -> Result<Vec<MarkRule>, Error> {
    let family = address_family(&version);
    let listed = handle.rule().get(version).execute().try_collect::<Vec<RuleMessage>>().await;
    match listed.map_err(rtnl::answer) {
        // A kernel without this family has no rules of it.
        Err(error) if rtnl::is_no_family(&error) => Ok(Vec::new()),
        Err(error) => Err(Error::Rules(error)),
        Ok(rules) => {
            let of_family = rules.iter().filter(|rule| rule.header.family == family);
            Ok(of_family.filter_map(|rule| MarkRule::read(rule, v6)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_number::PeerNumber;

    fn rule(preference: u32, mark: u32, mask: u32) -> MarkRule {
        MarkRule { v6: false, preference, mark, mask, inverted: false, ours: false }
    }

    #[test]
    fn masks_that_overlap_clash() {
        let (usual, low) = (MarkBits::DEFAULT, "8-15".parse().unwrap());
        let tailscale = rule(5210, 0x80000, 0x00ff_0000);
        assert!(tailscale.clashes_with(usual) && !tailscale.clashes_with(low));
        assert!(rule(5210, 0, 0x0001_0000).clashes_with(usual), "a bit that has to be clear");
        assert!(!rule(100, 0x4000, 0xc000).clashes_with(usual));
        assert!(!MarkRule { ours: true, ..tailscale }.clashes_with(usual));
        let text = tailscale.to_string();
        assert_eq!(text, "the IPv4 rule with preference 5210 (fwmark 0x80000/0xff0000)");
    }

    #[test]
    fn whole_marks_clash_only_where_they_can_be_peers_packets() {
        let bits = MarkBits::DEFAULT;
        assert!(!rule(32765, 1, u32::MAX).clashes_with(bits));
        assert!(rule(32765, 0x30001, u32::MAX).clashes_with(bits));
        let others = MarkRule { inverted: true, ..rule(32765, 0xca6c, u32::MAX) };
        assert!(!others.clashes_with(bits), "what wg-quick makes is asked after ours");
        assert!(MarkRule { preference: 100, ..others }.clashes_with(bits));
    }

    #[test]
    fn rules_of_ours_are_told_from_others() {
        let peer = PeerNumber::new(3).unwrap();
        let made = super::super::rule(peer, &IpVersion::V4);
        let read = MarkRule::read(&made, false).unwrap();
        assert_eq!((read.mark, read.mask, read.ours), (0x30000, 0x00ff_0000, true));
        let mut foreign = made.clone();
        foreign.attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        assert!(!MarkRule::read(&foreign, false).unwrap().ours);
        let unmarked =
            |a: &RuleAttribute| !matches!(a, RuleAttribute::FwMark(_) | RuleAttribute::FwMask(_));
        foreign.attributes.retain(unmarked);
        assert_eq!(MarkRule::read(&foreign, false), None);
    }
}
