//! Giving space back: body files in which little is alive, and a metadata file that has become nearly empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableDatabase, ReadableTableMetadata};

use crate::clock::Timestamp;
use crate::storage::order::OrderKey;
use crate::storage::rows::{MessageRow, Result, Rows};
use crate::storage::{Room, StorageErrorKind};

use super::codec::{Alive, Location};
use super::error::{self, corrupt, db};
use super::segment::{FILE_HEADER, RECORD_HEADER, RecordHeader};
use super::table_writer::Writer;
use super::tables::{Access, Tables};
use super::writer::WriterState;
use super::{Shared, lock};

/// A smaller body file is written on, however little of it is alive.
const SMALL_BODIES: u64 = 1024 * 1024;
/// Compaction moves all rows while nobody is served: more than this only if nothing was written since the last upkeep.
const MOVED_IN_USE: u64 = 16 * 1024 * 1024;

/// A body that is alive: the header of its record, its row, and the body as it is. A damaged one stays damaged and is found by
/// whoever reads it.
type Living = (RecordHeader, MessageRow<Location>, Bytes);

impl Shared {
    /// Forgets what is old and rewrites one body file in which under a quarter is alive; once there is no more of either, the
    /// metadata file under the same condition, if it is small or idle. `true`: there may be more.
    pub(super) fn maintain(&self, state: &mut WriterState, now: Timestamp) -> Result<bool> {
        let written = state.bodies.written();
        let done = self.give_back(state, now);
        let done = self.with_room(state, done);
        self.take_back_unnamed(state, written, &done);
        // Whatever came of it: others may have made room too.
        self.reserve.retry();
        self.reserve.ensure();
        done
    }

    fn give_back(&self, state: &mut WriterState, now: Timestamp) -> Result<bool> {
        let upkeep = state.upkeep.clone();
        let mut done = self.forget_and_move(state, now, true);
        state.bodies.rollback();
        // Forgetting needs next to no room.
        if let Err(error) = &done
            && error.kind() == StorageErrorKind::Full
            && !self.reserve.has_refused()
        {
            tracing::warn!(%error, "there is no room to write a body file anew of which little is alive");
            state.upkeep = upkeep.clone();
            done = self.forget_and_move(state, now, false);
            state.bodies.rollback();
        }
        if done.is_err() {
            // What it had forgotten is there as before.
            state.upkeep = upkeep;
        }
        let (dead, more) = done?;
        state.bodies.delete(&dead, &self.bodies);
        if !more {
            self.compact(state)?;
        }
        Ok(more)
    }

    fn forget_and_move(
        &self,
        state: &mut WriterState,
        now: Timestamp,
        moves: bool,
    ) -> Result<(Vec<u64>, bool)> {
        let database = self.database();
        let mut transaction = database.begin_write().map_err(db)?;
        transaction.set_quick_repair(true);
        let writing = state.bodies.writing();
        let sizes = state.bodies.sizes().clone();
        let mut writer = Writer::new(&transaction, &state.counters, &mut state.bodies, self.damage.clone())?;
        let mut more = state.upkeep.run(&mut writer, &lock(&self.leases), now)?;
        let segments = writer.segments()?;
        // An idle store should not hold on to a file of settled mail, nor a small disk to one of which little is alive.
        let size = sizes.get(&writing).copied().unwrap_or_default();
        if segments
            .get(&writing)
            .is_some_and(|alive| alive.records == 0 || size >= SMALL_BODIES && is_sparse(*alive, size))
        {
            writer.seal();
        }
        // Left by rounds that failed after closing a file.
        let writing = writer.bodies.writing();
        for (segment, alive) in &segments {
            if alive.records == 0 && *segment != writing {
                writer.recheck(*segment);
            }
        }
        let gives_room = |segment| !state.unreadable.contains(&segment) && writer.bodies.may_delete(segment);
        if moves && let Some(segment) = sparse(&segments, &sizes, writing, gives_room) {
            // It is not found again, whatever comes of it: others may be.
            more = true;
            let records = segments.get(&segment).map_or(0, |alive| alive.records);
            let size = sizes.get(&segment).copied().unwrap_or_default();
            let living = writer.readable(self.living(&writer, segment, size))?.unwrap_or_default();
            if living.len() as u64 == records {
                move_bodies(&mut writer, living)?;
            } else {
                let found = living.len();
                let damage =
                    format!("body file {segment:016x}: {found} of {records} bodies are found, it is kept");
                writer.leave_aside(corrupt(damage));
                state.unreadable.insert(segment);
            }
        }
        // Nobody else may have anything to write, and so find out that there is room again.
        if self.reserve.room() == Room::Exhausted {
            writer.write_anyway();
        }
        let (counters, changed, dead) = writer.finish(&transaction)?;
        if !changed {
            transaction.abort().map_err(db)?;
            return Ok((Vec::new(), more));
        }
        let pairing = state.bodies.flush()?;
        transaction.commit().map_err(|error| error::flush("committing metadata", error))?;
        state.committed(counters, pairing);
        self.check_committed(state)?;
        self.reserve.wrote();
        state.unreadable.retain(|segment| !dead.contains(segment));
        Ok((dead, more))
    }

