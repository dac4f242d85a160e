//! Verifying a store without changing it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use redb::ReadableTableMetadata;

use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::order::OrderKey;
use crate::storage::rows::{ItemRow, MessageRow, Result, Rows};
use crate::storage::{Envelope, ItemId, Lane, OutboxPosition, Recipient, StorageError, StorageErrorKind};

use super::codec::{Alive, Location};
use super::damage::guarded;
use super::error::{self, db};
use super::files::Mode;
use super::open::{self, BODIES, Folder, METADATA};
use super::overlay::Overlay;
use super::segment::Bodies;
use super::tables::{self, Reading, Tables};
use super::unflushed::UNFLUSHED;
use super::{DiskOptions, Shared, aside, replace};

/// Problems that are told one by one; the others are counted.
const MOST_TOLD: usize = 100;

/// What [`DiskStorage::check`](super::DiskStorage::check) found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// Messages.
    pub messages: u64,
    /// Items: recipients of one message that go together.
    pub items: u64,
    /// Recipients that are left.
    pub recipients: u64,
    /// Outbox entries.
    pub outbox: u64,
    /// State rows.
    pub state_rows: u64,
    /// Body files.
    pub body_files: u64,
    /// Octets taken by metadata and body files.
    pub octets: u64,
    /// Body files that were set aside over damage that is mended: what led to bodies in them may be lost. They are not read
    /// and never deleted: that is left to you.
    pub set_aside_files: u64,
    /// Octets taken by these.
    pub set_aside_octets: u64,
    /// A flush has failed and the store was not opened since: what this check has read need not be on disk. The next opening
    /// writes it again.
    pub unflushed: bool,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first hundred of them.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn tell(&mut self, place: impl fmt::Display, damage: impl fmt::Display) {
        self.problem_count += 1;
        if self.problems.len() < MOST_TOLD {
            self.problems.push(Problem { place: place.to_string(), damage: damage.to_string() });
        }
    }

    /// What could be read; else the problem is told.
    fn told<T>(&mut self, place: impl fmt::Display, read: Result<T>) -> Option<T> {
        read.map_err(|error| self.tell(place, error)).ok()
    }
}

/// Damage to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Where it is.
    pub place: String,
    /// What it is.
    pub damage: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.damage)
    }
}

/// A message as it is stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredMessage {
    /// What its items share.
    pub envelope: Arc<Envelope>,
    /// Its items that can be read, in order of their ids.
    pub items: Vec<StoredItem>,
}

/// An item as it is stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredItem {
    /// Its key.
    pub id: ItemId,
    /// Where it lies; `None` if that row is damaged.
    pub lane: Option<Lane>,
    /// When it is due.
    pub due: Timestamp,
    /// Who is left.
    pub recipients: Vec<Recipient>,
}

/// Opens the store as [`DiskStorage::open`](super::DiskStorage::open) does, with all that is written kept in memory, and looks at
/// what is there then: it finds what an opening finds, and tells what that tells.
pub(super) fn run(
    path: &Path,
    options: &DiskOptions,
    visit: &mut dyn FnMut(StoredMessage),
) -> Result<CheckReport> {
    let files = &*options.files;
    let length = |name: &str| {
        let name = path.join(name);
        match files.open(&name, Mode::Read).and_then(|file| file.length()) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error::io("opening", &name, error)),
        }
    };
    let is_new = match open::is_new(path, files) {
        // Said by opening it, as long as nobody else has it.
        Err(error) if error.kind() == StorageErrorKind::Corrupt => false,
        is_new => is_new?,
    };
    if is_new {
        let message = format!("there is no store in {}", path.display());
        return Err(StorageError::new(StorageErrorKind::NotFound, message));
    }
    let _folder = Folder::lock(path, files)?;
    let octets = length(METADATA)?.or(length(replace::REBUILT)?);
    let unflushed = length(UNFLUSHED)?.is_some();
    let mut report = CheckReport { octets: octets.unwrap_or_default(), unflushed, ..CheckReport::default() };
    let folder = path.join(BODIES);
    let body_files = match files.list(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.tell(folder.display(), "the folder of bodies is missing");
            BTreeMap::new()
        }
        _ => {
            let aside = aside::aside(files, &folder)?;
            (report.set_aside_files, report.set_aside_octets) = (aside.files, aside.octets);
            open::body_files(files, &folder)?
        }
    };
    report.body_files = body_files.len() as u64;
    report.octets = report.octets.saturating_add(body_files.values().sum());
    let mut options = options.clone().with_reserve(0).with_verified_metadata(u64::MAX);
    options.files = Arc::new(Overlay::new(options.files));
    let shared = match Shared::open(path, &options, true) {
        Ok(opened) => opened?,
        Err(error) if error.kind() == StorageErrorKind::Corrupt => {
            report.tell(METADATA, error);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    for damage in shared.damage.take() {
        report.tell(METADATA, damage);
    }
    let mut is_broken = false;
    let mut panicked = None;
    // A panic while pages are read is damage; one of the visitor is the visitor's.
    let mut visit = |message| {
        if panicked.is_none() {
            panicked = catch_unwind(AssertUnwindSafe(|| visit(message))).err();
        }
    };
    let read = guarded(METADATA, || {
        shared.with_database(|rows| {
            is_broken = Check::new(rows, &shared.bodies, &mut report, &mut visit).run(&body_files);
            Ok(())
        })
    });
    if let Err(error) = read {
        is_broken = true;
        report.tell(METADATA, format_args!("it is damaged, and what it holds is not found: {error}"));
    }
    if is_broken {
        // Over damaged pages redb can panic as it is dropped, and again while that unwinds, which would end the process. What
        // stays is one cache and what was written over the file, once for each such check.
        std::mem::forget(shared);
    }
    panicked.map_or(Ok(report), |panicked| resume_unwind(panicked))
}

struct Check<'r> {
    rows: &'r Tables<Reading>,
    bodies: &'r Bodies,
    report: &'r mut CheckReport,
    visit: &'r mut dyn FnMut(StoredMessage),
    /// What is alive in each body file, counted here.
    alive: BTreeMap<u64, Alive>,
    parts: u64,
    keys: u64,
    /// Items that no message lists.
    unlisted: BTreeMap<MessageId, Vec<ItemId>>,
    /// A table can not be read to its end.
    is_broken: bool,
}

