//! What opening makes good: what is said twice, or can be counted, need not be lost with one damaged row.

use std::collections::BTreeMap;

use crate::storage::order::{Axis, LaneId, OrderKey, START};
use crate::storage::rows::{Result, Rows, RowsMut};
use crate::storage::{Lane, StorageError};

use super::codec::Alive;
use super::error::{corrupt, db};
use super::segment;
use super::table_writer::Writer;
use super::tables::named_lane;

/// A lane has its name under its number and its number under its name, each with both: where one row is damaged, it is
/// written anew from the other.
///
/// # Errors
/// `Corrupt` if both rows of a lane with mail are damaged.
pub(super) fn lanes(writer: &mut Writer<'_, '_>) -> Result<()> {
    let (mut by_name, mut by_number) = (Vec::new(), Vec::new());
    for entry in redb::ReadableTable::range::<&[u8]>(&writer.tables().lanes, ..).map_err(db)? {
        let (key, row) = entry.map_err(db)?;
        if let Err(damage) = named_lane(key.value(), row.value()) {
            by_name.push((key.value().to_vec(), damage));
        }
    }
    for entry in writer.tables().names()? {
        let (id, lane) = entry?;
        by_number.extend(lane.err().map(|damage| (id, damage)));
    }
    if by_name.is_empty() && by_number.is_empty() {
        return Ok(());
    }
    let mut sound: BTreeMap<LaneId, Lane> = BTreeMap::new();
    for entry in writer.tables().names()? {
        let (id, lane) = entry?;
        sound.extend(lane.ok().map(|lane| (id, lane)));
    }
    for entry in writer.lanes_after(None)? {
        sound.extend(entry?.ok().map(|(lane, id)| (id, lane)));
    }
    for (id, damage) in &by_number {
        // Written anew, the metadata has a name for it by what lies there.
        if !sound.contains_key(id) && has_mail(writer, *id)? {
            return Err(damage.clone());
        }
    }
    for (key, damage) in by_name {
        writer.leave_aside(note(&damage, "a lane's name"));
        writer.remove_name(&key)?;
    }
    for (id, damage) in by_number {
        writer.leave_aside(note(&damage, "a lane's number"));
        writer.remove_number(id)?;
    }
    for (id, lane) in sound {
        // Under a name that has another number mail was stored since.
        if writer.lane_id(&lane)?.is_none_or(|known| known == id) {
            writer.put_lane(id, &lane)?;
        }
    }
    Ok(())
}

fn has_mail(writer: &Writer<'_, '_>, lane: LaneId) -> Result<bool> {
    let first = OrderKey { lane, axis: Axis::Fresh, spot: START };
    let met = writer.order_from(first)?.next().transpose()?;
    // What can not be read may be of it.
    Ok(met.is_some_and(|key| key.map_or(true, |key| key.lane == lane)))
}

fn note(damage: &StorageError, what: &str) -> StorageError {
    corrupt(format!("{what} is written anew from its other row, if that is there: {damage}"))
}

/// Body files with what is alive in them. It is counted anew if `recount` says so or a row about
/// them is damaged. `false`: a message's row is damaged, so that any file may hold a body that is alive.
pub(super) fn body_files(writer: &mut Writer<'_, '_>, recount: bool) -> Result<(BTreeMap<u64, Alive>, bool)> {
    let rows = writer.tables().segments()?;
    let damaged: Vec<_> = rows.iter().filter_map(|(_, alive)| alive.as_ref().err()).cloned().collect();
    // What lay behind a cut may have ended since.
    let is_cut = |(segment, alive): &(u64, Result<Alive>)| {
        let size = writer.bodies.sizes().get(segment);
        alive.as_ref().is_ok_and(|alive| size.is_some_and(|size| *size < alive.end))
    };
    if damaged.is_empty() && !recount && !rows.iter().any(is_cut) {
        return Ok((
            rows.into_iter().filter_map(|(segment, alive)| Some((segment, alive.ok()?))).collect(),
            true,
        ));
    }
    for damage in damaged {
        writer.leave_aside(corrupt(format!("what is alive in body files is counted anew: {damage}")));
    }
    let mut alive: BTreeMap<u64, Alive> = BTreeMap::new();
    let mut whole = true;
    for entry in writer.tables().messages()? {
        let (_, row) = entry?;
        match writer.readable(row)? {
            Some(row) => alive.entry(row.body.segment).or_default().add(row.body),
            None => whole = false,
        }
    }
    writer.set_segments(&alive)?;
    if !whole {
        // Until that message has ended.
        writer.recount();
    }
    Ok((alive, whole))
}

/// Takes note of body files that are not there, or not whole.
pub(super) fn missing(writer: &Writer<'_, '_>, known: &BTreeMap<u64, Alive>) {
    for (segment, Alive { records, end, .. }) in known.iter().filter(|(_, alive)| alive.records > 0) {
        let name = segment::path_of("bodies".as_ref(), *segment);
        let name = name.display();
        let damage = match writer.bodies.sizes().get(segment) {
            None => format!("{name} is missing: {records} messages have lost their bodies"),
            Some(size) if size < end => {
                format!("{name} is cut short to {size} octets of {end}: the bodies that lay behind are lost")
            }
            Some(_) => continue,
        };
        writer.leave_aside(corrupt(damage));
    }
}
