//! Verifying a store without changing it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::{Builder, Database, ReadableDatabase, ReadableTableMetadata};

use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::order::OrderKey;
use crate::storage::rows::{ItemRow, MessageRow, Met, Result, Rows};
use crate::storage::{Envelope, ItemId, Lane, OutboxPosition, Recipient, StorageError, StorageErrorKind};

use super::codec::Location;
use super::damage::guarded;
use super::error::{self, db};
use super::files::{Mode, OpenFile};
use super::open::{self, METADATA, UNFINISHED};
use super::overlay::Overlay;
use super::segment::{self, Bodies, RECORD_HEADER};
use super::tables::{self, Reading, Tables};
use super::{DiskOptions, rebuild};

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

pub(super) fn run(
    path: &Path,
    options: &DiskOptions,
    visit: &mut dyn FnMut(StoredMessage),
) -> Result<CheckReport> {
    let name = path.join(METADATA);
    let files = &*options.files;
    let opening = |error| error::io("opening", &name, error);
    let unfinished = open::is_there(files, &path.join(UNFINISHED)).map_err(opening)?;
    if unfinished || !open::is_there(files, &name).map_err(opening)? {
        let message = format!("there is no store in {}", path.display());
        return Err(StorageError::new(StorageErrorKind::NotFound, message));
    }
    let _lock = open::locked(path, files)?;
    let file = files.open(&name, Mode::Read).map_err(opening)?;
    let mut report = CheckReport { octets: file.length().unwrap_or_default(), ..CheckReport::default() };
    let folder = path.join("bodies");
    let body_files = match files.list(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.tell(folder.display(), "the folder of bodies is missing");
            BTreeMap::new()
        }
        _ => {
            let aside = segment::aside(files, &folder)?;
            (report.set_aside_files, report.set_aside_octets) = (aside.files, aside.octets);
            open::body_files(files, &folder)?
        }
    };
    report.body_files = body_files.len() as u64;
    report.octets = report.octets.saturating_add(body_files.values().sum());
    let mut reading =
        Checking { bodies: Bodies::new(options.files.clone(), folder), body_files, report, visit };
    if let Some(database) = reading.verified(&file, options.cache_size) {
        reading.rows(database)?;
    } else {
        let opened = guarded(METADATA, || {
            let opened = rebuild::read_only(file, options.cache_size).map_err(opening)?;
            opened.map_err(db)
        });
        if let Some(database) = reading.report.told(METADATA, opened) {
            reading.rows(database)?;
        }
    }
    Ok(reading.report)
}

/// What is checked, and what was found.
struct Checking<'v> {
    bodies: Bodies,
    body_files: BTreeMap<u64, u64>,
    report: CheckReport,
    visit: &'v mut dyn FnMut(StoredMessage),
}

impl Checking<'_> {
    /// The metadata as opening finds it. `None`: it can only be read as opening reads it to write it anew.
    fn verified(&mut self, file: &Arc<dyn OpenFile>, cache_size: usize) -> Option<Database> {
        let open = || {
            let backend = Overlay::new(file.clone());
            guarded(METADATA, || {
                Builder::new().set_cache_size(cache_size).create_with_backend(backend).map_err(db)
            })
        };
        let opened = open().and_then(|mut database| {
            match guarded(METADATA, || Ok(database.check_integrity())) {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => self.report.tell(METADATA, "its pages do not agree with each other"),
                Ok(Err(error)) => self
                    .report
                    .tell(METADATA, format_args!("its pages are not as they were written: {error}")),
                Err(error) => self.report.tell(METADATA, error),
            }
            self.report.told(METADATA, close(database));
            // Anew: after an error it refuses all.
            open()
        });
        opened.map_err(|error| self.report.tell(METADATA, format_args!("it is damaged: {error}"))).ok()
    }

    /// # Errors
    /// It is of another version.
    fn rows(&mut self, database: impl ReadableDatabase) -> Result<()> {
        let read = guarded(METADATA, || self.each_row(&database));
        self.report.told(METADATA, close(database));
        read.unwrap_or_else(|error| {
            self.report
                .tell(METADATA, format_args!("it is damaged, and what it holds is not found: {error}"));
            Ok(())
        })
    }

    fn each_row(&mut self, database: &impl ReadableDatabase) -> Met<()> {
        let Self { bodies, body_files, report, visit } = self;
        let transaction = database.begin_read().map_err(db)?;
        let meta = transaction.open_table(tables::META).map_err(db)?;
        let has_format = match open::check_format(&meta)? {
            Ok(has_format) => has_format,
            Err(refused) => return Ok(Err(refused)),
        };
        let (numbers, pairing) = (open::counters(&meta), open::pairing(&meta));
        if report.told(METADATA, numbers).is_some_and(|numbers| numbers.is_none()) || !has_format {
            report.tell(METADATA, "its format version or its row of counters is lost");
        }
        let pairing = report.told(METADATA, pairing);
        if pairing == Some(None) {
            report.tell(METADATA, "its row about body files is lost");
        }
        let rows = Tables::open(&transaction, Arc::default())?;
        if let Some(pairing) = pairing.flatten()
            && let Err(error) = pairing.verify(bodies, body_files)
        {
            report.tell("body files", error);
        }
        let mut check = Check { rows, bodies, report, alive: BTreeMap::new(), parts: 0, keys: 0 };
        check.table("messages", |check| check.messages(*visit));
        check.table("items", Check::items);
        check.table("the order", Check::order);
        check.table("lanes", Check::lanes);
        check.table("body files", |check| check.segments(body_files));
        check.table("state rows", Check::state);
        check.table("outbox", Check::outbox);
        check.table("finished messages", Check::finished);
        Ok(Ok(()))
    }
}

