//! Metadata with damaged pages is written anew, from the rows of it that can be read.
//!
//! Rows have checksums of their own, and what is in the order, in the parts and about body files follows from items and
//! messages. So a damaged page costs the mail whose items lie in it and cannot be read, whatever else it is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Builder, ConcurrencyMode, Database, Key, ReadOnlyDatabase, ReadOnlyTable, ReadableDatabase, Value,
    WriteTransaction,
};

use crate::message::MessageId;
use crate::storage::order::LaneId;
use crate::storage::rows::{Counters, ItemRow, MessageRow, Met, Result, Rows, RowsMut};
use crate::storage::{ItemId, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError, StorageErrorKind};

use super::DiskOptions;
use super::backend::MetadataFile;
use super::codec::{self, Location};
use super::damage::{self, Damage, guarded};
use super::error::{self, corrupt, db};
use super::files::{FileSystem, Mode, OpenFile};
use super::open::{self, METADATA};
use super::overlay::Overlay;
use super::pairing::Pairing;
use super::reserve::Reserve;
use super::segment::{Bodies, FILE_HEADER, SegmentWriter};
use super::table_writer::Writer;
use super::tables::{self, META, Reading, Tables};

/// The new file while it is written.
pub(super) const REBUILDING: &str = "metadata.rebuilding";
/// The new file once it is whole, until it takes the place of the old one.
pub(super) const REBUILT: &str = "metadata.rebuilt";
/// What the damaged file is called afterwards. It is not read again.
pub(super) const DAMAGED: &str = "metadata.damaged";
/// No row takes less.
const LEAST_ROW: u64 = 8;
/// Rows written in one transaction.
const PORTION: usize = 16 * 1024;
/// No body file has this number: who is there has no body.
const NOWHERE: Location = Location { segment: 0, offset: 0, length: 0 };

/// Ends a rebuild that was cut off: the old file goes only once the new one is whole. One that is not whole goes.
pub(super) fn finish(path: &Path, files: &dyn FileSystem) -> Result<()> {
    let [name, rebuilding, rebuilt] = [METADATA, REBUILDING, REBUILT].map(|name| path.join(name));
    let finish = || {
        if open::is_there(files, &rebuilding)? {
            files.remove(&rebuilding)?;
        }
        if !open::is_there(files, &rebuilt)? {
            return Ok(());
        }
        if open::is_there(files, &name)? {
            files.remove(&rebuilt)?;
        } else {
            files.rename(&rebuilt, &name)?;
        }
        files.sync_folder(path)
    };
    finish().map_err(|error| error::io("renaming", &rebuilt, error))
}

