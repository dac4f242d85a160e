//! Metadata with damaged pages is written anew, from the rows of it that can be read.
//!
//! Rows have checksums of their own, and what is in the order, in the parts and about body files follows from items and
//! messages. So a damaged page costs the mail whose items lie in it and cannot be read, whatever else it is.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::{Builder, Database, WriteTransaction};

use crate::message::MessageId;
use crate::storage::order::LaneId;
use crate::storage::rows::{Counters, ItemRow, MessageRow, Met, Result, Rows, RowsMut};
use crate::storage::{ItemId, Lane, OutboxEntry, OutboxPosition, StateRow, StorageError, StorageErrorKind};

use super::DiskOptions;
use super::backend::{MetadataFile, Tracked};
use super::codec::{self, Location};
use super::damage::{self, Damage, guarded};
use super::error::{self, corrupt, db};
use super::files::{Mode, OpenFile};
use super::gather::Verdict;
use super::lost_lanes;
use super::mark::Mark;
use super::open::{self, METADATA, Meta};
use super::pairing::Pairing;
use super::replace::{self, REBUILDING};
use super::reserve::Reserve;
use super::salvage::Salvage;
use super::segment::{Bodies, FILE_HEADER, RecordHeader, SegmentWriter};
use super::table_writer::Writer;
use super::tables::{self, COUNTERS, KEPT, META, PAIRING, RECOUNT};
use super::witness::Witness;

/// No body file has this number: who is there has no body.
const NOWHERE: Location = Location { segment: 0, offset: 0, length: 0 };
/// Where it is not known which numbers were given, so many are taken for given.
const PASSED_OVER: u64 = 1 << 32;

/// Writes the metadata file of the store in `path` anew over `why`. The damaged file is kept beside it.
///
/// Takes memory in proportion to the items stored, some dozen octets each; where the root of a table is damaged, for its rows.
///
/// # Errors
/// `Corrupt` if nothing of it can be read, one of its tables is not to be found, or the bodies are not those of it; the inner
/// error if it is of another version. After an error the old file is as it was, and there is no new one.
pub(super) fn rebuild(
    path: &Path,
    options: &DiskOptions,
    (reserve, unflushed): (&Arc<Reserve>, &Arc<Mark>),
    damage: &Arc<Damage>,
    why: &StorageError,
) -> Met<()> {
    let rebuilding = path.join(REBUILDING);
    let rebuilt = guarded(METADATA, || write_anew(path, options, (reserve, unflushed), damage, why));
    if !matches!(rebuilt, Ok(Ok(()))) && open::is_there(&*options.files, &rebuilding).unwrap_or_default() {
        // Else it is told apart from one that is whole, and removed by the next opening.
        let _ = options.files.remove(&rebuilding);
    }
    rebuilt
}

