//! Which rows of a damaged table count.
//!
//! Those of sound pages do, each as far as its own checksum says. Where a page is damaged, the sound page above it still says which keys it
//! had. Rows with these keys are looked for in two places: in pages that are in use and that nothing leads to (`freed`), for it may have
//! led to them, and in itself. The first are of now. What a damaged page reads as may be what stood there before a write that was lost,
//! so whoever asks for rows decides about each of these, where another table knows better.

use std::rc::Rc;

use redb::{Key, TableDefinition, TableHandle, Value};

use crate::storage::rows::Result;
use crate::storage::{StorageError, StorageErrorKind};

use super::error::corrupt;
use super::node::{Leaf, Node, Widths};
use super::salvage::{PAGE, Salvage};
use super::walk::{Compare, Met, Span};

/// Rows handed out at once.
const PORTION: usize = 16 * 1024;
/// Octets of rows after which they are handed out, however few they are.
const PORTION_OCTETS: usize = 8 * 1024 * 1024;

type Entry<'a> = Option<(&'a [u8], &'a [u8])>;

/// What is known of a row in a page that is not as it was written.
pub(super) enum Verdict<T> {
    /// Another table has it too.
    Counts(T),
    /// Nothing else says whether it is of now. It does less harm than a lost one.
    Believed(T),
    /// It is of another time or place.
    LeftOut,
}

/// A damaged page that a sound one leads to.
struct Damaged {
    page: u64,
    /// The keys it had.
    span: Rc<Span>,
    is_leaf: bool,
}

/// A leaf that no sound page leads to.
struct Unled {
    at: u64,
    octets: u64,
    /// The first that counts.
    key: Vec<u8>,
}

