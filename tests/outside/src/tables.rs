//! What is stored, and what changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postrider::clock::Timestamp;
use postrider::message::{EventId, MessageId};
use postrider::storage::{Envelope, ID_MEMORY, ItemId, Lane, Recipient};
use serde::{Deserialize, Serialize};

/// All that is durable.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tables {
    pub(crate) openings: u64,
    last_item: u64,
    last_position: u64,
    pub(crate) items: BTreeMap<ItemId, Row>,
    pub(crate) lanes: BTreeMap<Lane, BTreeSet<ItemId>>,
    pub(crate) messages: BTreeMap<MessageId, Stored>,
    /// Ids that hosts chose, and since when the message is known to be gone.
    pub(crate) finished: BTreeMap<MessageId, Option<Timestamp>>,
    pub(crate) state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) outbox: BTreeMap<u64, (EventId, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) message: MessageId,
    pub(crate) lane: Lane,
    pub(crate) due: Timestamp,
    pub(crate) recipients: Vec<Recipient>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) body: Vec<u8>,
    pub(crate) items: BTreeSet<ItemId>,
    host_id: bool,
}

/// A change. The same entries in the same order give the same tables, keys included.
#[derive(Serialize, Deserialize)]
pub(crate) enum Entry {
    Opened,
    Insert {
        envelope: Arc<Envelope>,
        body: Vec<u8>,
        items: Vec<NewRow>,
        host_id: bool,
    },
    Update {
        item: ItemId,
        settled: Vec<u32>,
        released: Vec<(Timestamp, Vec<Recipient>)>,
    },
    PutState(Vec<u8>, Vec<u8>),
    DeleteState(Vec<u8>),
    Report(EventId, Vec<u8>),
    Acknowledge(u64),
    /// It is that late: ids finished for long enough are forgotten.
    Time(Timestamp),
}

pub(crate) type NewRow = (Lane, Timestamp, Vec<Recipient>);

impl Tables {
    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.messages.contains_key(&id) || self.finished.contains_key(&id)
    }

    pub(crate) fn envelope(&self, row: &Row) -> Option<&Arc<Envelope>> {
        self.messages.get(&row.message).map(|message| &message.envelope)
    }

    /// The time would change something.
    pub(crate) fn is_late(&self, now: Timestamp) -> bool {
        self.finished.values().any(|since| since.is_none_or(|since| since.saturating_add(ID_MEMORY) < now))
    }

    /// Returns the keys of new items.
    pub(crate) fn apply(&mut self, entry: Entry) -> Vec<ItemId> {
        match entry {
            Entry::Opened => self.openings += 1,
            Entry::Insert { envelope, body, items, host_id } => {
                let id = envelope.id;
                self.messages.insert(id, Stored { envelope, body, items: BTreeSet::new(), host_id });
                return items.into_iter().map(|row| self.add(id, row)).collect();
            }
            Entry::Update { item, settled, released } => return self.update(item, &settled, released),
            Entry::PutState(key, value) => drop(self.state.insert(key, value)),
            Entry::DeleteState(key) => drop(self.state.remove(&key)),
            Entry::Report(event, payload) => {
                self.last_position += 1;
                self.outbox.insert(self.last_position, (event, payload));
            }
            Entry::Acknowledge(position) => self.outbox.retain(|&at, _| at > position),
            Entry::Time(now) => {
                self.finished.retain(|_, since| since.is_none_or(|at| at.saturating_add(ID_MEMORY) >= now));
                self.finished.values_mut().for_each(|since| *since = since.or(Some(now)));
            }
        }
        Vec::new()
    }

    fn add(&mut self, message: MessageId, (lane, due, mut recipients): NewRow) -> ItemId {
        self.last_item += 1;
        let item = ItemId(self.last_item);
        recipients.sort_by_key(|recipient| recipient.index);
        self.lanes.entry(lane.clone()).or_default().insert(item);
        self.items.insert(item, Row { message, lane, due, recipients });
        if let Some(message) = self.messages.get_mut(&message) {
            message.items.insert(item);
        }
        item
    }

    fn update(
        &mut self,
        item: ItemId,
        settled: &[u32],
        released: Vec<(Timestamp, Vec<Recipient>)>,
    ) -> Vec<ItemId> {
        let Some(row) = self.items.get_mut(&item) else { return Vec::new() };
        // An index that is not there any more is passed over.
        let mut left: BTreeSet<u32> = row.recipients.iter().map(|recipient| recipient.index).collect();
        left.retain(|index| !settled.contains(index));
        let mut groups = Vec::new();
        for (due, mut group) in released {
            group.retain(|recipient| left.remove(&recipient.index));
            if !group.is_empty() {
                groups.push((row.lane.clone(), due, group));
            }
        }
        row.recipients.retain(|recipient| left.contains(&recipient.index));
        let message = row.message;
        let new = groups.into_iter().map(|group| self.add(message, group)).collect();
        if left.is_empty() {
            self.remove(item);
        }
        new
    }

    /// The body dies with the last item.
    fn remove(&mut self, item: ItemId) {
        let Some(row) = self.items.remove(&item) else { return };
        if let Some(lane) = self.lanes.get_mut(&row.lane) {
            lane.remove(&item);
            if lane.is_empty() {
                self.lanes.remove(&row.lane);
            }
        }
        let Some(message) = self.messages.get_mut(&row.message) else { return };
        message.items.remove(&item);
        if message.items.is_empty() {
            if message.host_id {
                self.finished.insert(row.message, None);
            }
            self.messages.remove(&row.message);
        }
    }
}
