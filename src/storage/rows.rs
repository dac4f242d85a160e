//! What both stores keep, and the operations on it that [`apply`](super::apply) and [`select`](super::select) are
//! written against. Rules live there, once; a store only says how a row is read and written.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::message::{EventId, MessageId};

use super::order::{LaneId, OrderKey, Place};
use super::{
    Envelope, ItemId, Lane, OutboxEntry, OutboxPosition, Recipient, StateRow, StorageError, StorageErrorKind,
};

pub(super) type Result<T> = std::result::Result<T, StorageError>;

/// A row is damaged, or not there though others say it is.
pub(super) fn corrupt(message: impl Into<String>) -> StorageError {
    StorageError::new(StorageErrorKind::Corrupt, message)
}

/// An item.
#[derive(Clone, Debug)]
pub(super) struct ItemRow {
    pub(super) lane: LaneId,
    pub(super) due: Timestamp,
    pub(super) envelope: Arc<Envelope>,
    /// In order of their index; never empty.
    pub(super) recipients: Vec<Recipient>,
}

impl ItemRow {
    pub(super) fn head(&self) -> ItemHead {
        ItemHead {
            message: self.envelope.id,
            place: Place::new(self.lane, self.due, &self.envelope),
            indices: self.recipients.iter().map(|recipient| recipient.index).collect(),
        }
    }
}

/// What it takes to settle an item, without its addresses and tags.
#[derive(Clone, Debug)]
pub(super) struct ItemHead {
    pub(super) message: MessageId,
    pub(super) place: Place,
    pub(super) indices: Vec<u32>,
}

/// A message: where its body is and how many items are left.
#[derive(Clone, Debug)]
pub(super) struct MessageRow<B> {
    pub(super) body: B,
    pub(super) items: u32,
    pub(super) host_id: bool,
    /// The only item, of a message that has one and always had. All others have a part row for each item.
    pub(super) sole: Option<ItemId>,
}

/// Numbers that must go on after a reopen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) openings: u64,
    pub(super) next_item: u64,
    pub(super) next_lane: u64,
    pub(super) next_outbox: u64,
    /// Ids of messages that finish now are remembered under this generation.
    pub(super) generation: u64,
    /// When earlier generations ended: nothing of them finished later.
    pub(super) ended: Vec<(u64, Timestamp)>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { openings: 0, next_item: 1, next_lane: 1, next_outbox: 1, generation: 1, ended: Vec::new() }
    }
}

impl Counters {
    pub(super) fn take_item(&mut self) -> ItemId {
        ItemId(take(&mut self.next_item))
    }

    pub(super) fn take_lane(&mut self) -> LaneId {
        take(&mut self.next_lane)
    }

    pub(super) fn take_outbox(&mut self) -> OutboxPosition {
        OutboxPosition(take(&mut self.next_outbox))
    }
}

fn take(next: &mut u64) -> u64 {
    let taken = *next;
    *next = taken.saturating_add(1);
    taken
}

/// What a walk over rows meets. The outer error ends the walk; the inner one is a row that is damaged, after which it
/// goes on.
pub(super) type Met<T> = Result<Result<T>>;

/// Reading. `after` is exclusive everywhere.
pub(super) trait Rows {
    /// Where a body is.
    type Body;

    /// Takes note of damage that does not fail the call: what it is about is left aside, the rest is served.
    fn leave_aside(&self, damage: StorageError);

    /// What could be read. Damage is left aside, any other error ends the call.
    fn readable<T>(&self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Err(error) if error.kind() == StorageErrorKind::Corrupt => {
                self.leave_aside(error);
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// As [`Rows::readable`], for walks: `None` is passed over.
    fn sound<T>(&self, met: Met<T>) -> Option<Result<T>> {
        met.and_then(|row| self.readable(row)).transpose()
    }

    fn head(&self, item: ItemId) -> Result<Option<ItemHead>>;
    fn item(&self, item: ItemId) -> Result<Option<ItemRow>>;
    fn items_after(
        &self,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<(ItemId, Result<ItemRow>)>>>;
    fn message(&self, id: MessageId) -> Result<Option<MessageRow<Self::Body>>>;
    fn parts_after(
        &self,
        id: MessageId,
        after: Option<ItemId>,
    ) -> Result<impl Iterator<Item = Result<ItemId>>>;
    /// The message is gone and its id is still remembered.
    fn is_finished(&self, id: MessageId) -> Result<bool>;
    fn finished_after(
        &self,
        after: Option<MessageId>,
    ) -> Result<impl Iterator<Item = Result<(MessageId, Result<u64>)>>>;
    fn lane_id(&self, lane: &Lane) -> Result<Option<LaneId>>;
    fn lane(&self, id: LaneId) -> Result<Option<Lane>>;
    fn lanes_after(&self, after: Option<&Lane>) -> Result<impl Iterator<Item = Met<(Lane, LaneId)>>>;
    fn order_from(&self, from: OrderKey) -> Result<impl Iterator<Item = Met<OrderKey>>>;
    fn state_after(&self, after: Option<&[u8]>) -> Result<impl Iterator<Item = Met<StateRow>>>;
    fn outbox_after(
        &self,
        after: OutboxPosition,
    ) -> Result<impl Iterator<Item = Result<(OutboxPosition, Result<OutboxEntry>)>>>;
}

/// Writing. Removing what is not there is no error.
pub(super) trait RowsMut: Rows {
    fn counters(&mut self) -> &mut Counters;
    fn put_item(&mut self, item: ItemId, row: &ItemRow) -> Result<()>;
    fn remove_item(&mut self, item: ItemId) -> Result<()>;
    fn put_body(&mut self, id: MessageId, body: &Bytes) -> Result<Self::Body>;
    fn put_message(&mut self, id: MessageId, row: &MessageRow<Self::Body>) -> Result<()>;
    /// Removes the message and its body.
    fn remove_message(&mut self, id: MessageId, row: &MessageRow<Self::Body>) -> Result<()>;
    /// Removes a message of which it is not known where its body is.
    fn forget_message(&mut self, id: MessageId) -> Result<()>;
    fn put_part(&mut self, id: MessageId, item: ItemId) -> Result<()>;
    fn remove_part(&mut self, id: MessageId, item: ItemId) -> Result<()>;
    fn put_finished(&mut self, id: MessageId, generation: u64) -> Result<()>;
    fn remove_finished(&mut self, id: MessageId) -> Result<()>;
    fn put_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()>;
    fn remove_lane(&mut self, id: LaneId, lane: &Lane) -> Result<()>;
    fn put_order(&mut self, key: OrderKey) -> Result<()>;
    fn remove_order(&mut self, key: OrderKey) -> Result<()>;
    fn put_state(&mut self, row: &StateRow) -> Result<()>;
    fn remove_state(&mut self, key: &[u8]) -> Result<()>;
    fn put_outbox(&mut self, position: OutboxPosition, event: EventId, payload: &Bytes) -> Result<()>;
    fn remove_outbox(&mut self, up_to: OutboxPosition) -> Result<()>;
}
