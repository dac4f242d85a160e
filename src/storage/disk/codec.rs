//! Rows as octets: a version, a CRC-32 of key and value, then the value in postcard.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{EventId, MessageId};
use crate::storage::order::{LaneId, Place};
use crate::storage::rows::{ItemHead, ItemRow, MessageRow, Result};
use crate::storage::{
    Envelope, ItemId, Lane, OutboxEntry, OutboxPosition, Recipient, StorageError, share_failures,
};

use super::error::corrupt;
use super::segment::RECORD_HEADER;

/// The version of rows written by this program.
const ROW_VERSION: u8 = 1;
/// Version and checksum.
const ROW_START: usize = 5;

/// Where a body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u64,
    /// Of its record.
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Location {
    /// Where its record ends.
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(RECORD_HEADER as u64 + u64::from(self.length))
    }
}

/// Comes first in an item's row, so that settling it need not decode the rest.
#[derive(Serialize, Deserialize)]
struct HeadRow<I> {
    message: MessageId,
    lane: u64,
    age: Timestamp,
    due: Timestamp,
    expiry: Option<Timestamp>,
    indices: I,
}

#[derive(Serialize, Deserialize)]
struct MessageHeadRow {
    segment: u64,
    offset: u64,
    length: u32,
    items: u32,
    host_id: bool,
    sole: Option<ItemId>,
}

/// CRC-32 over all of `parts`: a row's key, then what it holds, so that a row under a wrong key is found too.
pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// A value that is kept as it is, after its checksum.
pub(super) fn raw_row(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&checksum(&[key, value]).to_le_bytes(), value].concat()
}

pub(super) fn raw_value<'a>(what: impl Display, key: &[u8], row: &'a [u8]) -> Result<&'a [u8]> {
    let Some((checksum, value)) = row.split_first_chunk() else { return Err(cut_off(what)) };
    verify(what, u32::from_le_bytes(*checksum), &[key, value])?;
    Ok(value)
}

pub(super) fn outbox_to_row(position: OutboxPosition, event: EventId, payload: &[u8]) -> Vec<u8> {
    raw_row(&position.0.to_le_bytes(), &[event.as_uuid().as_bytes(), payload].concat())
}

pub(super) fn outbox_from_row(position: OutboxPosition, row: &[u8]) -> Result<OutboxEntry> {
    let what = format_args!("the outbox entry {}", position.0);
    let value = raw_value(what, &position.0.to_le_bytes(), row)?;
    let Some((event, payload)) = value.split_first_chunk() else { return Err(cut_off(what)) };
    let event = EventId::from_uuid(uuid::Uuid::from_bytes(*event));
    Ok(OutboxEntry { position, event, payload: Bytes::copy_from_slice(payload) })
}

fn cut_off(what: impl Display) -> StorageError {
    corrupt(format!("{what} is cut off"))
}

/// For rows that keep their checksum beside them.
pub(super) fn verify(what: impl Display, checksum: u32, parts: &[&[u8]]) -> Result<()> {
    if self::checksum(parts) == checksum { Ok(()) } else { Err(mismatch(what)) }
}

fn mismatch(what: impl Display) -> StorageError {
    corrupt(format!("{what} is damaged: its checksum does not match"))
}

/// Appends `value` to the start of a row and fills its checksum in.
fn encode(key: &[u8], value: &impl Serialize, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    bytes.clear();
    bytes.extend([ROW_VERSION, 0, 0, 0, 0]);
    let encoded = postcard::to_extend(value, bytes);
    let mut bytes = encoded.map_err(|error| corrupt(format!("a row can not be encoded: {error}")))?;
    if let Some((start, value)) = bytes.split_first_chunk_mut::<ROW_START>() {
        let [_, checksum @ ..] = start;
        *checksum = self::checksum(&[key, value]).to_le_bytes();
    }
    Ok(bytes)
}