impl Salvage {
    /// Hands out, in portions, the rows of a table that can be found. `doubt` gets those of pages that are not as they were written.
    ///
    /// # Errors
    /// `Corrupt` if the table is not to be found. `Temporary` if the file can not be read.
    pub(super) fn rows<K: Key + 'static, V: Value + 'static, T>(
        &self,
        table: TableDefinition<'_, K, V>,
        read: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>) -> Result<T>,
        doubt: impl Fn(T) -> Result<Verdict<T>>,
        each: impl FnMut(Vec<Result<T>>) -> Result<()>,
    ) -> Result<()> {
        let (tree, name) = (self.tree(table)?, table.name().to_owned());
        let Some(root) = tree.root else { return Ok(()) };
        let row = |entry: Entry<'_>| {
            let (key, value) =
                entry.ok_or_else(|| corrupt(format!("a row of the table {name} is cut off")))?;
            read(K::from_bytes(key), V::from_bytes(value))
        };
        let (mut sound, mut portion) = (0, Portion::new(each));
        let (mut damaged, mut astray) = (Vec::new(), Vec::new());
        self.walk(root, tree.widths, &mut |met| {
            match met {
                Met::Branch(_) => {}
                Met::Leaf(_, leaf) => {
                    for entry in leaf.entries() {
                        let row = row(entry);
                        sound += u64::from(row.is_ok());
                        portion.add(entry, row)?;
                    }
                }
                Met::Damaged(page, span, leaf) => {
                    self.tell(page, &name);
                    damaged.push(Damaged { page, span, is_leaf: leaf.is_some() });
                }
                Met::Astray(page) => astray.push(page),
            }
            Ok(())
        })?;
        // Those in use are of now. If it is not known which are, so is no page that a damaged one leads to.
        let are_of_now = damaged.is_empty() || self.unled()?.is_some();
        let (mut found, mut believed, mut left_out) = (sound, 0, 0);
        let mut is_led = vec![false; damaged.len()];
        let mut take = |leaf: Leaf, only: Option<usize>, last: &mut Option<Vec<u8>>, is_led: &mut [bool]| {
            for entry in leaf.entries() {
                let (row, key) = (row(entry), entry.map_or(&[][..], |(key, _)| key));
                // The key of a damaged row may be what is damaged.
                let Ok(row) = row else {
                    portion.add(entry, row)?;
                    continue;
                };
                let of = holding(&damaged, key, K::compare).filter(|of| only.is_none_or(|only| *of == only));
                let follows = last.as_deref().is_none_or(|last| K::compare(last, key).is_lt());
                let verdict = if follows && of.is_some() { doubt(row)? } else { Verdict::LeftOut };
                let row = match verdict {
                    Verdict::LeftOut => {
                        left_out += 1;
                        continue;
                    }
                    Verdict::Believed(row) if only.is_some() || !are_of_now => {
                        believed += 1;
                        row
                    }
                    Verdict::Believed(row) | Verdict::Counts(row) => {
                        found += 1;
                        row
                    }
                };
                of.and_then(|of| is_led.get_mut(of)).into_iter().for_each(|is_led| *is_led = true);
                *last = Some(key.to_vec());
                portion.add(entry, Ok(row))?;
            }
            Ok(())
        };
        if !(damaged.is_empty() || tree.is_sound && sound >= tree.length) {
            let counts = |leaf: &Leaf| {
                let keys = leaf.entries().filter(|entry| row(*entry).is_ok()).flatten().map(|(key, _)| key);
                keys.map(<[u8]>::to_vec).find(|key| holding(&damaged, key, K::compare).is_some())
            };
            let mut unled = self.below(tree.widths, &astray, counts)?;
            unled.sort_unstable_by(|one, other| K::compare(&one.key, &other.key));
            let mut last = None;
            for Unled { at, octets, .. } in unled {
                if let Some(leaf) = self.leaf(at, octets, tree.widths)? {
                    take(leaf, None, &mut last, &mut is_led)?;
                }
            }
        }
        for (nth, page) in damaged.iter().enumerate().filter(|(_, page)| page.is_leaf) {
            // What led to rows was no leaf, whatever it is now.
            if is_led.get(nth) == Some(&true) {
                continue;
            }
            let (at, pages) = self.place(page.page);
            if let Some(leaf) = self.leaf(at, pages.saturating_mul(PAGE), tree.widths)? {
                take(leaf, Some(nth), &mut None, &mut [])?;
            }
        }
        if left_out > 0 {
            self.damage.tell(corrupt(format!(
                "{left_out} rows in damaged pages of the table {name} are left out: they are of another time or place"
            )));
        }
        if found < tree.length && tree.is_sound {
            let (missed, of) = (tree.length - found, tree.length);
            let lost = missed.saturating_sub(believed);
            if lost > 0 {
                self.damage.tell(corrupt(format!("{lost} of the {of} rows of the table {name} are lost")));
            }
            if believed > 0 {
                self.damage.tell(corrupt(format!(
                    "{missed} of the {of} rows of the table {name} lay in damaged pages, and {believed} are taken as these read: \
                     if a write was lost, these may be of an earlier time, and as many newer ones lost"
                )));
            }
        }
        portion.hand_out()
    }

    /// Hands out each row of a table if all of it is as it was written. `false`: it is not.
    ///
    /// # Errors
    /// `Temporary` if the file can not be read.
    pub(super) fn sound_rows<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
        mut each: impl for<'a> FnMut(K::SelfType<'a>, V::SelfType<'a>) -> bool,
    ) -> Result<bool> {
        let tree = match self.tree(table) {
            Err(error) if error.kind() == StorageErrorKind::Corrupt => return Ok(false),
            tree => tree?,
        };
        let Some(root) = tree.root else { return Ok(true) };
        let mut is_sound = true;
        self.walk(root, tree.widths, &mut |met| {
            match met {
                Met::Branch(_) => {}
                Met::Leaf(_, leaf) => {
                    for entry in leaf.entries() {
                        is_sound &=
                            entry.is_some_and(|(key, value)| each(K::from_bytes(key), V::from_bytes(value)));
                    }
                }
                Met::Damaged(..) | Met::Astray(_) => is_sound = false,
            }
            Ok(())
        })?;
        Ok(is_sound)
    }

    /// Leaves of a table that no sound page leads to: those in use or, if it is not known which pages are, those that a damaged page
    /// leads to.
    fn below(
        &self,
        widths: Widths,
        astray: &[u64],
        counts: impl Fn(&Leaf) -> Option<Vec<u8>>,
    ) -> Result<Vec<Unled>> {
        let mut leaves = Vec::new();
        let mut add = |at: u64, octets: u64| -> Result<bool> {
            let leaf = self.leaf(at, octets, widths)?;
            let key = leaf.and_then(|leaf| counts(&leaf));
            Ok(key.map(|key| leaves.push(Unled { at, octets, key })).is_some())
        };
        let Some(pages) = self.unled()? else {
            for page in astray {
                let (at, pages) = self.place(*page);
                add(at, pages.saturating_mul(PAGE))?;
            }
            return Ok(leaves);
        };
        let mut end = 0;
        for at in pages.iter().copied() {
            if at < end {
                continue;
            }
            let Some(octets) = self.extent(at, widths)? else { continue };
            let is_unled = |page: u64| pages.binary_search(&page).is_ok();
            let is_whole = (0..octets / PAGE).all(|nth| is_unled(at.saturating_add(nth * PAGE)));
            if is_whole && add(at, octets)? {
                end = at.saturating_add(octets);
            }
        }
        Ok(leaves)
    }

    /// Of a leaf that is larger than a page, its head says how large.
    fn extent(&self, at: u64, widths: Widths) -> Result<Option<u64>> {
        let Some(first) = self.read(at, PAGE)? else { return Ok(None) };
        if first.first() != Some(&1) {
            return Ok(None);
        }
        let Some(head) = Node::head(&first, widths) else { return Ok(None) };
        let head = self.read(at, (head as u64).max(PAGE))?;
        let extent = head.as_deref().and_then(|head| Node::extent(head, widths));
        Ok(extent.filter(|extent| *extent > 0).map(|extent| extent.next_multiple_of(PAGE)))
    }

    fn leaf(&self, at: u64, octets: u64, widths: Widths) -> Result<Option<Leaf>> {
        let page = self.page_at(at, octets, widths)?;
        Ok(match page.and_then(|page| Node::parse(page, widths, None)) {
            Some((Node::Leaf(leaf), _)) => Some(leaf),
            _ => None,
        })
    }

    fn tell(&self, page: u64, table: &str) {
        let (at, name) = (self.place(page).0, self.name.display());
        self.damage
            .tell(corrupt(format!("the page at octet {at} of {name}, of the table {table}, is damaged")));
    }
}

/// Which of them had a key. They are in order.
fn holding(damaged: &[Damaged], key: &[u8], compare: Compare) -> Option<usize> {
    let nth = damaged.partition_point(|page| page.span.is_before(key, compare));
    damaged.get(nth).filter(|page| page.span.holds(key, compare)).map(|_| nth)
}

/// Rows until they are handed out.
struct Portion<T, E> {
    rows: Vec<std::result::Result<T, StorageError>>,
    octets: usize,
    each: E,
}

impl<T, E: FnMut(Vec<Result<T>>) -> Result<()>> Portion<T, E> {
    fn new(each: E) -> Self {
        Self { rows: Vec::new(), octets: 0, each }
    }

    fn add(&mut self, entry: Entry<'_>, row: Result<T>) -> Result<()> {
        self.rows.push(row);
        self.octets = self.octets.saturating_add(entry.map_or(0, |(key, value)| key.len() + value.len()));
        if self.rows.len() < PORTION && self.octets < PORTION_OCTETS {
            return Ok(());
        }
        self.octets = 0;
        (self.each)(std::mem::take(&mut self.rows))
    }

    fn hand_out(mut self) -> Result<()> {
        (self.each)(self.rows)
    }
}