/// Over damaged pages redb can panic while it closes a file, too.
fn close(database: impl ReadableDatabase) -> Result<()> {
    guarded(METADATA, || {
        drop(database);
        Ok(())
    })
}

struct Check<'r> {
    rows: Tables<Reading>,
    bodies: &'r Bodies,
    report: &'r mut CheckReport,
    /// What is alive in each body file, counted here.
    alive: BTreeMap<u64, (u64, u64)>,
    parts: u64,
    keys: u64,
}

impl Check<'_> {
    /// A table that can not be read to its end is told, and the others are checked all the same.
    fn table(&mut self, place: &str, check: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(error) = guarded(place, || check(self)) {
            self.report.tell(place, error);
        }
    }

    fn messages(&mut self, visit: &mut dyn FnMut(StoredMessage)) -> Result<()> {
        let mut ids = Vec::new();
        let read = guarded("messages", || {
            for entry in self.rows.messages()? {
                ids.push(entry?.0);
            }
            Ok(())
        });
        for id in ids {
            self.report.messages += 1;
            let place = format!("message {id}");
            let row = self.rows.message(id);
            let Some(row) = self.report.told(&place, row).flatten() else { continue };
            self.body(id, &place, row.body);
            let mut items = Vec::new();
            let mut envelope = None;
            for item in self.items_of(id, &row)? {
                let read = self.rows.item(item);
                match read {
                    Ok(Some(read)) => {
                        let lane = self.rows.lane(read.lane).ok().flatten();
                        let ItemRow { due, recipients, .. } = read;
                        items.push(StoredItem { id: item, lane, due, recipients });
                        envelope = Some(read.envelope);
                    }
                    Ok(None) => self.report.tell(&place, format_args!("its item {} is not there", item.0)),
                    // Told with the items.
                    Err(_) => {}
                }
            }
            if let Some(envelope) = envelope {
                visit(StoredMessage { envelope, items });
            }
        }
        read
    }

    fn body(&mut self, id: MessageId, place: &str, body: Location) {
        let alive = self.alive.entry(body.segment).or_default();
        *alive = (alive.0.saturating_add(u64::from(body.length)), alive.1.saturating_add(1));
        match self.bodies.read(id, body) {
            Ok(Some(_)) => {}
            Ok(None) => {
                self.report.tell(place, format_args!("its body file {:016x} is missing", body.segment))
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
                Ok(Some(message)) if message.sole.map_or(is_part, |sole| sole == item) => {}
                Ok(_) => self.report.tell(&place, format_args!("message {} does not list it", head.message)),
                // Told with the message.
                Err(_) => {}
            }
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
            if counted != told {
                let damage = format!(
                    "{} bodies of {} octets are alive in it, its row says {} of {}",
                    counted.1, counted.0, told.1, told.0
                );
                self.report.tell(&place, damage);
            }
            let needs = counted.0.saturating_add(counted.1.saturating_mul(RECORD_HEADER as u64));
            if files.get(&segment).is_some_and(|size| *size < needs) {
                self.report.tell(&place, "it is shorter than what is alive in it");
            }
            // One in which nothing is alive may be what a crash left.
            if files.contains_key(&segment) && counted.1 > 0 && self.bodies.store_of(segment).is_none() {
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