fn damaged(what: impl Display, error: postcard::Error) -> StorageError {
    corrupt(format!("{what} is damaged: {error}")).with_source(error)
}

/// Checks version and checksum, and cuts them off.
fn body<'a>(what: &impl Display, key: &[u8], bytes: &'a [u8]) -> Result<&'a [u8]> {
    match bytes.split_first_chunk::<ROW_START>() {
        Some(([ROW_VERSION, checksum @ ..], value)) => {
            verify(what, u32::from_le_bytes(*checksum), &[key, value])?;
            Ok(value)
        }
        Some(([other, ..], _)) => {
            Err(corrupt(format!("{what} has version {other}, this program knows version {ROW_VERSION}")))
        }
        None => Err(cut_off(what)),
    }
}

pub(super) fn to_row(key: &[u8], value: &impl Serialize) -> Result<Vec<u8>> {
    encode(key, value, Vec::new())
}

pub(super) fn from_row<T: DeserializeOwned>(what: impl Display, key: &[u8], bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(body(&what, key, bytes)?).map_err(|error| damaged(what, error))
}

pub(super) fn item_to_row(item: ItemId, row: &ItemRow, buffer: Vec<u8>) -> Result<Vec<u8>> {
    let ItemHead { message, place, indices } = row.head();
    let Place { lane, age, due, expiry } = place;
    let head = HeadRow { message, lane, age, due, expiry, indices };
    encode(&item.0.to_be_bytes(), &(head, &*row.envelope, &row.recipients), buffer)
}

pub(super) fn item_head(item: ItemId, bytes: &[u8]) -> Result<ItemHead> {
    let what = format_args!("the row of item {}", item.0);
    let (head, _): (HeadRow<Vec<u32>>, _) =
        postcard::take_from_bytes(body(&what, &item.0.to_be_bytes(), bytes)?)
            .map_err(|error| damaged(what, error))?;
    let HeadRow { message, lane, age, due, expiry, indices } = head;
    Ok(ItemHead { message, place: Place { lane, age, due, expiry }, indices })
}

pub(super) fn item_from_row(item: ItemId, bytes: &[u8]) -> Result<ItemRow> {
    let what = format_args!("the row of item {}", item.0);
    let (head, envelope, mut recipients): (HeadRow<Vec<u32>>, Envelope, Vec<Recipient>) =
        from_row(what, &item.0.to_be_bytes(), bytes)?;
    share_failures(&mut recipients);
    Ok(ItemRow { lane: head.lane, due: head.due, envelope: Arc::new(envelope), recipients })
}

pub(super) fn lane_to_row(id: LaneId, lane: &Lane) -> Result<Vec<u8>> {
    to_row(&id.to_be_bytes(), lane)
}

pub(super) fn lane_from_row(id: LaneId, bytes: &[u8]) -> Result<Lane> {
    from_row(format_args!("the row of lane {id}"), &id.to_be_bytes(), bytes)
}

pub(super) fn message_to_row(id: MessageId, row: &MessageRow<Location>) -> Result<Vec<u8>> {
    let MessageRow { body: Location { segment, offset, length }, items, host_id, sole } = *row;
    to_row(id.as_uuid().as_bytes(), &MessageHeadRow { segment, offset, length, items, host_id, sole })
}

pub(super) fn message_from_row(id: MessageId, bytes: &[u8]) -> Result<MessageRow<Location>> {
    let MessageHeadRow { segment, offset, length, items, host_id, sole } =
        from_row(format_args!("the row of message {id}"), id.as_uuid().as_bytes(), bytes)?;
    Ok(MessageRow { body: Location { segment, offset, length }, items, host_id, sole })
}

/// Under which generation a message that has ended is remembered.
pub(super) fn generation_from_row(id: MessageId, (generation, checksum): (u64, u32)) -> Result<u64> {
    let parts: [&[u8]; 2] = [id.as_uuid().as_bytes(), &generation.to_le_bytes()];
    verify(format_args!("the row of finished message {id}"), checksum, &parts)?;
    Ok(generation)
}