/// Writes the metadata file of the store in `path` anew over `why`. The damaged file is kept beside it.
///
/// Takes memory in proportion to the items stored, some dozen octets each.
///
/// # Errors
/// `Corrupt` if nothing of it can be read, one of its tables is not to be found, it is of another version, or the bodies are
/// not those of it. After an error the old file is as it was.
pub(super) fn rebuild(
    path: &Path,
    options: &DiskOptions,
    reserve: Arc<Reserve>,
    damage: &Arc<Damage>,
    why: &StorageError,
) -> Result<()> {
    let [name, rebuilding, rebuilt] = [METADATA, REBUILDING, REBUILT].map(|name| path.join(name));
    let files = &*options.files;
    let source = Source::new(path, options, damage.clone())?;
    let unreadable = |error: StorageError| {
        let met = corrupt(format!("{why}; reading what is left of it: {error}"));
        damage::unreadable(&name, met.with_source(error))
    };
    guarded(METADATA, || source.check_format()).map_err(unreadable)??;
    let folder = path.join("bodies");
    let (bodies, body_files) =
        (Bodies::new(options.files.clone(), folder.clone()), open::body_files(files, &folder)?);
    let pairing = match guarded(METADATA, || source.pairing()) {
        Ok(Some(pairing)) => pairing.verify(&bodies, &body_files).map(|()| pairing)?,
        _ => Pairing::derive(&bodies, &body_files, files.draw())?,
    };
    let creating = |error| error::io("creating", &rebuilding, error);
    let file = files.open(&rebuilding, Mode::Fresh).map_err(creating)?;
    let backend = MetadataFile::new(file.clone(), reserve);
    let database =
        Builder::new().set_cache_size(options.cache_size).create_with_backend(backend).map_err(db)?;
    let target = Target {
        database,
        // Bodies stay where they are.
        no_bodies: SegmentWriter::new(folder, options, BTreeMap::new(), pairing, Arc::default()),
        damage: damage.clone(),
    };
    let mut copy = Copy {
        source,
        target,
        counters: Counters::default(),
        items: BTreeMap::new(),
        messages: 0,
        losers: 0,
    };
    copy.run(&bodies, &body_files)?;
    let (messages, losers) = (copy.messages, copy.losers);
    drop(copy);
    file.sync().map_err(|error| error::flush("flushing metadata", error))?;
    let replace = || {
        files.rename(&rebuilding, &rebuilt)?;
        files.sync_folder(path)?;
        files.rename(&name, &path.join(DAMAGED))?;
        files.rename(&rebuilt, &name)?;
        files.sync_folder(path)
    };
    replace().map_err(|error| error::io("renaming", &rebuilt, error))?;
    damage.tell(corrupt(format!(
        "{} was damaged and is written anew from what can be read of it: {messages} messages are kept, {losers} have \
         lost recipients or their bodies. The damaged file is kept as {DAMAGED}, and no body file of now is deleted. What was \
         met: {why}",
        name.display()
    )));
    Ok(())
}

/// Opens a damaged file as a reader beside a writer does: without what only writing needs, which may be what is damaged.
pub(super) fn read_only(
    file: Arc<dyn OpenFile>,
    cache_size: usize,
) -> io::Result<std::result::Result<ReadOnlyDatabase, redb::DatabaseError>> {
    let mut builder = Builder::new();
    builder.set_cache_size(cache_size).set_concurrency_mode(ConcurrencyMode::SingleWriter);
    Ok(builder.open_read_only_with_backend(Overlay::new(file).closed()?))
}

/// The damaged file.
struct Source {
    name: PathBuf,
    file: Arc<dyn OpenFile>,
    cache_size: usize,
    damage: Arc<Damage>,
}

impl Source {
    fn new(path: &Path, options: &DiskOptions, damage: Arc<Damage>) -> Result<Self> {
        let name = path.join(METADATA);
        let file = options.files.open(&name, Mode::Read);
        let file = file.map_err(|error| error::io("opening", &name, error))?;
        Ok(Self { name, file, cache_size: options.cache_size, damage })
    }

    /// Opened without verifying, which is known to fail, and anew for each walk: after some failures nothing more can be
    /// read.
    fn open(&self) -> Result<ReadOnlyDatabase> {
        let opened = read_only(self.file.clone(), self.cache_size);
        opened.map_err(|error| error::io("reading", &self.name, error))?.map_err(db)
    }

    fn check_format(&self) -> Met<bool> {
        let database = self.open()?;
        let transaction = database.begin_read().map_err(db)?;
        open::check_format(&transaction.open_table(META).map_err(db)?)
    }

    fn pairing(&self) -> Result<Option<Pairing>> {
        let database = self.open()?;
        let transaction = database.begin_read().map_err(db)?;
        open::pairing(&transaction.open_table(META).map_err(db)?)
    }

    fn counters(&self) -> Result<Option<Counters>> {
        let database = self.open()?;
        let transaction = database.begin_read().map_err(db)?;
        open::counters(&transaction.open_table(META).map_err(db)?)
    }