fn write_anew(
    path: &Path,
    options: &DiskOptions,
    (reserve, unflushed): (&Arc<Reserve>, &Arc<Mark>),
    damage: &Arc<Damage>,
    why: &StorageError,
) -> Met<()> {
    let [name, rebuilding] = [METADATA, REBUILDING].map(|name| path.join(name));
    let files = &*options.files;
    let unreadable = |error: StorageError| {
        if error.kind() != StorageErrorKind::Corrupt {
            return error;
        }
        let met = corrupt(format!("{why}; reading what is left of it: {error}"));
        damage::unreadable(&name, met.with_source(error))
    };
    let file = files.open(&name, Mode::Read).map_err(|error| error::io("opening", &name, error))?;
    let source = Salvage::open(name.clone(), file, damage.clone()).map_err(unreadable)?;
    let meta = MetaRows::read(&source).map_err(unreadable)?;
    // Where that row is damaged, each of the others says by itself what it is.
    if let Ok(Err(refused)) = open::check_format(&meta) {
        return Ok(Err(refused));
    }
    let folder = path.join(open::BODIES);
    let body_files = open::body_files(files, &folder)?;
    let bodies = Bodies::new(options.files.clone(), folder.clone(), &body_files);
    let said = open::pairing(&meta).ok().flatten();
    let pairing = match said {
        Some(said) if meta.is_sound => {
            said.verify(&bodies, &body_files).or_else(|error| damage.refuse(error))?;
            said
        }
        _ => {
            // A row of an earlier time has the store's id too.
            let of_the_store =
                said.map_or(Ok(()), |said| said.verify_store(&bodies, body_files.keys().copied()));
            of_the_store.or_else(|error| damage.refuse(error))?;
            let store = said.map_or_else(|| files.draw(), |said| said.store);
            let derived = Pairing::derive(&bodies, &body_files, store)
                .or_else(|error| damage.refuse(error).map(|()| Pairing::new(store)))?;
            Pairing { commit: derived.commit.max(said.map_or(0, |said| said.commit)), ..derived }
        }
    };
    let creating = |error| error::io("creating", &rebuilding, error);
    let file = files.open(&rebuilding, Mode::Fresh).map_err(creating)?;
    let file = Arc::new(Tracked::new(file, unflushed.clone()).map_err(creating)?);
    let backend = MetadataFile::new(file.clone(), reserve.clone());
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
    copy.run(&meta, &bodies, &body_files)?;
    let (messages, losers) = (copy.messages, copy.losers);
    // It is flushed as it is dropped, and whether that has failed is not told: no later flush would make up for it.
    drop(copy);
    let flushed = if file.is_unflushed() { Err(io::ErrorKind::Other.into()) } else { file.sync() };
    flushed.map_err(|error| error::flush("flushing the metadata that was written anew", error))?;
    let kept = replace::replace(path, files)?;
    damage.tell(corrupt(format!(
        "{} was damaged and is written anew from what can be read of it: {messages} messages are kept, {losers} have \
         lost recipients or their bodies. The damaged file is kept as {kept}, and no body file of now is deleted. What was \
         met: {why}",
        name.display()
    )));
    Ok(Ok(()))
}

/// Its rows about the store as a whole.
struct MetaRows {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Else they may be of an earlier time.
    is_sound: bool,
}

impl Meta for MetaRows {
    fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.rows.get(key).cloned())
    }
}

impl MetaRows {
    fn read(source: &Salvage) -> Result<Self> {
        let mut rows = BTreeMap::new();
        let read = |key: &[u8], row: &[u8]| match [open::FORMAT_KEY, COUNTERS, PAIRING, RECOUNT, KEPT]
            .contains(&key)
        {
            true => Ok((key.to_vec(), row.to_vec())),
            false => Err(corrupt("a row of no known name")),
        };
        let is_sound = Cell::new(true);
        let doubt = |row| {
            is_sound.set(false);
            believe(row)
        };
        source.rows(META, read, doubt, |portion| {
            rows.extend(portion.into_iter().flatten());
            Ok(())
        })?;
        Ok(Self { rows, is_sound: is_sound.get() })
    }
}

/// The new file.
pub(super) struct Target {
    database: Database,
    no_bodies: SegmentWriter,
    damage: Arc<Damage>,
}