/// What is alive in a body file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alive {
    /// Of bodies.
    pub(super) octets: u64,
    pub(super) records: u64,
    /// Where the last record that was alive in it since it was counted ends: a shorter file was cut short.
    pub(super) end: u64,
}

impl Alive {
    pub(super) fn add(&mut self, body: Location) {
        self.octets = self.octets.saturating_add(u64::from(body.length));
        self.records = self.records.saturating_add(1);
        self.end = self.end.max(body.end());
    }

    /// Over its number and what it says.
    fn checksum(self, segment: u64) -> u32 {
        let Self { octets, records, end } = self;
        let [segment, octets, records, end] = [segment, octets, records, end].map(u64::to_le_bytes);
        checksum(&[&segment, &octets, &records, &end])
    }
}

/// Octets, records, end, and the checksum of these.
pub(super) type AliveRow = (u64, u64, u64, u32);

pub(super) fn alive_in(segment: u64, (octets, records, end, checksum): AliveRow) -> Result<Alive> {
    let alive = Alive { octets, records, end };
    match alive.checksum(segment) == checksum {
        true => Ok(alive),
        false => Err(mismatch(format_args!("the row of body file {segment:016x}"))),
    }
}

pub(super) fn alive_row(segment: u64, alive: Alive) -> AliveRow {
    (alive.octets, alive.records, alive.end, alive.checksum(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageErrorKind;

    fn id(number: u128) -> MessageId {
        MessageId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn rows_of_another_version_and_damaged_ones_are_refused_by_name() {
        let row = MessageRow {
            body: Location { segment: 7, offset: 1 << 40, length: 3 },
            items: 2,
            host_id: true,
            sole: Some(ItemId(9)),
        };
        let mut bytes = message_to_row(id(1), &row).unwrap();
        let back = message_from_row(id(1), &bytes).unwrap();
        assert_eq!((back.body, back.items, back.host_id, back.sole), (row.body, 2, true, row.sole));
        let error = message_from_row(id(2), &bytes).unwrap_err();
        assert!(error.to_string().contains(&id(2).to_string()), "under another key: {error}");
        for bit in 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(message_from_row(id(1), &flipped).unwrap_err().kind(), StorageErrorKind::Corrupt);
        }
        bytes[0] = 9;
        let error = message_from_row(id(1), &bytes).unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
        assert!(
            error.to_string().contains("version 9") && error.to_string().contains("version 1"),
            "{error}"
        );
        for bytes in [&[][..], &[1], &[1, 255, 255], &[1, 0, 0, 0, 0, 255, 255]] {
            assert_eq!(item_head(ItemId(1), bytes).unwrap_err().kind(), StorageErrorKind::Corrupt);
        }
    }

    #[test]
    fn what_several_recipients_met_is_in_memory_once() {
        let item = crate::testing::conformance::item("a.example", 5, 4);
        let message = crate::testing::conformance::message(1, "a.example", 5);
        let mut recipients = item.recipients;
        // Each its own, as they come out of different transactions.
        let met = |_: &Recipient| Some(Arc::new(crate::testing::conformance::failure()));
        recipients.iter_mut().for_each(|recipient| recipient.last = met(recipient));
        recipients[1].last = None;
        let row = ItemRow { lane: 1, due: Timestamp::EPOCH, envelope: message.envelope, recipients };
        let bytes = item_to_row(ItemId(1), &row, Vec::new()).unwrap();
        let read = item_from_row(ItemId(1), &bytes).unwrap().recipients;
        assert_eq!(read, row.recipients);
        let last = |place: usize| read[place].last.as_ref().unwrap();
        assert!(Arc::ptr_eq(last(0), last(2)) && Arc::ptr_eq(last(2), last(3)));
    }
}