    /// Hands out, in portions, the rows of a table that can be reached: from the first on up to a page that can not be
    /// read, then from the last on back to one.
    fn rows<K: Key + 'static, V: Value + 'static, T>(
        &self,
        table: impl Fn(&Tables<Reading>) -> &ReadOnlyTable<K, V>,
        read: impl for<'a> Fn(K::SelfType<'a>, V::SelfType<'a>) -> Result<T>,
        mut each: impl FnMut(Vec<Result<T>>) -> Result<()>,
    ) -> Result<()> {
        let (mut front, mut back): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
        let mut most = self.file.length().unwrap_or_default() / LEAST_ROW;
        for backwards in [false, true] {
            let begin = || {
                let database = self.open()?;
                let tables = Tables::open(&database.begin_read().map_err(db)?, self.damage.clone())?;
                Ok((database, tables))
            };
            // What is not to be found is not empty: nothing of it is given up.
            let (_database, tables) = guarded(self.name.display(), begin).map_err(open::as_damage).map_err(|error| {
                if error.kind() != StorageErrorKind::Corrupt {
                    return error;
                }
                let name = self.name.display();
                corrupt(format!(
                    "what {name} holds is not to be found, since its list of tables is damaged: put a copy of the whole folder \
                     back ({error})"
                ))
            })?;
            let range = || table(&tables).range::<K::SelfType<'_>>(..).map_err(db);
            let mut range = match guarded(self.name.display(), range) {
                Ok(range) => range,
                Err(damage) => {
                    self.damage.tell(damage);
                    return Ok(());
                }
            };
            let mut next = || {
                let entry = if backwards { range.next_back() } else { range.next() };
                let Some((key, value)) = entry.transpose().map_err(db)? else { return Ok(None) };
                let row = read(key.value(), value.value());
                let octets = K::as_bytes(&key.value()).as_ref().to_vec();
                // A page that leads elsewhere or back would have rows twice, or no end. The key of a damaged row may
                // be what is damaged.
                let follows = row.is_err()
                    || front.as_deref().is_none_or(|met| K::compare(met, &octets).is_lt())
                        && back.as_deref().is_none_or(|met| K::compare(met, &octets).is_gt());
                most = most.saturating_sub(1);
                if !follows || most == 0 {
                    return Err(corrupt("rows of the metadata do not follow each other"));
                }
                if row.is_ok() {
                    *(if backwards { &mut back } else { &mut front }) = Some(octets);
                }
                Ok(Some(row))
            };
            let mut end = None;
            while end.is_none() {
                let mut portion = Vec::new();
                while portion.len() < PORTION && end.is_none() {
                    match guarded(self.name.display(), &mut next) {
                        Ok(Some(row)) => portion.push(row),
                        Ok(None) => end = Some(None),
                        Err(damage) => end = Some(Some(damage)),
                    }
                }
                each(portion)?;
            }
            match end.flatten() {
                None => break,
                Some(damage) => self.damage.tell(damage),
            }
        }
        Ok(())
    }
}

/// The new file.
struct Target {
    database: Database,
    no_bodies: SegmentWriter,
    damage: Arc<Damage>,
}

impl Target {
    fn write(&mut self, write: impl FnOnce(&mut Writer<'_, '_>) -> Result<()>) -> Result<()> {
        let transaction = self.database.begin_write().map_err(db)?;
        open::put_format(&transaction)?;
        let counters = Counters::default();
        let mut writer = Writer::new(&transaction, &counters, &mut self.no_bodies, self.damage.clone())?;
        write(&mut writer)?;
        writer.finish(&transaction)?;
        commit(transaction)
    }

    fn each<T>(
        &mut self,
        rows: Vec<T>,
        mut put: impl FnMut(&mut Writer<'_, '_>, T) -> Result<()>,
    ) -> Result<()> {
        self.write(|writer| rows.into_iter().try_for_each(|row| put(writer, row)))
    }
}

fn commit(transaction: WriteTransaction) -> Result<()> {
    transaction.commit().map_err(|error| error::flush("committing metadata", redb::Error::from(error)))
}

/// From the damaged file to the new one.
struct Copy {
    source: Source,
    target: Target,
    /// What was lost of them is set right by what is met.
    counters: Counters,
    /// The items of messages whose rows were not met yet.
    items: BTreeMap<MessageId, Vec<ItemId>>,
    messages: u64,
    /// Messages that have lost something.
    losers: u64,
}

