//! Pages of a process, and where in a file they are.

use std::collections::BTreeMap;

use crate::images::LazyRange;

/// A part of [`PageRanges`], and where its pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// The address after its last page.
    end: u64,
    /// The place of its first page in the file of pages.
    offset: u64,
}

/// Pages of a process, by their addresses in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PageRanges(BTreeMap<u64, Part>);

impl PageRanges {
    pub(crate) fn new(ranges: &[LazyRange]) -> Self {
        let part = |range: &LazyRange| (range.start, Part { end: range.end, offset: range.offset });
        Self(ranges.iter().map(part).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many parts there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns how many bytes of pages there are.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, part)| part.end - start).sum()
    }

    /// Returns the pages from `address` on that follow each other, at most `length` bytes of them; `None` if that page
    /// is not among them.
    pub(crate) fn at(&self, address: u64, length: u64) -> Option<LazyRange> {
        let (start, part) = self.0.range(..=address).next_back()?;
        if address >= part.end {
            return None;
        }
        let end = part.end.min(address.saturating_add(length));
        Some(LazyRange { start: address, end, offset: part.offset + (address - start) })
    }

    /// Returns the pages from `address` on, or else the next ones behind it, at most `length` bytes of them.
    pub(crate) fn at_or_after(&self, address: u64, length: u64) -> Option<LazyRange> {
        self.at(address, length).or_else(|| self.at(self.next_after(address)?, length))
    }

    /// Returns those between two addresses.
    pub(crate) fn within(&self, start: u64, end: u64) -> Vec<LazyRange> {
        let mut found = Vec::new();
        let mut at = start;
        while let Some(range) = self.at_or_after(at, u64::MAX).filter(|range| range.start < end) {
            found.push(LazyRange { end: range.end.min(end), ..range });
            at = range.end;
            if at >= end {
                break;
            }
        }
        found
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = LazyRange> {
        self.0.iter().map(|(&start, part)| LazyRange { start, end: part.end, offset: part.offset })
    }

    /// Returns between which places in the file of pages they are.
    pub(crate) fn offsets(&self) -> Vec<(u64, u64)> {
        let place = |(start, part): (&u64, &Part)| (part.offset, part.offset + (part.end - start));
        self.0.iter().map(place).collect()
    }

    /// Returns which of these places in the file of pages are of none of them.
    pub(crate) fn without_offsets(&self, places: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut own = self.offsets();
        own.sort_unstable();
        let mut free = Vec::new();
        for &(start, end) in places {
            let mut at = start;
            let first = own.partition_point(|place| place.1 <= start);
            for place in own[first..].iter().take_while(|place| place.0 < end) {
                free.extend((place.0 > at).then_some((at, place.0)));
                at = place.1;
            }
            free.extend((at < end).then_some((at, end)));
        }
        free
    }

    /// Adds pages that are not among them.
    pub(crate) fn insert(&mut self, range: LazyRange) {
        let before = self.0.range_mut(..range.start).next_back();
        if let Some((&start, part)) = before
            && part.end == range.start
            && part.offset + (part.end - start) == range.offset
        {
            part.end = range.end;
            return;
        }
        self.0.insert(range.start, Part { end: range.end, offset: range.offset });
    }

    /// Returns where the next pages begin, from an address on that is not among them.
    pub(crate) fn next_after(&self, address: u64) -> Option<u64> {
        self.0.range(address..).next().map(|(start, _)| *start)
    }

    /// Forgets the pages between two addresses.
    pub(crate) fn forget(&mut self, start: u64, end: u64) {
        drop(self.take(start, end));
    }

    /// Follows pages that the process has given other addresses (mremap(2)).
    pub(crate) fn remap(&mut self, from: u64, to: u64, length: u64) {
        let moved = self.take(from, from.saturating_add(length));
        for (start, part) in moved {
            let start = start - from + to;
            let end = part.end - from + to;
            self.forget(start, end);
            self.0.insert(start, Part { end, offset: part.offset });
        }
    }

    /// Takes the pages between two addresses out.
    fn take(&mut self, start: u64, end: u64) -> BTreeMap<u64, Part> {
        if start >= end {
            return BTreeMap::new();
        }
        self.split(start);
        self.split(end);
        // There may be many parts beside these.
        let starts: Vec<u64> = self.0.range(start..end).map(|(start, _)| *start).collect();
        starts.iter().filter_map(|start| self.0.remove_entry(start)).collect()
    }

    /// Makes an address the start of a part, if it is within one.
    fn split(&mut self, address: u64) {
        let Some((&start, part)) = self.0.range_mut(..address).next_back() else { return };
        if address < part.end {
            let rest = Part { end: part.end, offset: part.offset + (address - start) };
            part.end = address;
            self.0.insert(address, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64, offset: u64) -> LazyRange {
        LazyRange { start, end, offset }
    }

    #[test]
    fn pages_are_found_in_the_middle_and_forgotten_across_parts() {
        let mut ranges = PageRanges::new(&[range(10, 20, 100), range(30, 40, 200)]);
        assert_eq!(ranges.at(15, 3), Some(range(15, 18, 105)));
        assert_eq!(ranges.at(15, 99), Some(range(15, 20, 105)));
        assert_eq!(ranges.at(20, 1), None);
        assert_eq!(ranges.at(9, 1), None);
        ranges.forget(18, 32);
        assert_eq!(ranges, PageRanges::new(&[range(10, 18, 100), range(32, 40, 202)]));
        ranges.forget(12, 14);
        assert_eq!(ranges.at_or_after(0, 99), Some(range(10, 12, 100)));
        assert_eq!(ranges.at(14, 99), Some(range(14, 18, 104)));
        ranges.forget(0, 99);
        assert!(ranges.is_empty());
        ranges.forget(5, 5);
        assert_eq!(ranges.at_or_after(0, 1), None);
    }

    #[test]
    fn places_are_told_from_those_of_others() {
        let ranges = PageRanges::new(&[range(10, 20, 100), range(30, 40, 200)]);
        assert_eq!(ranges.offsets(), [(100, 110), (200, 210)]);
        assert_eq!(ranges.without_offsets(&[(0, 100), (110, 200)]), [(0, 100), (110, 200)]);
        assert_eq!(ranges.without_offsets(&[(95, 205)]), [(95, 100), (110, 200)]);
        assert_eq!(ranges.without_offsets(&[(101, 109), (205, 300)]), [(210, 300)]);
    }

    #[test]
    fn pages_that_follow_each_other_in_both_are_one_part() {
        let mut ranges = PageRanges::default();
        ranges.insert(range(10, 20, 100));
        ranges.insert(range(20, 30, 110));
        ranges.insert(range(30, 40, 200));
        assert_eq!(ranges.at(12, 99), Some(range(12, 30, 102)));
        assert_eq!(ranges.next_after(31), None);
        assert_eq!(ranges.next_after(0), Some(10));
    }

    #[test]
    fn pages_keep_their_place_when_they_get_other_addresses() {
        let mut ranges = PageRanges::new(&[range(10, 20, 100), range(50, 60, 200)]);
        ranges.remap(15, 55, 10);
        assert_eq!(ranges.at(55, 99), Some(range(55, 60, 105)), "they lie over others");
        assert_eq!(ranges.at(50, 99), Some(range(50, 55, 200)));
        assert_eq!(ranges.at(15, 1), None);
        assert_eq!(ranges.at(10, 99), Some(range(10, 15, 100)));
        ranges.remap(50, 10, 4);
        assert_eq!(ranges.at(10, 99), Some(range(10, 14, 200)));
        assert_eq!(ranges.at(14, 99), Some(range(14, 15, 104)));
    }
}