impl Target {
    pub(super) fn write(&mut self, write: impl FnOnce(&mut Writer<'_, '_>) -> Result<()>) -> Result<()> {
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
    transaction.commit().map_err(|error| error::flush("committing metadata", error))
}

/// An item, and whether its row is as it was written last.
struct FoundItem {
    id: ItemId,
    row: ItemRow,
    is_sound: bool,
}

/// A message, and whether its row is as it was written last.
struct FoundMessage {
    id: MessageId,
    row: MessageRow<Location>,
    is_sound: bool,
}

fn believe<T>(row: T) -> Result<Verdict<T>> {
    Ok(Verdict::Believed(row))
}

/// Whether there is what the row is of.
fn proven<T>(row: T, is_there: bool) -> Verdict<T> {
    if is_there { Verdict::Counts(row) } else { Verdict::LeftOut }
}

/// From the damaged file to the new one.
struct Copy {
    source: Salvage,
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
    fn run(&mut self, meta: &MetaRows, bodies: &Bodies, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let lanes = self.lanes()?;
        self.items(&lanes)?;
        self.messages(bodies, body_files)?;
        self.messages_without_row(bodies, body_files)?;
        self.state_and_outbox()?;
        self.finished()?;
        let mut counters = Counters { openings: 1, ..self.counters.clone() };
        let said = open::counters(meta).ok().flatten();
        if let Some(said) = &said {
            counters.next_item = counters.next_item.max(said.next_item);
            counters.next_lane = counters.next_lane.max(said.next_lane);
            counters.next_outbox = counters.next_outbox.max(said.next_outbox);
            counters.generation = counters.generation.max(said.generation);
            (counters.openings, counters.ended) = (said.openings, said.ended.clone());
        }
        // No number is given twice.
        if said.is_none() || !meta.is_sound {
            for next in [&mut counters.next_item, &mut counters.next_lane, &mut counters.next_outbox] {
                *next = next.saturating_add(PASSED_OVER);
            }
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

    /// A lane lies under its name and under its number: one is enough. Returns under which number each goes on: a page of an earlier
    /// time may have one that was forgotten, of a name that has another since.
    fn lanes(&mut self) -> Result<BTreeMap<LaneId, LaneId>> {
        let mut lanes = BTreeMap::new();
        let mut keep = |portion: Vec<Result<(LaneId, Lane)>>| {
            lanes.extend(portion.into_iter().flatten());
            Ok(())
        };
        let named = |key: &[u8], row: &[u8]| tables::named_lane(key, row).map(|(lane, id)| (id, lane));
        self.source.rows(tables::LANES, named, believe, &mut keep)?;
        let numbered = |id: u64, row: &[u8]| Ok((id, codec::lane_from_row(id, row)?));
        self.source.rows(tables::LANE_NAMES, numbered, believe, &mut keep)?;
        if let Some((last, _)) = lanes.last_key_value() {
            self.counters.next_lane = last.saturating_add(1);
        }
        // The last number of a name is the one that it has.
        let by_name: BTreeMap<&Lane, LaneId> = lanes.iter().map(|(id, lane)| (lane, *id)).collect();
        self.target.each(by_name.iter().collect(), |writer, (lane, id)| writer.put_lane(*id, lane))?;
        Ok(lanes.iter().filter_map(|(id, lane)| Some((*id, *by_name.get(lane)?))).collect())
    }

    fn items(&mut self, lanes: &BTreeMap<LaneId, LaneId>) -> Result<()> {
        let Self { source, target, counters, items, .. } = self;
        let read = |item: u64, row: &[u8]| {
            let id = ItemId(item);
            Ok(FoundItem { id, row: codec::item_from_row(id, row)?, is_sound: true })
        };
        let mut nameless = Vec::new();
        let witness = OnceCell::new();
        let doubt = |met: FoundItem| {
            let witness = match witness.get() {
                Some(witness) => witness,
                None => {
                    let heard = Witness::hear(source)?;
                    witness.get_or_init(|| heard)
                }
            };
            let may_live = witness.may_live(met.id);
            Ok(proven(FoundItem { is_sound: false, ..met }, may_live))
        };
        source.rows(tables::ITEMS, read, doubt, |portion: Vec<Result<FoundItem>>| {
            target.each(portion, |writer, met| {
                let Some(FoundItem { id: item, mut row, is_sound }) = writer.readable(met)? else {
                    return Ok(());
                };
                counters.next_item = counters.next_item.max(item.0.saturating_add(1));
                let lane = lanes.get(&row.lane);
                row.lane = *lane.unwrap_or(&row.lane);
                let of_message = items.entry(row.envelope.id).or_default();
                if !is_sound {
                    // Of an earlier time it may have recipients that have parted from it since. Sound rows came before.
                    for other in of_message.iter() {
                        let there = writer.item(*other)?.map(|other| other.recipients).unwrap_or_default();
                        row.recipients.retain(|one| there.iter().all(|other| other.index != one.index));
                    }
                    if row.recipients.is_empty() {
                        return Ok(());
                    }
                }
                of_message.push(item);
                writer.put_item(item, &row)?;
                if lane.is_none() {
                    nameless.push(item);
                    return Ok(());
                }
                row.head().place.keys(item).try_for_each(|key| writer.put_order(key))
            })
        })?;
        lost_lanes::name(target, items, &nameless, counters)
    }

    fn messages(&mut self, bodies: &Bodies, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let Self { source, target, items, messages, losers, .. } = self;
        let read = |id: &[u8; 16], row: &[u8]| {
            let id = tables::id_from(id);
            Ok(FoundMessage { id, row: codec::message_from_row(id, row)?, is_sound: true })
        };
        // A row of an earlier time may say where the body was before it was moved.
        let doubt = |met: FoundMessage| {
            let is_there = bodies.has_record(met.id, met.row.body)?;
            Ok(proven(FoundMessage { is_sound: false, ..met }, is_there))
        };
        source.rows(tables::MESSAGES, read, doubt, |portion: Vec<Result<FoundMessage>>| {
            target.each(portion, |writer, met| {
                let Some(FoundMessage { id, row, is_sound }) = writer.readable(met)? else { return Ok(()) };
                let there = items.remove(&id).unwrap_or_default();
                *messages += u64::from(!there.is_empty());
                let had = if is_sound { row.items as usize } else { 0 };
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
        })
    }

    /// Where the row of a message is lost, its body is looked for in the body files, among those that nothing leads to.
    fn messages_without_row(&mut self, bodies: &Bodies, body_files: &BTreeMap<u64, u64>) -> Result<()> {
        let lost = std::mem::take(&mut self.items);
        if lost.is_empty() {
            return Ok(());
        }
        let mut found = BTreeMap::new();
        let mut unsearched = Vec::new();
        for (segment, size) in body_files {
            let mut searched = FILE_HEADER;
            for record in bodies.records(*segment, FILE_HEADER, *size) {
                let (offset, RecordHeader { id, length, .. }) = match record {
                    Err(error) if error.kind() == StorageErrorKind::Corrupt => break,
                    record => record?,
                };
                let body = Location { segment: *segment, offset, length };
                searched = body.end();
                // The last one that is whole: what a crash has left has no body.
                if lost.contains_key(&id) && (!found.contains_key(&id) || is_whole(bodies, id, body)?) {
                    found.insert(id, body);
                }
            }
            unsearched.extend((searched < *size).then_some((*segment, searched)));
        }
        if lost.keys().any(|id| !found.contains_key(id)) {
            for (segment, from) in unsearched {
                self.target.damage.tell(corrupt(format!(
                    "{} is not searched for bodies from octet {from} on: what begins there is damaged or was never whole",
                    bodies.path_of(segment).display()
                )));
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
        source.rows(tables::STATE, read, believe, |portion: Vec<Result<StateRow>>| {
            target.each(portion, |writer, met| match writer.readable(met)? {
                Some(row) => writer.put_state(&row),
                None => Ok(()),
            })
        })?;
        let read = |position: u64, row: &[u8]| codec::outbox_from_row(OutboxPosition(position), row);
        source.rows(tables::OUTBOX, read, believe, |portion: Vec<Result<OutboxEntry>>| {
            target.each(portion, |writer, met| {
                let Some(entry) = writer.readable(met)? else { return Ok(()) };
                counters.next_outbox = counters.next_outbox.max(entry.position.0.saturating_add(1));
                writer.put_outbox(entry.position, entry.event, &entry.payload)
            })
        })
    }

    fn finished(&mut self) -> Result<()> {
        let Self { source, target, counters, .. } = self;
        source.rows(
            tables::FINISHED,
            |id: &[u8; 16], row: (u64, u32)| {
                let id = tables::id_from(id);
                Ok((id, codec::generation_from_row(id, row)?))
            },
            believe,
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

fn is_whole(bodies: &Bodies, id: MessageId, body: Location) -> Result<bool> {
    match bodies.read(id, body) {
        Err(error) if error.kind() != StorageErrorKind::Corrupt => Err(error),
        read => Ok(matches!(read, Ok(Some(_)))),
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
