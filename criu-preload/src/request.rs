//! Requests to nfnetlink (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`), as bytes.

/// Bytes of a request without attributes: `nlmsghdr` and `nfgenmsg`.
pub const LENGTH: usize = 20;
/// `NFNL_SUBSYS_CTNETLINK`, the upper half of a message's type.
const CONNTRACK: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`. CRIU uses it for expectations, too: `IPCTNL_MSG_EXP_GET` has the same number in another subsystem.
const GET: u16 = 1;
/// `IPCTNL_MSG_CT_GET_STATS` (Linux 3.6).
const GET_STATS: u16 = 5;
/// `IPCTNL_MSG_CT_GET_DYING` (Linux 3.9).
const GET_DYING: u16 = 6;
/// `NLM_F_REQUEST`, and `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// `CTA_STATS_GLOBAL_ENTRIES`.
const ENTRIES: u16 = 1;

/// Returns the request for the list of entries that are about to be destroyed, if `request` is one for all entries, of
/// whichever family, without a filter.
pub fn without_entries(request: &[u8; LENGTH]) -> Option<[u8; LENGTH]> {
    let [l0, l1, l2, l3, t0, t1, f0, f1, ..] = *request;
    let is_it = u32::from_ne_bytes([l0, l1, l2, l3]) == LENGTH as u32
        && u16::from_ne_bytes([t0, t1]) == CONNTRACK | GET
        && u16::from_ne_bytes([f0, f1]) == REQUEST | DUMP
        && request[16..] == [0; 4];
    is_it.then(|| {
        let mut other = *request;
        other[4..6].copy_from_slice(&(CONNTRACK | GET_DYING).to_ne_bytes());
        other
    })
}

/// Returns the request for the number of entries of the network namespace.
pub fn count() -> [u8; LENGTH] {
    let mut request = [0; LENGTH];
    request[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&(CONNTRACK | GET_STATS).to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    request
}

/// Returns the number in the answer.
pub fn counted(answer: &[u8]) -> Option<u32> {
    let kind = answer.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let mut attributes = answer.get(LENGTH..).filter(|_| kind == CONNTRACK | GET_STATS)?;
    loop {
        let length = attributes.get(..2)?.try_into().ok().map(u16::from_ne_bytes)?;
        let name = attributes.get(2..4)?.try_into().ok().map(u16::from_ne_bytes)?;
        let value = attributes.get(4..usize::from(length))?;
        if name == ENTRIES {
            return value.try_into().ok().map(u32::from_be_bytes);
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what CRIU 4.2 sends.
    fn criu() -> [u8; LENGTH] {
        let mut request = [0; LENGTH];
        request[..4].copy_from_slice(&20_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&0x101_u16.to_ne_bytes());
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        request[8..12].copy_from_slice(&24680_u32.to_ne_bytes());
        request
    }

    #[test]
    fn only_the_request_for_everything_is_replaced() {
        let replaced = without_entries(&criu()).unwrap();
        assert_eq!(replaced[4..6], 0x106_u16.to_ne_bytes());
        assert_eq!((&replaced[..4], &replaced[6..]), (&criu()[..4], &criu()[6..]));
        for index in [0, 4, 5, 6, 7, 16, 17, 18, 19] {
            let mut other = criu();
            other[index] ^= 0x40;
            assert_eq!(without_entries(&other), None, "byte {index}");
        }
    }

    #[test]
    fn the_number_of_entries_is_read() {
        let mut answer = count().to_vec();
        answer[0] = 36;
        answer.extend([8, 0, 2, 0, 0, 4, 0, 0]);
        answer.extend([8, 0, 1, 0, 0, 0, 1, 2]);
        assert_eq!(counted(&answer), Some(258));
        for length in 0..answer.len() {
            assert_eq!(counted(&answer[..length]), None, "{length} bytes");
        }
        answer[24..28].copy_from_slice(&[0; 4]);
        assert_eq!(
            counted(&[&answer[..20], &[0; 8]].concat()),
            None,
            "an attribute without length"
        );
        answer[4] = 2;
        assert_eq!(counted(&answer), None, "an error");
    }
}