    /// The living bodies of a file, found by following its records.
    fn living(&self, writer: &Writer<'_, '_>, segment: u64, size: u64) -> Result<Vec<Living>> {
        let mut living = Vec::new();
        for record in self.bodies.records(segment, FILE_HEADER, size) {
            let (offset, header) = record?;
            let body = offset.saturating_add(RECORD_HEADER as u64);
            if let Some(row) = writer.readable(writer.message(header.id))?.flatten()
                && (row.body.segment, row.body.offset) == (segment, offset)
                && let Some(body) = self.bodies.read_at(segment, body, row.body.length as usize)?
            {
                living.push((header, row, body));
            }
        }
        Ok(living)
    }

    fn compact(&self, state: &mut WriterState) -> Result<()> {
        let is_idle = std::mem::replace(&mut state.rounds_at_upkeep, state.rounds) == state.rounds;
        let length = self.metadata_length();
        // Not again and again when there is nothing to gain.
        if length < self.small_metadata || length < state.compacted.saturating_add(state.compacted / 2) {
            return Ok(());
        }
        let stored = self.stored_octets(length)?;
        if stored >= length / 4 || (stored > MOVED_IN_USE && !is_idle) {
            return Ok(());
        }
        // Waits for reads that go on, and holds new ones back.
        let mut database = self.database.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(database) = Arc::get_mut(&mut *database) else { return Ok(()) };
        match database.compact() {
            Ok(_) => state.compacted = self.metadata_length(),
            Err(redb::CompactionError::Storage(error)) => {
                return Err(error::flush("compacting metadata", error));
            }
            Err(error) => tracing::warn!(%error, "the metadata file is not compacted"),
        }
        Ok(())
    }

    /// What the rows take; at least a quarter of `length` is not told more exactly.
    fn stored_octets(&self, length: u64) -> Result<u64> {
        let database = self.database();
        let transaction = database.begin_read().map_err(db)?;
        let tables = Tables::open(&transaction, self.damage.clone())?;
        // The exact figure takes a walk over all rows, while nobody else can write.
        let least = least_octets(&tables)?;
        if least > length / 4 {
            return Ok(least);
        }
        drop((tables, transaction));
        let transaction = database.begin_write().map_err(db)?;
        let stats = transaction.stats().map_err(db)?;
        transaction.abort().map_err(db)?;
        Ok(stats.stored_bytes().saturating_add(stats.metadata_bytes()))
    }
}

/// What all rows take at least, roughly. Reads none of them.
pub(super) fn least_octets<A: Access>(tables: &Tables<A>) -> Result<u64> {
    let rows = [
        (tables.items.len(), 128),
        (tables.outbox.len(), 128),
        (tables.messages.len(), 40),
        (tables.parts.len(), 24),
        (tables.finished.len(), 28),
        (tables.lanes.len(), 24),
        (tables.lane_names.len(), 24),
        (tables.order.len(), OrderKey::OCTETS as u64),
        (tables.state.len(), 16),
    ];
    rows.into_iter().try_fold(0_u64, |sum, (rows, octets)| {
        Ok(sum.saturating_add(rows.map_err(db)?.saturating_mul(octets)))
    })
}

/// Copies records to the end of the bodies.
fn move_bodies(writer: &mut Writer<'_, '_>, living: Vec<Living>) -> Result<()> {
    for (header, row, body) in living {
        let to = writer.bodies.append_as(header, body);
        writer.move_body(header.id, row, to)?;
    }
    Ok(())
}

/// The first closed body file of which under a quarter is alive, though something is, and that is worth writing anew.
fn sparse(
    segments: &BTreeMap<u64, Alive>,
    sizes: &BTreeMap<u64, u64>,
    writing: u64,
    gives_room: impl Fn(u64) -> bool,
) -> Option<u64> {
    let is_one = |(segment, alive): &(&u64, &Alive)| {
        let size = sizes.get(*segment).copied().unwrap_or_default();
        **segment != writing && alive.records > 0 && is_sparse(**alive, size) && gives_room(**segment)
    };
    segments.iter().find(is_one).map(|(segment, _)| *segment)
}

/// Under a quarter of a body file of this size is alive.
fn is_sparse(Alive { octets, records, .. }: Alive, size: u64) -> bool {
    octets.saturating_add(records.saturating_mul(RECORD_HEADER as u64)) < size / 4
}
