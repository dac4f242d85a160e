//! What is left of a damaged metadata file, read page by page and without redb.
//!
//! The file is trees of pages (`docs/design.md` of redb, format version 3). A commit slot of its header has the place and the
//! checksum of the list of tables, that of each table's root, and each branch page those of the pages below it. So what a
//! sound page leads to is what was committed last, and a page is left out only if itself is damaged.
//!
//! Leaves below a damaged branch are led to by nothing. They are found in what the file keeps about its pages (`freed`).

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use redb::{Key, TableDefinition, TableHandle, Value};

use crate::storage::rows::Result;

use super::damage::Damage;
use super::error::{self, corrupt};
use super::files::OpenFile;
use super::freed;
use super::node::{Child, Leaf, Node, Widths, number_at};

pub(super) const PAGE: u64 = 4096;
/// The header with both commit slots.
const HEADER: usize = 320;
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const SLOTS: [usize; 2] = [64, 192];
const SLOT: usize = 128;
const FORMAT_VERSION: u8 = 3;
/// No tree is deeper.
const DEEPEST: usize = 64;
/// Rows handed out at once.
const PORTION: usize = 16 * 1024;

/// A damaged metadata file.
pub(super) struct Salvage {
    name: PathBuf,
    file: Arc<dyn OpenFile>,
    damage: Arc<Damage>,
    /// In pages: what comes first in each region, and the rest of it.
    region: (u64, u64),
    /// The number of the last commit.
    pub(super) commit: u64,
    tables: BTreeMap<Vec<u8>, Tree>,
    pub(super) system: Option<Child>,
    unled: OnceCell<Vec<u64>>,
}

/// A table as its list has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    root: Option<Child>,
    /// How many rows it has.
    length: u64,
    /// Fixed widths of keys and values.
    widths: Widths,
    /// The list is sound where it says so.
    pub(super) is_sound: bool,
}

/// A page on the way through a tree.
pub(super) enum Met {
    /// It is as it was written.
    Branch(u64),
    /// And whether it is as it was written.
    Leaf(u64, Leaf, bool),
    /// It is damaged, and some or all that it led to is not found by it.
    Lost(u64),
}

/// The commit slot that counts.
struct Slot {
    user: Option<Child>,
    system: Option<Child>,
    commit: u64,
}

impl Slot {
    /// `None`: it is damaged.
    fn parse(slot: &[u8]) -> Option<Self> {
        let (sealed, seal) = slot.split_last_chunk::<16>()?;
        let is_sound = super::node::checksum(sealed) == u128::from_le_bytes(*seal);
        let root = |flag: usize, at: usize| match sealed.get(flag) {
            Some(0) => Some(None),
            _ => Child::parse(sealed.get(at..)?).map(Some),
        };
        (is_sound && slot.first() == Some(&FORMAT_VERSION)).then_some(())?;
        Some(Self { user: root(1, 8)?, system: root(2, 40)?, commit: number_at(sealed, 104)? })
    }

    /// As redb chooses it where both are sound: the first one of a commit in two phases, else the newer one. The commit before the
    /// last is no substitute for the last.
    fn choose(header: &[u8]) -> Option<Self> {
        let flags = *header.get(MAGIC.len())?;
        let [one, other] = SLOTS.map(|at| header.get(at..at + SLOT).and_then(Self::parse));
        let (first, second) = if flags & 1 == 0 { (one?, other) } else { (other?, one) };
        match second {
            Some(second) if flags & 4 == 0 && second.commit > first.commit => Some(second),
            _ => Some(first),
        }
    }
}

