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
    Branch(Vec<Child>),
}

impl Node {
    /// And whether it is what it was `said` to be. `None`: it is no page of a tree.
    pub(super) fn parse(page: Vec<u8>, widths: Widths, said: Option<Child>) -> Option<(Self, bool)> {
        let matches = |page: &[u8], end: Option<usize>| {
            let sealed = end.and_then(|end| page.get(..end));
            sealed.zip(said).is_some_and(|(sealed, said)| checksum(sealed) == said.checksum)
        };
        let count = count(&page).filter(|count| *count > 0)?;
        match page.first()? {
            1 => {
                let leaf = Leaf { page, count, widths };
                let is_sound = matches(&leaf.page, leaf.end());
                Some((Self::Leaf(leaf), is_sound))
            }
            2 => {
                let is_sound = matches(&page, branch_end(&page, count, widths));
                let child = |nth: usize| {
                    let page_at = 8 + 16 * (count + 1) + 8 * nth;
                    let checksum = u128::from_le_bytes(*page.get(8 + 16 * nth..)?.first_chunk()?);
                    Some(Child { page: number_at(&page, page_at)?, checksum })
                };
                Some((Self::Branch((0..=count).filter_map(child).collect()), is_sound))
            }
            _ => None,
        }
    }
}

fn branch_end(page: &[u8], keys: usize, widths: Widths) -> Option<usize> {
    let keys_at = 8 + 24 * (keys + 1);
    match widths.key {
        Some(width) => keys_at.checked_add(width.checked_mul(keys)?),
        None => short_at(page, keys_at + 4 * (keys - 1)),
    }
}

/// A page with rows.
pub(super) struct Leaf {
    page: Vec<u8>,
    count: usize,
    widths: Widths,
}

impl Leaf {
    /// How many octets a leaf takes whose first page this is.
    pub(super) fn extent(page: &[u8], widths: Widths) -> Option<u64> {
        if page.first() != Some(&1) {
            return None;
        }
        let count = count(page).filter(|count| *count > 0)?;
        end(page, count, widths).map(|end| end as u64)
    }

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

    fn end(&self) -> Option<usize> {
        end(&self.page, self.count, self.widths)
    }
}

fn end(page: &[u8], count: usize, widths: Widths) -> Option<usize> {
    Some(value(page, count, widths, count.checked_sub(1)?)?.end)
}

fn key(page: &[u8], count: usize, widths: Widths, nth: usize) -> Option<Range<usize>> {
    let variable = usize::from(widths.key.is_none()) + usize::from(widths.value.is_none());
    let begin = 4 + 4 * count * variable;
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
