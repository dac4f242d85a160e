//! Changes to a store: what an insert and each kind of [`Change`] do to the rows.
//!
//! Leases are not touched here: what has to happen to them is gathered in [`Effects`], so that a store can do it
//! at the right time, before its commit for new leases and after it for the end of old ones.

use std::collections::{BTreeSet, HashMap};

use crate::message::MessageId;

use super::lease::LeaseTable;
use super::order::Place;
use super::rows::{ItemHead, ItemRow, MessageRow, Result, RowsMut, corrupt};
use super::{
    Change, ChangeOutcome, Inserted, ItemId, Lane, Lease, NewMessage, Owner, Release, StorageError,
    StorageErrorKind,
};

/// The longest key of a state row, in octets.
const MAX_STATE_KEY: usize = 512;

/// What changes mean for the leases.
#[derive(Debug, Default)]
pub(super) struct Effects {
    grants: Vec<(ItemId, Place, Owner)>,
    ends: HashMap<ItemId, End>,
    freed: Vec<(ItemId, Place)>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Gone,
    Moved(Place),
    GivenBack,
}

impl Effects {
    /// Grants the leases asked for with new items. To be called before these can be seen by a claim.
    pub(super) fn grant(&self, leases: &mut LeaseTable) -> HashMap<ItemId, Lease> {
        self.grants.iter().map(|&(item, place, owner)| (item, leases.grant(item, place, owner))).collect()
    }

    /// Takes the grants back: the items were not stored.
    #[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "memory can not fail half way"))]
    pub(super) fn revoke(&self, leases: &mut LeaseTable) {
        self.grants.iter().for_each(|&(item, ..)| leases.end(item, None));
    }

    /// Ends leases and shows new free items to claims. To be called once claims see the changes themselves.
    pub(super) fn finish(self, leases: &mut LeaseTable) {
        for (item, end) in self.ends {
            let free = match end {
                End::Gone => None,
                End::Moved(place) => Some(place),
                End::GivenBack => leases.place(item),
            };
            leases.end(item, free);
        }
        self.freed.into_iter().for_each(|(item, place)| leases.freed(item, place));
    }
}

/// Fills the leases in that were granted.
pub(super) fn with_leases(mut answer: Inserted, granted: &HashMap<ItemId, Lease>) -> Inserted {
    if let Inserted::Stored(items) = &mut answer {
        items.iter_mut().for_each(|(item, lease)| *lease = granted.get(item).copied());
    }
    answer
}

/// Refuses what no store could keep.
pub(super) fn check_messages(messages: &[NewMessage]) -> Result<()> {
    for message in messages {
        let id = message.envelope.id;
        if message.items.is_empty() || message.items.iter().any(|item| item.recipients.is_empty()) {
            return invalid(format!("message {id}: every message needs an item, every item a recipient"));
        }
        if u32::try_from(message.body.len()).is_err() || u32::try_from(message.items.len()).is_err() {
            return invalid(format!("message {id}: body and number of items must be under 2^32"));
        }
    }
    Ok(())
}

/// Refuses what no store could keep.
pub(super) fn check_changes(changes: &[Change]) -> Result<()> {
    for change in changes {
        if let Change::PutState(row) = change
            && row.key.len() > MAX_STATE_KEY
        {
            let length = row.key.len();
            return invalid(format!("a state key of {length} octets is too long: at most {MAX_STATE_KEY}"));
        }
    }
    Ok(())
}

fn invalid(message: String) -> Result<()> {
    Err(StorageError::new(StorageErrorKind::Invalid, message))
}