impl Salvage {
    /// # Errors
    /// `Corrupt` if its header is damaged. `Temporary` if it can not be read.
    pub(super) fn open(name: PathBuf, file: Arc<dyn OpenFile>, damage: Arc<Damage>) -> Result<Self> {
        let mut header = [0; HEADER];
        let damaged = |what: &str| corrupt(format!("the header of {} is damaged: {what}", name.display()));
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damaged("it is cut off"));
            }
            read => read.map_err(|error| error::io("reading", &name, error))?,
        }
        let number =
            |at: usize| header.get(at..at + 4)?.first_chunk().map(|octets| u32::from_le_bytes(*octets));
        if !header.starts_with(MAGIC) || number(12).map(u64::from) != Some(PAGE) {
            return Err(damaged("it does not begin as one"));
        }
        let slot = Slot::choose(&header).ok_or_else(|| damaged("it does not say what was committed last"))?;
        let region = number(16).zip(number(20)).map(|(before, pages)| (u64::from(before), u64::from(pages)));
        let mut salvage = Self {
            name,
            file,
            damage,
            region: region.unwrap_or_default(),
            commit: slot.commit,
            tables: BTreeMap::new(),
            system: slot.system,
            unled: OnceCell::new(),
        };
        salvage.tables = slot.user.map_or(Ok(BTreeMap::new()), |root| salvage.list(root))?;
        Ok(salvage)
    }

    /// What a list of tables says. Damaged pages of it are read for what they are worth.
    pub(super) fn list(&self, root: Child) -> Result<BTreeMap<Vec<u8>, Tree>> {
        let mut tables = BTreeMap::new();
        self.walk(root, Widths::VARIABLE, &mut |met| {
            let Met::Leaf(_, leaf, is_sound) = met else { return Ok(()) };
            for (name, row) in leaf.entries().flatten() {
                tables.extend(Tree::parse(row, is_sound).map(|tree| (name.to_vec(), tree)));
            }
            Ok(())
        })?;
        Ok(tables)
    }

    /// Hands out what a tree has, in order. Nothing is followed that may be another's.
    pub(super) fn walk(
        &self,
        root: Child,
        widths: Widths,
        each: &mut dyn FnMut(Met) -> Result<()>,
    ) -> Result<()> {
        // With the depth, and whether a sound page leads there.
        let mut next = vec![(root, 0, true)];
        while let Some((child, depth, is_led_to)) = next.pop() {
            let read = if depth > DEEPEST { None } else { self.page(child.page)? };
            let node = read.and_then(|page| Node::parse(page, widths, Some(child)));
            match node {
                Some((Node::Branch(children), is_sound)) if is_sound || is_led_to => {
                    let page = child.page;
                    each(if is_sound { Met::Branch(page) } else { Met::Lost(page) })?;
                    next.extend(children.into_iter().rev().map(|child| (child, depth + 1, is_sound)));
                }
                Some((Node::Leaf(leaf), is_sound)) if is_sound || is_led_to => {
                    each(Met::Leaf(child.page, leaf, is_sound))?;
                }
                _ if is_led_to => each(Met::Lost(child.page))?,
                // Where a damaged branch leads may be what is damaged of it.
                _ => {}
            }
        }
        Ok(())
    }

    /// A page as it is. `None`: the file has none there.
    fn page(&self, number: u64) -> Result<Option<Vec<u8>>> {
        let (at, pages) = self.place(number);
        self.read(at, pages.saturating_mul(PAGE))
    }

    pub(super) fn length(&self) -> Result<u64> {
        self.file.length().map_err(|error| error::io("reading", &self.name, error))
    }

    pub(super) fn read(&self, at: u64, octets: u64) -> Result<Option<Vec<u8>>> {
        if at.saturating_add(octets) > self.length()? {
            return Ok(None);
        }
        let mut page = vec![0; usize::try_from(octets).unwrap_or_default()];
        self.file.read_exact_at(&mut page, at).map_err(|error| error::io("reading", &self.name, error))?;
        Ok(Some(page))
    }

    /// Where a page begins, and how many of the smallest it is as large as.
    pub(super) fn place(&self, number: u64) -> (u64, u64) {
        let order = number >> 59;
        let index = number & (0xf_ffff_u64.checked_shr(order as u32).unwrap_or_default());
        let pages = 1_u64 << order;
        let region = (number >> 20) & 0xf_ffff;
        (self.start(region).saturating_add(index.saturating_mul(pages).saturating_mul(PAGE)), pages)
    }

    /// Where the pages of a region begin.
    pub(super) fn start(&self, region: u64) -> u64 {
        let (before, pages) = self.region;
        region
            .saturating_mul(before.saturating_add(pages))
            .saturating_add(before)
            .saturating_add(1)
            .saturating_mul(PAGE)
    }

    pub(super) fn trees(&self) -> impl Iterator<Item = &Tree> {
        self.tables.values()
    }

    /// What is not to be found is not empty: nothing of it is given up.
    fn tree<K: Key + 'static, V: Value + 'static>(&self, table: TableDefinition<'_, K, V>) -> Result<Tree> {
        let widths = Widths { key: K::fixed_width(), value: V::fixed_width() };
        let known = self.tables.get(table.name().as_bytes()).filter(|tree| tree.widths == widths);
        let proven = match known {
            Some(tree) if tree.is_sound => Some(*tree),
            // It is what it was if it leads to a page that is what it says.
            Some(tree) => match tree.root {
                Some(root) => self
                    .page(root.page)?
                    .and_then(|page| Node::parse(page, widths, Some(root)))
                    .and_then(|(_, is_sound)| is_sound.then_some(*tree)),
                None => None,
            },
            None => None,
        };
        proven.ok_or_else(|| {
            corrupt(format!(
                "what {} holds is not to be found, since its list of tables is damaged: put a copy of the whole folder back",
                self.name.display()
            ))
        })
    }

    /// Hands out, in portions, the rows of a table in pages that can be read.
    ///
    /// # Errors
    /// `Corrupt` if the table is not to be found. `Temporary` if the file can not be read.
    pub(super) fn rows<K: Key + 'static, V: Value + 'static, T>(
        &self,
        table: TableDefinition<'_, K, V>,
        read: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>) -> Result<T>,
        mut each: impl FnMut(Vec<Result<T>>) -> Result<()>,
    ) -> Result<()> {
        let (tree, name) = (self.tree(table)?, table.name().to_owned());
        let Some(root) = tree.root else { return Ok(()) };
        let entry = |entry: Option<(&[u8], &[u8])>| {
            let (key, value) =
                entry.ok_or_else(|| corrupt(format!("a row of the table {name} is cut off")))?;
            read(K::from_bytes(key), V::from_bytes(value))
        };
        let (mut last, mut found): (Option<Vec<u8>>, u64) = (None, 0);
        let (mut portion, mut is_branch_lost) = (Vec::new(), false);
        self.walk(root, tree.widths, &mut |met| {
            let (page, leaf, is_sound) = match met {
                Met::Branch(_) => return Ok(()),
                Met::Lost(page) => {
                    is_branch_lost = true;
                    self.tell(page, &name);
                    return Ok(());
                }
                Met::Leaf(page, leaf, is_sound) => (page, leaf, is_sound),
            };
            if !is_sound {
                self.tell(page, &name);
            }
            for octets in leaf.entries() {
                let row = entry(octets);
                if let (Ok(_), Some((key, _))) = (&row, octets) {
                    // A page that is not the one that was written may have rows of other times. The key of a damaged row
                    // may be what is damaged.
                    if last.as_deref().is_some_and(|last| K::compare(last, key).is_ge()) {
                        portion
                            .push(Err(corrupt(format!("rows of the table {name} do not follow each other"))));
                        continue;
                    }
                    (last, found) = (Some(key.to_vec()), found + 1);
                }
                portion.push(row);
            }
            if portion.len() >= PORTION { each(std::mem::take(&mut portion)) } else { Ok(()) }
        })?;
        if is_branch_lost && tree.is_sound {
            let leaves = self.unled(&tree, |leaf| leaf.entries().any(|octets| entry(octets).is_ok()))?;
            let sound = |leaf: &Leaf| leaf.entries().filter(|octets| entry(*octets).is_ok()).count() as u64;
            let more: u64 = leaves.iter().map(sound).sum();
            // More than there are would be rows of other times.
            if found.saturating_add(more) <= tree.length {
                found += more;
                for leaf in leaves {
                    each(leaf.entries().map(entry).collect())?;
                }
            }
        }
        if found < tree.length && tree.is_sound {
            let (lost, of) = (tree.length - found, tree.length);
            self.damage.tell(corrupt(format!("{lost} of the {of} rows of the table {name} are lost")));
        }
        each(portion)
    }

    /// Leaves of a table that no sound page leads to, and that are in use all the same.
    fn unled(&self, tree: &Tree, is_of: impl Fn(&Leaf) -> bool) -> Result<Vec<Leaf>> {
        let pages = match self.unled.get() {
            Some(pages) => pages,
            None => {
                let found = freed::unled(self)?.unwrap_or_default();
                self.unled.get_or_init(|| found)
            }
        };
        let (mut leaves, mut end) = (Vec::new(), 0);
        for at in pages {
            if *at < end {
                continue;
            }
            let Some(page) = self.read(*at, PAGE)? else { continue };
            // Of one that is larger, the first page says how large.
            let octets = Leaf::extent(&page, tree.widths).unwrap_or_default().next_multiple_of(PAGE);
            let is_unled = |page: u64| pages.binary_search(&page).is_ok();
            let is_whole =
                octets > 0 && (0..octets / PAGE).all(|nth| is_unled(at.saturating_add(nth * PAGE)));
            let read = if is_whole { self.read(*at, octets)? } else { None };
            if let Some((Node::Leaf(leaf), _)) = read.and_then(|page| Node::parse(page, tree.widths, None))
                && is_of(&leaf)
            {
                end = at.saturating_add(octets);
                leaves.push(leaf);
            }
        }
        Ok(leaves)
    }

    fn tell(&self, page: u64, table: &str) {
        let (at, name) = (self.place(page).0, self.name.display());
        self.damage
            .tell(corrupt(format!("the page at octet {at} of {name}, of the table {table}, is damaged")));
    }
}

impl Tree {
    pub(super) fn parse(row: &[u8], is_sound: bool) -> Option<Self> {
        // Type, rows, then the root and whether there is one, and both widths with whether they are fixed.
        let (length, has_root) = (number_at(row, 1)?, *row.get(9)? != 0);
        let root = if has_root { Some(Child::parse(row.get(10..)?)?) } else { None };
        let width = |at: usize| {
            let width =
                row.get(at + 1..)?.first_chunk().map(|octets| u32::from_le_bytes(*octets) as usize)?;
            Some((*row.get(at)? != 0).then_some(width))
        };
        let widths = Widths { key: width(42)?, value: width(47)? };
        Some(Self { root, length, widths, is_sound })
    }

    /// Its root and widths, if it has any pages.
    pub(super) fn begin(&self) -> Option<(Child, Widths)> {
        Some((self.root?, self.widths))
    }
}
