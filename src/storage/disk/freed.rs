//! Which pages of the metadata are in use though nothing leads to them, because what did is damaged.
//!
//! With each commit redb stores which pages are taken (`allocator_state`), and which of these the last commits have freed
//! (`data_pages_unreachable`, `system_pages_unreachable`), since they are not used again at once. A page that is taken, not freed and not
//! led to is one that a damaged page led to. All else is of other times: mail that was settled must not come back from it. So
//! if any of this is damaged too, or of another commit, nothing is said.

use std::collections::BTreeSet;

use crate::storage::rows::Result;

use super::node::number_at;
use super::salvage::{PAGE, Salvage};
use super::walk::Met;

/// The places of pages that are taken and not freed, in order. `None`: it is not known which they are.
pub(super) fn in_use(salvage: &Salvage) -> Result<Option<Vec<u64>>> {
    let Some(system) = salvage.system else { return Ok(None) };
    let tables = salvage.list(system)?;
    let (mut taken, mut unreachable) = (Vec::new(), BTreeSet::new());
    let mut is_of_the_last = false;
    for name in [&b"data_pages_unreachable"[..], b"system_pages_unreachable", b"allocator_state"] {
        let Some(table) = tables.get(name).filter(|table| table.is_sound) else { return Ok(None) };
        let mut is_sound = true;
        let Some((root, widths)) = table.begin() else { continue };
        salvage.walk(root, widths, &mut |met| {
            let leaf = match met {
                Met::Branch(_) => return Ok(()),
                Met::Leaf(_, leaf) => leaf,
                Met::Damaged(..) | Met::Astray(_) => {
                    is_sound = false;
                    return Ok(());
                }
            };
            for entry in leaf.entries() {
                let read = entry.and_then(|(key, value)| match (name, key) {
                    (b"allocator_state", [3, region @ ..]) => {
                        let region = u32::from_le_bytes(*region.first_chunk()?);
                        let start = salvage.start(region.into());
                        let pages = taken_in(value)?.into_iter();
                        taken.extend(pages.map(|page| start.saturating_add(u64::from(page) * PAGE)));
                        Some(())
                    }
                    (b"allocator_state", [5, ..]) => {
                        is_of_the_last = number_at(value, 0)? == salvage.commit;
                        Some(())
                    }
                    (b"allocator_state", _) => Some(()),
                    _ => freed(salvage, value, &mut unreachable),
                });
                is_sound &= read.is_some();
            }
            Ok(())
        })?;
        if !is_sound {
            return Ok(None);
        }
    }
    taken.retain(|page| !unreachable.contains(page));
    taken.sort_unstable();
    Ok(is_of_the_last.then_some(taken))
}

/// Those of them that nothing leads to. `None`: it is not known, or pages that sound ones lead to are not among those in use.
pub(super) fn unled(salvage: &Salvage, in_use: &[u64]) -> Result<Option<Vec<u64>>> {
    let mut led_to = BTreeSet::new();
    let mut is_right = true;
    for tree in salvage.trees() {
        let Some((root, widths)) = tree.begin() else { continue };
        salvage.walk(root, widths, &mut |met| {
            match met {
                Met::Branch(page) | Met::Leaf(page, _) => {
                    // A damaged list of tables may be that of another time.
                    is_right &= !tree.is_sound || in_use.binary_search(&salvage.place(page).0).is_ok();
                    add(salvage, page, &mut led_to);
                }
                Met::Damaged(page, ..) => add(salvage, page, &mut led_to),
                Met::Astray(_) => {}
            }
            Ok(())
        })?;
    }
    Ok(is_right.then(|| in_use.iter().copied().filter(|page| !led_to.contains(page)).collect()))
}

fn add(salvage: &Salvage, page: u64, to: &mut BTreeSet<u64>) {
    let (at, pages) = salvage.place(page);
    // A damaged number would have many.
    to.extend((0..pages.min(1 << 20)).map(|nth| at.saturating_add(nth * PAGE)));
}

/// A count, then numbers of pages.
fn freed(salvage: &Salvage, value: &[u8], to: &mut BTreeSet<u64>) -> Option<()> {
    let (count, pages) = value.split_first_chunk()?;
    for nth in 0..usize::from(u16::from_le_bytes(*count)) {
        add(salvage, number_at(pages, 8 * nth)?, to);
    }
    Some(())
}

fn short_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk().map(|octets| u32::from_le_bytes(*octets))
}

/// The pages of a region that are taken. For each size of blocks, from the smallest on, there is a tree of bits, whose last level has
/// a zero for each block that is free.
fn taken_in(state: &[u8]) -> Option<Vec<u32>> {
    let (orders, pages) = (usize::from(*state.first()?) + 1, short_at(state, 4)?);
    let mut begin = 8 + 4 * orders;
    let mut levels = Vec::new();
    for order in 0..orders {
        let end = short_at(state, 8 + 4 * order)? as usize;
        levels.push(last_level(state.get(begin..end)?)?);
        begin = end;
    }
    let is_free = |page: u32| {
        levels.iter().zip(0..).any(|((blocks, bits), order)| {
            let block = page.checked_shr(order).unwrap_or_default();
            let word = number_at(bits, 8 * (block / 64) as usize).unwrap_or_default();
            block < *blocks && word & (1 << (block % 64)) == 0
        })
    };
    Some((0..pages).filter(|page| !is_free(*page)).collect())
}

/// How many bits there are, and the bits.
fn last_level(tree: &[u8]) -> Option<(u32, &[u8])> {
    let height = short_at(tree, 0)? as usize;
    let begins = match height.checked_sub(2) {
        Some(before) => short_at(tree, 4 + 4 * before)? as usize,
        None => 4 + 4 * height,
    };
    let level = tree.get(begins..short_at(tree, 4 + 4 * height.checked_sub(1)?)? as usize)?;
    let (count, bits) = level.split_first_chunk()?;
    let count = u32::from_le_bytes(*count);
    (bits.len() as u64 * 8 >= u64::from(count)).then_some((count, bits))
}