/// Stores one message. Leases are filled in later, by [`with_leases`].
pub(super) fn insert<R: RowsMut>(
    rows: &mut R,
    effects: &mut Effects,
    message: &NewMessage,
) -> Result<Inserted> {
    let id = message.envelope.id;
    if rows.message(id)?.is_some() || rows.is_finished(id)? {
        return Ok(Inserted::Duplicate);
    }
    let body = rows.put_body(id, &message.body)?;
    let single = message.items.len() == 1;
    let mut stored = Vec::with_capacity(message.items.len());
    for new in &message.items {
        let mut recipients = new.recipients.clone();
        recipients.sort_by_key(|recipient| recipient.index);
        let lane = intern(rows, &new.lane)?;
        let row = ItemRow { lane, due: new.due, envelope: message.envelope.clone(), recipients };
        let (item, place) = put_new_item(rows, &row)?;
        if !single {
            rows.put_part(id, item)?;
        }
        match new.claim_for {
            Some(owner) => effects.grants.push((item, place, owner)),
            None => effects.freed.push((item, place)),
        }
        stored.push((item, None));
    }
    let sole = stored.first().filter(|_| single).map(|(item, _)| *item);
    let items = u32::try_from(stored.len()).unwrap_or(u32::MAX);
    rows.put_message(id, &MessageRow { body, items, host_id: message.host_id, sole })?;
    Ok(Inserted::Stored(stored))
}

fn intern<R: RowsMut>(rows: &mut R, lane: &Lane) -> Result<u64> {
    if let Some(id) = rows.lane_id(lane)? {
        return Ok(id);
    }
    let id = rows.counters().take_lane();
    rows.put_lane(id, lane)?;
    Ok(id)
}

fn put_new_item<R: RowsMut>(rows: &mut R, row: &ItemRow) -> Result<(ItemId, Place)> {
    let item = rows.counters().take_item();
    let place = Place::new(row.lane, row.due, &row.envelope);
    rows.put_item(item, row)?;
    for key in place.keys(item) {
        rows.put_order(key)?;
    }
    Ok((item, place))
}

/// Applies one change. `is_current` says which leases were current before the batch.
pub(super) fn change<R: RowsMut>(
    rows: &mut R,
    effects: &mut Effects,
    is_current: impl Fn(ItemId, Lease) -> bool,
    change: &Change,
) -> Result<ChangeOutcome> {
    let current =
        |effects: &Effects, item, lease| !effects.ends.contains_key(&item) && is_current(item, lease);
    match change {
        Change::Update { item, lease, settled, released } => {
            if !current(effects, *item, *lease) {
                return Ok(ChangeOutcome::Stale);
            }
            return update(rows, effects, *item, settled, released);
        }
        Change::Unclaim { item, lease } => {
            if !current(effects, *item, *lease) {
                return Ok(ChangeOutcome::Stale);
            }
            effects.ends.insert(*item, End::GivenBack);
        }
        Change::PutState(row) => rows.put_state(row)?,
        Change::DeleteState(key) => rows.remove_state(key)?,
        Change::Report { of, event, payload } => {
            if of.is_some_and(|(item, lease)| !current(effects, item, lease)) {
                return Ok(ChangeOutcome::Stale);
            }
            let position = rows.counters().take_outbox();
            rows.put_outbox(position, *event, payload)?;
        }
        Change::Acknowledge(position) => rows.remove_outbox(*position)?,
    }
    Ok(ChangeOutcome::Applied)
}

