//! Pages of redb's trees, parsed without trusting a single octet of them.

use std::ops::Range;

/// A page below another, and the checksum it has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) page: u64,
    checksum: u128,
}

impl Child {
    /// Page number, then checksum.
    pub(super) fn parse(octets: &[u8]) -> Option<Self> {
        let checksum = u128::from_le_bytes(*octets.get(8..)?.first_chunk()?);
        Some(Self { page: number_at(octets, 0)?, checksum })
    }
}

/// Fixed widths of a table's keys and values, where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widths {
    pub(super) key: Option<usize>,
    pub(super) value: Option<usize>,
}

impl Widths {
    pub(super) const VARIABLE: Self = Self { key: None, value: None };

    /// How many of the two have no fixed width.
    fn variable(self) -> usize {
        usize::from(self.key.is_none()) + usize::from(self.value.is_none())
    }
}

/// XXH3 of 128 bits, as redb has it.
pub(super) fn checksum(octets: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(octets)
}

pub(super) fn number_at(octets: &[u8], at: usize) -> Option<u64> {
    octets.get(at..)?.first_chunk().map(|octets| u64::from_le_bytes(*octets))
}

fn short_at(octets: &[u8], at: usize) -> Option<usize> {
    octets.get(at..)?.first_chunk().map(|octets| u32::from_le_bytes(*octets) as usize)
}

/// Entries of a leaf, or keys of a branch.
fn count(page: &[u8]) -> Option<usize> {
    page.get(2..)?.first_chunk().map(|octets| usize::from(u16::from_le_bytes(*octets)))
}

pub(super) enum Node {
    Leaf(Leaf),
    Branch(Branch),
}

impl Node {
    /// And whether it is what it was `said` to be. `None`: it is no page of a tree.
    pub(super) fn parse(page: Vec<u8>, widths: Widths, said: Option<Child>) -> Option<(Self, bool)> {
        let count = count(&page).filter(|count| *count > 0)?;
        let is_as_said = |page: &[u8], end: Option<usize>| {
            let sealed = end.and_then(|end| page.get(..end));
            sealed.zip(said).is_some_and(|(sealed, said)| checksum(sealed) == said.checksum)
        };
        match page.first()? {
            1 => {
                let is_sound = is_as_said(&page, leaf_end(&page, count, widths));
                Some((Self::Leaf(Leaf { page, count, widths }), is_sound))
            }
            2 => {
                let is_sound = is_as_said(&page, branch_end(&page, count, widths));
                Some((Self::Branch(Branch { page, count, widths }), is_sound))
            }
            _ => None,
        }
    }

    /// How many octets of a page say where it ends. `None`: it is no page of a tree.
    pub(super) fn head(page: &[u8], widths: Widths) -> Option<usize> {
        let count = count(page).filter(|count| *count > 0)?;
        match page.first()? {
            1 => Some(4 + 4 * count * widths.variable()),
            2 => Some(8 + 24 * (count + 1) + 4 * count),
            _ => None,
        }
    }

    /// How many octets a page takes whose head this is. `None`: it is no page of a tree, or cut off.
    pub(super) fn extent(head: &[u8], widths: Widths) -> Option<u64> {
        let count = count(head).filter(|count| *count > 0)?;
        let end = match head.first()? {
            1 => leaf_end(head, count, widths),
            2 => branch_end(head, count, widths),
            _ => None,
        };
        end.map(|end| end as u64)
    }
}

/// A page with pages below it.
pub(super) struct Branch {
    page: Vec<u8>,
    /// Of its keys. It has one child more.
    count: usize,
    widths: Widths,
}

impl Branch {
    /// Each with the key before it, above which its keys are, and with the one after it, up to which they are.
    pub(super) fn children(
        &self,
    ) -> impl DoubleEndedIterator<Item = (Option<Child>, Option<&[u8]>, Option<&[u8]>)> {
        (0..=self.count)
            .map(|nth| (self.child(nth), nth.checked_sub(1).and_then(|nth| self.key(nth)), self.key(nth)))
    }

    fn child(&self, nth: usize) -> Option<Child> {
        let page_at = 8 + 16 * (self.count + 1) + 8 * nth;
        let checksum = u128::from_le_bytes(*self.page.get(8 + 16 * nth..)?.first_chunk()?);
        Some(Child { page: number_at(&self.page, page_at)?, checksum })
    }

    fn key(&self, nth: usize) -> Option<&[u8]> {
        if nth >= self.count {
            return None;
        }
        let begin = match nth.checked_sub(1) {
            Some(before) => branch_key_end(&self.page, self.count, self.widths, before)?,
            None => branch_keys_at(self.count, self.widths),
        };
        self.page.get(begin..branch_key_end(&self.page, self.count, self.widths, nth)?)
    }
}

fn branch_keys_at(keys: usize, widths: Widths) -> usize {
    let ends = if widths.key.is_none() { 4 * keys } else { 0 };
    8 + 24 * (keys + 1) + ends
}

fn branch_key_end(page: &[u8], keys: usize, widths: Widths, nth: usize) -> Option<usize> {
    match widths.key {
        Some(width) => branch_keys_at(keys, widths).checked_add(width.checked_mul(nth + 1)?),
        None => short_at(page, 8 + 24 * (keys + 1) + 4 * nth),
    }
}

fn branch_end(page: &[u8], keys: usize, widths: Widths) -> Option<usize> {
    branch_key_end(page, keys, widths, keys.checked_sub(1)?)
}

/// A page with rows.
pub(super) struct Leaf {
    page: Vec<u8>,
    count: usize,
    widths: Widths,
}

impl Leaf {
    /// Keys and values. `None`: it is not to be found in the page.
    pub(super) fn entries(&self) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
        (0..self.count).map(|nth| {
            let Range { start, end } = key(&self.page, self.count, self.widths, nth)?;
            let value = value(&self.page, self.count, self.widths, nth)?;
            let key = self.page.get(start..end)?;
            let value = self.page.get(value)?;
            let has = |width: Option<usize>, octets: &[u8]| width.is_none_or(|width| width == octets.len());
            (has(self.widths.key, key) && has(self.widths.value, value)).then_some((key, value))
        })
    }
}

fn leaf_end(page: &[u8], count: usize, widths: Widths) -> Option<usize> {
    Some(value(page, count, widths, count.checked_sub(1)?)?.end)
}

fn key(page: &[u8], count: usize, widths: Widths, nth: usize) -> Option<Range<usize>> {
    let begin = 4 + 4 * count * widths.variable();
    let end = |nth: usize| match widths.key {
        Some(width) => begin.checked_add(width.checked_mul(nth + 1)?),
        None => short_at(page, 4 + 4 * nth),
    };
    Some(nth.checked_sub(1).map_or(Some(begin), end)?..end(nth)?)
}

fn value(page: &[u8], count: usize, widths: Widths, nth: usize) -> Option<Range<usize>> {
    let begin = || key(page, count, widths, count.checked_sub(1)?).map(|key| key.end);
    let ends_at = 4 + if widths.key.is_none() { 4 * count } else { 0 };
    let end = |nth: usize| match widths.value {
        Some(width) => begin()?.checked_add(width.checked_mul(nth + 1)?),
        None => short_at(page, ends_at + 4 * nth),
    };
    Some(nth.checked_sub(1).map_or_else(begin, end)?..end(nth)?)
}
