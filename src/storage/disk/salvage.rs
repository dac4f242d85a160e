//! What is left of a damaged metadata file, read page by page and without redb.
//!
//! The file is trees of pages (`docs/design.md` of redb, format version 3). A commit slot of its header has the place and the
//! checksum of the list of tables, that of each table's root, and each branch page those of the pages below it. So what a
//! sound page leads to is what was committed last, and a page is left out only if itself is damaged.
//!
//! A damaged page may also be what stood there before, where a write was lost, or another page, where one went astray. Its rows are
//! whole then, and of another time or place. How far they count is said in `gather`.

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
use super::node::{Child, Node, Widths, number_at};
use super::walk::Met;

pub(super) const PAGE: u64 = 4096;
/// The header with both commit slots.
const HEADER: usize = 320;
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const SLOTS: [usize; 2] = [64, 192];
const SLOT: usize = 128;
const FORMAT_VERSION: u8 = 3;
/// redb has no larger pages.
const LARGEST_ORDER: u64 = 20;
/// More of a page is not read, whatever it says of itself.
const MOST_READ: u64 = 256 * 1024 * 1024;

/// A damaged metadata file.
pub(super) struct Salvage {
    pub(super) name: PathBuf,
    file: Arc<dyn OpenFile>,
    pub(super) damage: Arc<Damage>,
    /// In pages: what comes first in each region, and the rest of it.
    region: (u64, u64),
    /// The number of the last commit.
    pub(super) commit: u64,
    tables: BTreeMap<Vec<u8>, Tree>,
    pub(super) system: Option<Child>,
    in_use: OnceCell<Option<Vec<u64>>>,
    unled: OnceCell<Option<Vec<u64>>>,
}

/// A table as its list has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    pub(super) root: Option<Child>,
    /// How many rows it has.
    pub(super) length: u64,
    /// Fixed widths of keys and values.
    pub(super) widths: Widths,
    /// The list is sound where it says so.
    pub(super) is_sound: bool,
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
            in_use: OnceCell::new(),
            unled: OnceCell::new(),
        };
        salvage.tables = slot.user.map_or(Ok(BTreeMap::new()), |root| salvage.list(root))?;
        Ok(salvage)
    }

    /// What a list of tables says. Damaged pages of it are read for what they are worth.
    pub(super) fn list(&self, root: Child) -> Result<BTreeMap<Vec<u8>, Tree>> {
        let mut tables = BTreeMap::new();
        self.walk(root, Widths::VARIABLE, &mut |met| {
            let (leaf, is_sound) = match met {
                Met::Leaf(_, leaf) => (leaf, true),
                Met::Damaged(_, _, Some(leaf)) => (leaf, false),
                _ => return Ok(()),
            };
            for (name, row) in leaf.entries().flatten() {
                tables.extend(Tree::parse(row, is_sound).map(|tree| (name.to_vec(), tree)));
            }
            Ok(())
        })?;
        Ok(tables)
    }

    /// A page, as far as it says that it goes. `None`: the file has none there.
    pub(super) fn page(&self, number: u64, widths: Widths) -> Result<Option<Vec<u8>>> {
        if number >> 59 > LARGEST_ORDER {
            return Ok(None);
        }
        let (at, pages) = self.place(number);
        self.page_at(at, pages.saturating_mul(PAGE), widths)
    }

    /// As [`Salvage::page`], with the place and the size that it has at the most.
    pub(super) fn page_at(&self, at: u64, octets: u64, widths: Widths) -> Result<Option<Vec<u8>>> {
        if at.saturating_add(octets) > self.length()? {
            return Ok(None);
        }
        let first = self.read(at, octets.min(PAGE))?;
        if octets <= PAGE {
            return Ok(first);
        }
        let Some(head) = first.as_deref().and_then(|first| Node::head(first, widths)) else {
            return Ok(first);
        };
        let head = self.read(at, octets.min((head as u64).max(PAGE)))?;
        let extent = head.as_deref().and_then(|head| Node::extent(head, widths));
        // What does not say where it ends is damaged there, and may have rows all the same.
        self.read(at, extent.filter(|extent| *extent <= octets).unwrap_or(octets).max(PAGE))
    }

    pub(super) fn length(&self) -> Result<u64> {
        self.file.length().map_err(|error| error::io("reading", &self.name, error))
    }

    pub(super) fn read(&self, at: u64, octets: u64) -> Result<Option<Vec<u8>>> {
        if octets > MOST_READ || at.saturating_add(octets) > self.length()? {
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

    /// The places of pages that are in use, in order. `None`: it is not known which they are.
    fn in_use(&self) -> Result<Option<&[u64]>> {
        let known = match self.in_use.get() {
            Some(known) => known,
            None => {
                let found = freed::in_use(self)?;
                self.in_use.get_or_init(|| found)
            }
        };
        Ok(known.as_deref())
    }

    pub(super) fn says_what_is_in_use(&self) -> Result<bool> {
        Ok(self.in_use()?.is_some())
    }

    /// The places of pages in use that nothing leads to, in order. `None`: it is not known which they are.
    pub(super) fn unled(&self) -> Result<Option<&[u64]>> {
        let known = match self.unled.get() {
            Some(known) => known,
            None => {
                let found = self.in_use()?.map(|in_use| freed::unled(self, in_use)).transpose()?.flatten();
                self.unled.get_or_init(|| found)
            }
        };
        Ok(known.as_deref())
    }

    /// What is not to be found is not empty: nothing of it is given up.
    pub(super) fn tree<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<Tree> {
        let widths = Widths { key: K::fixed_width(), value: V::fixed_width() };
        let known = self.tables.get(table.name().as_bytes()).filter(|tree| tree.widths == widths);
        let proven = match known {
            Some(tree) if tree.is_sound => Some(*tree),
            Some(tree) if self.is_proven(tree)? => Some(*tree),
            _ => None,
        };
        proven.ok_or_else(|| {
            corrupt(format!(
                "what {} holds is not to be found, since its list of tables is damaged: put a copy of the whole folder back",
                self.name.display()
            ))
        })
    }

    /// Whether each page of a table is as it was written with the last commit.
    pub(super) fn is_sound<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<bool> {
        let tree = self.tree(table)?;
        let mut is_sound = tree.is_sound;
        if let Some((root, widths)) = tree.begin() {
            self.walk(root, widths, &mut |met| {
                is_sound &= matches!(met, Met::Branch(_) | Met::Leaf(..));
                Ok(())
            })?;
        }
        Ok(is_sound)
    }

    /// A table of a damaged list is what it was if it leads to a page that is what it says, and is in use: else the list, and all of
    /// the table with it, may be of another time.
    fn is_proven(&self, tree: &Tree) -> Result<bool> {
        let Some((root, in_use)) = tree.root.zip(self.in_use()?) else { return Ok(false) };
        if in_use.binary_search(&self.place(root.page).0).is_err() {
            return Ok(false);
        }
        let page = self.page(root.page, tree.widths)?;
        let node = page.and_then(|page| Node::parse(page, tree.widths, Some(root)));
        Ok(node.is_some_and(|(_, is_sound)| is_sound))
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