impl Copy {
    fn run(&mut self, bodies: &Bodies, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let lanes = self.lanes()?;
        self.items(&lanes)?;
        self.messages(body_files)?;
        self.messages_without_row(bodies, body_files)?;
        self.state_and_outbox()?;
        self.finished()?;
        // Numbers of what is stored are never given again.
        let mut counters = Counters { openings: 1, ..self.counters.clone() };
        if let Ok(Some(found)) = guarded(METADATA, || self.source.counters()) {
            counters.next_item = counters.next_item.max(found.next_item);
            counters.next_lane = counters.next_lane.max(found.next_lane);
            counters.next_outbox = counters.next_outbox.max(found.next_outbox);
            (counters.openings, counters.generation, counters.ended) =
                (found.openings, found.generation, found.ended);
        }
        self.target.write(|writer| {
            *writer.counters() = counters;
            writer.recount();
            Ok(())
        })?;
        // Whoever opens it next must know, also if that is another process.
        let transaction = self.target.database.begin_write().map_err(db)?;
        open::put_kept(&transaction, body_files.keys().next_back().copied().unwrap_or_default())?;
        commit(transaction)
    }

    /// A lane lies under its name and under its number: one is enough.
    fn lanes(&mut self) -> Result<BTreeMap<LaneId, Lane>> {
        let mut lanes = BTreeMap::new();
        let mut keep = |portion: Vec<Result<(LaneId, Lane)>>| {
            lanes.extend(portion.into_iter().flatten());
            Ok(())
        };
        let named = |key: &[u8], row: &[u8]| tables::named_lane(key, row).map(|(lane, id)| (id, lane));
        self.source.rows(|tables| &tables.lanes, named, &mut keep)?;
        let numbered = |id: u64, row: &[u8]| Ok((id, codec::lane_from_row(id, row)?));
        self.source.rows(|tables| &tables.lane_names, numbered, &mut keep)?;
        if let Some((last, _)) = lanes.last_key_value() {
            self.counters.next_lane = last.saturating_add(1);
        }
        self.target.each(lanes.iter().collect(), |writer, (id, lane)| writer.put_lane(*id, lane))?;
        Ok(lanes)
    }

    fn items(&mut self, lanes: &BTreeMap<LaneId, Lane>) -> Result<()> {
        let Self { source, target, counters, items, .. } = self;
        let read = |item: u64, row: &[u8]| Ok((ItemId(item), codec::item_from_row(ItemId(item), row)?));
        source.rows(
            |tables| &tables.items,
            read,
            |portion: Vec<Result<(ItemId, ItemRow)>>| {
                target.each(portion, |writer, met| {
                    let Some((item, row)) = writer.readable(met)? else { return Ok(()) };
                    counters.next_item = counters.next_item.max(item.0.saturating_add(1));
                    if !lanes.contains_key(&row.lane) {
                        let damage = format!("item {}: the name of its lane {} is lost", item.0, row.lane);
                        writer.leave_aside(corrupt(damage));
                        return Ok(());
                    }
                    items.entry(row.envelope.id).or_default().push(item);
                    writer.put_item(item, &row)?;
                    row.head().place.keys(item).try_for_each(|key| writer.put_order(key))
                })
            },
        )
    }

    fn messages(&mut self, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let Self { source, target, items, messages, losers, .. } = self;
        let read = |id: &[u8; 16], row: &[u8]| {
            let id = tables::id_from(id);
            Ok((id, codec::message_from_row(id, row)?))
        };
        source.rows(
            |tables| &tables.messages,
            read,
            |portion: Vec<Result<(MessageId, MessageRow<Location>)>>| {
                target.each(portion, |writer, met| {
                    let Some((id, row)) = writer.readable(met)? else { return Ok(()) };
                    let there = items.remove(&id).unwrap_or_default();
                    *messages += u64::from(!there.is_empty());
                    let had = row.items as usize;
                    let has_body = body_files.get(&row.body.segment).is_some_and(|size| row.body.end() <= *size);
                    *losers += u64::from(there.len() < had || !has_body && !there.is_empty());
                    if there.len() < had {
                        let lost = had - there.len();
                        writer.leave_aside(corrupt(format!(
                            "message {id} has lost {lost} of its {had} items: nothing more is known of their recipients"
                        )));
                    }
                    put_message(writer, id, row, there)
                })
            },
        )
    }