impl<'r> Check<'r> {
    fn new(
        rows: &'r Tables<Reading>,
        bodies: &'r Bodies,
        report: &'r mut CheckReport,
        visit: &'r mut dyn FnMut(StoredMessage),
    ) -> Self {
        let (alive, unlisted) = (BTreeMap::new(), BTreeMap::new());
        Self { rows, bodies, report, visit, alive, parts: 0, keys: 0, unlisted, is_broken: false }
    }

    /// `true`: not all can be read.
    fn run(mut self, body_files: &BTreeMap<u64, u64>) -> bool {
        self.table("messages", Self::messages);
        self.table("items", Self::items);
        self.table("items", Self::unlisted);
        self.table("the order", Self::order);
        self.table("lanes", Self::lanes);
        self.table("body files", |check| check.segments(body_files));
        self.table("state rows", Self::state);
        self.table("outbox", Self::outbox);
        self.table("finished messages", Self::finished);
        self.is_broken
    }

    /// A table that can not be read to its end is told, and the others are checked all the same.
    fn table(&mut self, place: &str, check: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = guarded(place, || check(self)) {
            self.is_broken = true;
            self.report.tell(place, error);
        }
    }

    fn messages(&mut self) -> Result<()> {
        for entry in self.rows.messages()? {
            let (id, row) = entry?;
            self.report.messages += 1;
            let place = format!("message {id}");
            let Some(row) = self.report.told(&place, row) else { continue };
            self.body(id, &place, row.body);
            let items = self.items_of(id, &row)?;
            for missing in self.hand_out(items) {
                self.report.tell(&place, format_args!("its item {} is not there", missing.0));
            }
        }
        Ok(())
    }

    /// Items that can be read go to the visitor. Returns those that are not there; damaged ones are told elsewhere.
    fn hand_out(&mut self, ids: Vec<ItemId>) -> Vec<ItemId> {
        let (mut missing, mut items, mut envelope) = (Vec::new(), Vec::new(), None);
        for id in ids {
            match self.rows.item(id) {
                Ok(Some(ItemRow { lane, due, recipients, envelope: found })) => {
                    let lane = self.rows.lane(lane).ok().flatten();
                    items.push(StoredItem { id, lane, due, recipients });
                    envelope = Some(found);
                }
                Ok(None) => missing.push(id),
                Err(_) => {}
            }
        }
        if let Some(envelope) = envelope {
            (self.visit)(StoredMessage { envelope, items });
        }
        missing
    }

    /// Of messages whose rows are damaged or lost.
    fn unlisted(&mut self) -> Result<()> {
        for items in std::mem::take(&mut self.unlisted).into_values() {
            self.hand_out(items);
        }
        Ok(())
    }

    fn body(&mut self, id: MessageId, place: &str, body: Location) {
        self.alive.entry(body.segment).or_default().add(body);
        match self.bodies.read(id, body) {
            Ok(Some(_)) => {}
            Ok(None) => {
                let damage = format_args!("its body file {:016x} is missing or cut short", body.segment);
                self.report.tell(place, damage);
            }
            Err(error) => self.report.tell(place, error),
        }
    }

    fn items_of(&mut self, id: MessageId, row: &MessageRow<Location>) -> Result<Vec<ItemId>> {
        if let Some(sole) = row.sole {
            return Ok(vec![sole]);
        }
        let parts: Vec<ItemId> = self.rows.parts_after(id, None)?.collect::<Result<_>>()?;
        self.parts += parts.len() as u64;
        if parts.len() as u64 != u64::from(row.items) {
            let found = parts.len();
            self.report.tell(
                format_args!("message {id}"),
                format_args!("{found} items are listed of {}", row.items),
            );
        }
        Ok(parts)
    }

