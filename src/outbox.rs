//! Final events as they lie in the durable outbox.

use bytes::Bytes;
use postcard::ser_flavors::Flavor;

use crate::event::DeliveryEvent;
use crate::storage::{Change, OutboxEntry, StorageError, StorageErrorKind};

/// The encoding's version, the first octet of each entry.
const VERSION: u8 = 1;

/// The change that reports a final event; `None` for one that is not final. `scratch` is what it is encoded in, of no
/// meaning before and after.
pub(crate) fn entry(event: &DeliveryEvent, scratch: &mut Vec<u8>) -> Option<Change> {
    let id = match event {
        DeliveryEvent::Delivered(delivered) => delivered.record.event,
        DeliveryEvent::Bounced(bounced) => bounced.record.event,
        DeliveryEvent::Cancelled(cancelled) => cancelled.record.event,
        _ => return None,
    };
    scratch.clear();
    scratch.push(VERSION);
    postcard::serialize_with_flavor(event, Scratch(scratch)).ok()?;
    Some(Change::Report { event: id, payload: Bytes::copy_from_slice(scratch) })
}

/// Where postcard writes to.
struct Scratch<'a>(&'a mut Vec<u8>);

impl Flavor for Scratch<'_> {
    type Output = ();

    fn try_push(&mut self, octet: u8) -> postcard::Result<()> {
        self.0.push(octet);
        Ok(())
    }

    fn try_extend(&mut self, octets: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(octets);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
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
