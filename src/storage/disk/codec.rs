//! Rows as octets: a version, then postcard.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::order::Place;
use crate::storage::rows::{ItemHead, ItemRow, MessageRow, Result};
use crate::storage::{Envelope, ItemId, Recipient, StorageError};

use super::error::corrupt;

/// The version of rows written by this program.
const ROW_VERSION: u8 = 1;

/// Where a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u64,
    /// Of its record.
    pub(super) offset: u64,
    pub(super) length: u32,
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

fn encode(value: &impl Serialize, bytes: Vec<u8>) -> Result<Vec<u8>> {
    postcard::to_extend(value, bytes).map_err(|error| corrupt(format!("a row can not be encoded: {error}")))
}

fn damaged(what: &str, error: postcard::Error) -> StorageError {
    corrupt(format!("{what} is damaged: {error}")).with_source(error)
}

/// Cuts the version off.
fn body<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    match bytes.split_first() {
        Some((&ROW_VERSION, rest)) => Ok(rest),
        Some((other, _)) => {
            Err(corrupt(format!("{what} has version {other}, this program knows version {ROW_VERSION}")))
        }
        None => Err(corrupt(format!("{what} is empty"))),
    }
}

pub(super) fn to_row(value: &impl Serialize) -> Result<Vec<u8>> {
    encode(value, vec![ROW_VERSION])
}

pub(super) fn from_row<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(body(what, bytes)?).map_err(|error| damaged(what, error))
}

pub(super) fn item_to_row(row: &ItemRow, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
    buffer.clear();
    buffer.push(ROW_VERSION);
    let ItemHead { message, place, indices } = row.head();
    let Place { lane, age, due, expiry } = place;
    let head = HeadRow { message, lane, age, due, expiry, indices };
    encode(&(head, &*row.envelope, &row.recipients), buffer)
}

pub(super) fn item_head(bytes: &[u8]) -> Result<ItemHead> {
    const WHAT: &str = "an item's row";
    let (head, _): (HeadRow<Vec<u32>>, _) =
        postcard::take_from_bytes(body(WHAT, bytes)?).map_err(|error| damaged(WHAT, error))?;
    let HeadRow { message, lane, age, due, expiry, indices } = head;
    Ok(ItemHead { message, place: Place { lane, age, due, expiry }, indices })
}

pub(super) fn item_from_row(bytes: &[u8]) -> Result<ItemRow> {
    let (head, envelope, recipients): (HeadRow<Vec<u32>>, Envelope, Vec<Recipient>) =
        from_row("an item's row", bytes)?;
    Ok(ItemRow { lane: head.lane, due: head.due, envelope: Arc::new(envelope), recipients })
}

pub(super) fn message_to_row(row: &MessageRow<Location>) -> Result<Vec<u8>> {
    let MessageRow { body: Location { segment, offset, length }, items, host_id, sole } = *row;
    to_row(&MessageHeadRow { segment, offset, length, items, host_id, sole })
}

pub(super) fn message_from_row(bytes: &[u8]) -> Result<MessageRow<Location>> {
    let MessageHeadRow { segment, offset, length, items, host_id, sole } =
        from_row("a message's row", bytes)?;
    Ok(MessageRow { body: Location { segment, offset, length }, items, host_id, sole })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::StorageErrorKind;

    #[test]
    fn rows_of_another_version_are_refused_by_name() {
        let row = MessageRow {
            body: Location { segment: 7, offset: 1 << 40, length: 3 },
            items: 2,
            host_id: true,
            sole: Some(ItemId(9)),
        };
        let mut bytes = message_to_row(&row).unwrap();
        let back = message_from_row(&bytes).unwrap();
        assert_eq!((back.body, back.items, back.host_id, back.sole), (row.body, 2, true, row.sole));
        bytes[0] = 9;
        let error = message_from_row(&bytes).unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Corrupt);
        assert!(
            error.to_string().contains("version 9") && error.to_string().contains("version 1"),
            "{error}"
        );
        for bytes in [&[][..], &[1], &[1, 255, 255]] {
            assert_eq!(item_head(bytes).unwrap_err().kind(), StorageErrorKind::Corrupt);
        }
    }
}