fn update<R: RowsMut>(
    rows: &mut R,
    effects: &mut Effects,
    item: ItemId,
    settled: &[u32],
    released: &[Release],
) -> Result<ChangeOutcome> {
    let Some(head) = rows.head(item)? else { return Ok(ChangeOutcome::Stale) };
    // A set, for an item may hold all 50,000 recipients of a message.
    let mut left: BTreeSet<u32> = head.indices.iter().copied().collect();
    for index in settled {
        left.remove(index);
    }
    let mut groups = Vec::new();
    for release in released {
        let mut group: Vec<_> =
            release.recipients.iter().filter(|recipient| left.remove(&recipient.index)).cloned().collect();
        group.sort_by_key(|recipient| recipient.index);
        if !group.is_empty() {
            groups.push((release.due, group));
        }
    }
    if left.len() == head.indices.len() {
        return Ok(ChangeOutcome::Applied);
    }
    if left.is_empty() && groups.is_empty() {
        finish_item(rows, item, &head)?;
        effects.ends.insert(item, End::Gone);
        return Ok(ChangeOutcome::Applied);
    }
    let Some(mut row) = rows.item(item)? else { return Ok(ChangeOutcome::Stale) };
    let mut groups = groups.into_iter();
    if left.is_empty() {
        // Nobody stays under the lease: the first group takes the item over.
        if let Some((due, recipients)) = groups.next() {
            (row.due, row.recipients) = (due, recipients);
            let place = Place::new(row.lane, row.due, &row.envelope);
            move_item(rows, item, head.place, place)?;
            effects.ends.insert(item, End::Moved(place));
        }
    } else {
        row.recipients.retain(|recipient| left.contains(&recipient.index));
    }
    rows.put_item(item, &row)?;
    let mut added = Vec::new();
    for (due, recipients) in groups {
        let part = ItemRow { lane: row.lane, due, envelope: row.envelope.clone(), recipients };
        let (new, place) = put_new_item(rows, &part)?;
        effects.freed.push((new, place));
        added.push(new);
    }
    if !added.is_empty() {
        add_parts(rows, head.message, item, &added)?;
    }
    Ok(ChangeOutcome::Applied)
}

fn move_item<R: RowsMut>(rows: &mut R, item: ItemId, from: Place, to: Place) -> Result<()> {
    for key in from.keys(item).filter(|key| !to.keys(item).any(|new| new == *key)) {
        rows.remove_order(key)?;
    }
    for key in to.keys(item).filter(|key| !from.keys(item).any(|old| old == *key)) {
        rows.put_order(key)?;
    }
    Ok(())
}

fn add_parts<R: RowsMut>(rows: &mut R, id: MessageId, item: ItemId, added: &[ItemId]) -> Result<()> {
    let message = message_of_items(rows, id)?;
    // Not known whether it was the only one: then it has its entry for certain.
    let sole = message.as_ref().map_or(Some(item), |message| message.sole);
    for part in sole.into_iter().chain(added.iter().copied()) {
        rows.put_part(id, part)?;
    }
    let Some(mut message) = message else { return Ok(()) };
    message.sole = None;
    message.items = message.items.saturating_add(u32::try_from(added.len()).unwrap_or(u32::MAX));
    rows.put_message(id, &message)
}

fn finish_item<R: RowsMut>(rows: &mut R, item: ItemId, head: &ItemHead) -> Result<()> {
    rows.remove_item(item)?;
    for key in head.place.keys(item) {
        rows.remove_order(key)?;
    }
    let Some(mut message) = message_of_items(rows, head.message)? else {
        return finish_item_alone(rows, head.message, item);
    };
    if message.sole.is_none() {
        rows.remove_part(head.message, item)?;
    }
    if message.items > 1 {
        message.items -= 1;
        return rows.put_message(head.message, &message);
    }
    rows.remove_message(head.message, &message)?;
    if message.host_id {
        let generation = rows.counters().generation;
        rows.put_finished(head.message, generation)?;
    }
    Ok(())
}

/// The row of a message that has items. `None`: it can not be read, which is no reason to keep an item that has ended: it
/// would be sent again.
fn message_of_items<R: RowsMut>(rows: &R, id: MessageId) -> Result<Option<MessageRow<R::Body>>> {
    let not_there = || corrupt(format!("the row of message {id}, which has items, is not there"));
    rows.readable(rows.message(id).and_then(|row| row.ok_or_else(not_there)))
}

/// As [`finish_item`], of a message whose row can not be read: that goes with the last item that is listed.
fn finish_item_alone<R: RowsMut>(rows: &mut R, id: MessageId, item: ItemId) -> Result<()> {
    rows.remove_part(id, item)?;
    if rows.parts_after(id, None)?.next().transpose()?.is_some() {
        return Ok(());
    }
    rows.forget_message(id)?;
    // Whether the host chose the id is not known. Remembering it does no harm.
    let generation = rows.counters().generation;
    rows.put_finished(id, generation)
}
