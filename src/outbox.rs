//! Final events as they lie in the durable outbox.

use bytes::Bytes;

use crate::event::DeliveryEvent;
use crate::storage::{Change, OutboxEntry, StorageError, StorageErrorKind};

/// The encoding's version, the first octet of each entry.
const VERSION: u8 = 1;
/// Octets of most entries.
const USUAL: usize = 512;

/// The change that reports a final event; `None` for one that is not final.
pub(crate) fn entry(event: &DeliveryEvent) -> Option<Change> {
    let id = match event {
        DeliveryEvent::Delivered(delivered) => delivered.record.event,
        DeliveryEvent::Bounced(bounced) => bounced.record.event,
        DeliveryEvent::Cancelled(cancelled) => cancelled.record.event,
        _ => return None,
    };
    let mut payload = Vec::with_capacity(USUAL);
    payload.push(VERSION);
    let payload = postcard::to_extend(event, payload).ok()?;
    Some(Change::Report { event: id, payload: Bytes::from(payload) })
}

/// The event of an entry.
pub(crate) fn event(entry: &OutboxEntry) -> Result<DeliveryEvent, StorageError> {
    let corrupt = |what: &str| {
        let message = format!("outbox entry {} ({}) {what}", entry.position.0, entry.event);
        StorageError::new(StorageErrorKind::Corrupt, message)
    };
    match entry.payload.split_first() {
        Some((&VERSION, encoded)) => postcard::from_bytes(encoded).map_err(|_| corrupt("is damaged")),
        Some((version, _)) => Err(corrupt(&format!("is of version {version}, this program knows {VERSION}"))),
        None => Err(corrupt("is empty")),
    }
}