    fn items(&mut self) -> Result<()> {
        for entry in self.rows.items_after(None)? {
            let (item, row) = entry?;
            self.report.items += 1;
            let Some(row) = self.report.told("items", row) else { continue };
            self.report.recipients += row.recipients.len() as u64;
            let place = format!("item {}", item.0);
            let head = row.head();
            for key in head.place.keys(item) {
                self.keys += 1;
                if self.rows.order.get(&key.to_bytes()).map_err(db)?.is_none() {
                    self.report.tell(&place, "its place in the order is not there");
                }
            }
            match self.rows.lane(row.lane) {
                Ok(Some(_)) => {}
                Ok(None) => self.report.tell(&place, format_args!("its lane {} is not there", row.lane)),
                Err(error) => self.report.tell(&place, error),
            }
            let is_part = self.rows.parts.get(&tables::part_key(head.message, item)).map_err(db)?.is_some();
            match self.rows.message(head.message) {
                Ok(Some(message)) if message.sole.map_or(is_part, |sole| sole == item) => continue,
                Ok(_) => self.report.tell(&place, format_args!("message {} does not list it", head.message)),
                // Told with the message.
                Err(_) => {}
            }
            self.unlisted.entry(head.message).or_default().push(item);
        }
        Ok(())
    }

    fn order(&mut self) -> Result<()> {
        // None is missing and there are as many: then none is wrong.
        if self.rows.order.len().map_err(db)? == self.keys && self.report.is_clean() {
            return Ok(());
        }
        for entry in self.rows.order.range::<&[u8; OrderKey::OCTETS]>(..).map_err(db)? {
            let key = OrderKey::from_bytes(entry.map_err(db)?.0.value());
            let Some(key) = key else {
                self.report.tell("the order", "a key is damaged");
                continue;
            };
            let item = key.spot.1;
            // A damaged row was told with the items.
            let known = self.rows.head(item).map_or(true, |head| {
                head.is_some_and(|head| head.place.keys(item).any(|expected| expected == key))
            });
            if !known {
                self.report.tell("the order", format_args!("a key of item {} is not from its row", item.0));
            }
        }
        Ok(())
    }

    fn lanes(&mut self) -> Result<()> {
        for entry in self.rows.lanes_after(None)? {
            let Some((lane, id)) = self.report.told("lanes", entry?) else { continue };
            if self.rows.lane(id).ok().flatten().as_ref() != Some(&lane) {
                self.report
                    .tell(format_args!("lane {lane}"), format_args!("its number {id} does not name it"));
            }
        }
        for entry in self.rows.names()? {
            self.report.told("lanes", entry?.1);
        }
        if self.rows.lanes.len().map_err(db)? != self.rows.lane_names.len().map_err(db)? {
            self.report.tell("lanes", "there are not as many names as numbers");
        }
        if self.rows.parts.len().map_err(db)? != self.parts {
            self.report.tell("parts", "there are entries of no message");
        }
        Ok(())
    }

    fn segments(&mut self, files: &BTreeMap<u64, u64>) -> Result<()> {
        let mut told = BTreeMap::new();
        for (segment, alive) in self.rows.segments()? {
            told.extend(self.report.told("body files", alive).map(|alive| (segment, alive)));
        }
        let numbers: std::collections::BTreeSet<u64> =
            told.keys().chain(self.alive.keys()).copied().collect();
        for segment in numbers {
            let counted = self.alive.get(&segment).copied().unwrap_or_default();
            let told = told.get(&segment).copied().unwrap_or_default();
            let place = format!("body file {segment:016x}");
            if (counted.octets, counted.records) != (told.octets, told.records) || counted.end > told.end {
                let damage = format!(
                    "{} bodies of {} octets up to octet {} are alive in it, its row says {} of {} up to {}",
                    counted.records, counted.octets, counted.end, told.records, told.octets, told.end
                );
                self.report.tell(&place, damage);
            }
            // One in which nothing is alive may be what a crash left.
            if files.contains_key(&segment) && counted.records > 0 && self.bodies.store_of(segment).is_none()
            {
                self.report.tell(&place, "its header is damaged");
            }
        }
        Ok(())
    }

    fn state(&mut self) -> Result<()> {
        for entry in self.rows.state_after(None)? {
            let row = entry?;
            self.report.state_rows += 1;
            self.report.told("state rows", row);
        }
        Ok(())
    }

    fn outbox(&mut self) -> Result<()> {
        for entry in self.rows.outbox_after(OutboxPosition::default())? {
            let (_, entry) = entry?;
            self.report.outbox += 1;
            self.report.told("outbox", entry);
        }
        Ok(())
    }

    fn finished(&mut self) -> Result<()> {
        for entry in self.rows.finished_after(None)? {
            self.report.told("finished messages", entry?.1);
        }
        Ok(())
    }
}