    /// Where the row of a message is lost, its body is looked for in the body files, among those that nothing leads to.
    fn messages_without_row(&mut self, bodies: &Bodies, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let lost = std::mem::take(&mut self.items);
        if lost.is_empty() {
            return Ok(());
        }
        let mut found = BTreeMap::new();
        for (segment, size) in body_files {
            for (offset, header) in bodies.records(*segment, FILE_HEADER, *size).map_while(Result::ok) {
                if lost.contains_key(&header.id) {
                    found.insert(header.id, Location { segment: *segment, offset, length: header.length });
                }
            }
        }
        self.messages += lost.len() as u64;
        let losers = &mut self.losers;
        self.target.each(lost.into_iter().collect(), |writer, (id, items)| {
            let body = found.get(&id).copied();
            if body.is_none() {
                *losers += 1;
                writer
                    .leave_aside(corrupt(format!("message {id} has lost its body: its record is not found")));
            }
            // Whose id it was is lost too: remembering it for nothing costs little.
            let row = MessageRow { body: body.unwrap_or(NOWHERE), items: 0, host_id: true, sole: None };
            put_message(writer, id, row, items)
        })
    }

    fn state_and_outbox(&mut self) -> Result<()> {
        let Self { source, target, counters, .. } = self;
        let read = |key: &[u8], row: &[u8]| {
            let value = codec::raw_value(format_args!("the state row {}", key.escape_ascii()), key, row)?;
            Ok(StateRow { key: key.to_vec(), value: value.to_vec() })
        };
        source.rows(
            |tables| &tables.state,
            read,
            |portion: Vec<Result<StateRow>>| {
                target.each(portion, |writer, met| match writer.readable(met)? {
                    Some(row) => writer.put_state(&row),
                    None => Ok(()),
                })
            },
        )?;
        let read = |position: u64, row: &[u8]| codec::outbox_from_row(OutboxPosition(position), row);
        source.rows(
            |tables| &tables.outbox,
            read,
            |portion: Vec<Result<OutboxEntry>>| {
                target.each(portion, |writer, met| {
                    let Some(entry) = writer.readable(met)? else { return Ok(()) };
                    counters.next_outbox = counters.next_outbox.max(entry.position.0.saturating_add(1));
                    writer.put_outbox(entry.position, entry.event, &entry.payload)
                })
            },
        )
    }

    fn finished(&mut self) -> Result<()> {
        let Self { source, target, counters, .. } = self;
        source.rows(
            |tables| &tables.finished,
            |id: &[u8; 16], row: (u64, u32)| {
                let id = tables::id_from(id);
                Ok((id, codec::generation_from_row(id, row)?))
            },
            |portion: Vec<Result<(MessageId, u64)>>| {
                target.each(portion, |writer, met| {
                    let Some((id, generation)) = writer.readable(met)? else { return Ok(()) };
                    counters.generation = counters.generation.max(generation);
                    writer.put_finished(id, generation)
                })
            },
        )
    }
}

/// Puts a message with the items that are there; none is none.
fn put_message(
    writer: &mut Writer<'_, '_>,
    id: MessageId,
    mut row: MessageRow<Location>,
    items: Vec<ItemId>,
) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    row.items = u32::try_from(items.len()).unwrap_or(u32::MAX);
    row.sole = row.sole.filter(|sole| items == [*sole]);
    if row.sole.is_none() {
        items.into_iter().try_for_each(|item| writer.put_part(id, item))?;
    }
    writer.put_message(id, &row)
}
