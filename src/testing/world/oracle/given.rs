//! What the store was given, and so what it may hold and hand out.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::MessageId;
use crate::storage::{
    Change, ChangeOutcome, Envelope, Inserted, Item, ItemId, ItemSummary, Lane, Lease, NewMessage, Recipient,
    StorageError, StorageErrorKind,
};

/// All of it. A call whose outcome nobody knows leaves what was there beside what it was to write.
#[derive(Default)]
pub(super) struct Given {
    messages: HashMap<MessageId, Message>,
    /// Those the store named.
    items: HashMap<ItemId, (MessageId, Lane)>,
}

#[derive(Default)]
struct Message {
    envelopes: Vec<Arc<Envelope>>,
    /// Those that are left, by index.
    recipients: HashMap<u32, Vec<State>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    lane: Lane,
    due: Timestamp,
    recipient: Recipient,
}

impl Given {
    /// The first that was stored of a message, if that is known.
    pub(super) fn envelope(&self, message: MessageId) -> Option<&Envelope> {
        self.messages.get(&message)?.envelopes.first().map(|envelope| &**envelope)
    }

    /// These are about to be stored.
    pub(super) fn inserting(&mut self, messages: &[NewMessage]) {
        for new in messages {
            let message = self.messages.entry(new.envelope.id).or_default();
            message.envelopes.push(new.envelope.clone());
            for state in states(new) {
                message.recipients.entry(state.recipient.index).or_default().push(state);
            }
        }
    }

    /// The store said what became of them.
    pub(super) fn inserted(&mut self, messages: &[NewMessage], result: &Result<Vec<Inserted>, StorageError>) {
        match result {
            Ok(outcomes) => {
                for (new, outcome) in messages.iter().zip(outcomes) {
                    match outcome {
                        Inserted::Stored(items) => self.stored(new, items),
                        Inserted::Duplicate => self.refused(new),
                    }
                }
            }
            Err(error) if error.kind() == StorageErrorKind::OutcomeUnknown => {}
            Err(_) => messages.iter().for_each(|new| self.refused(new)),
        }
    }

    fn stored(&mut self, new: &NewMessage, items: &[(ItemId, Option<Lease>)]) {
        let id = new.envelope.id;
        let named = items.iter().zip(&new.items).map(|((item, _), new)| (*item, (id, new.lane.clone())));
        self.items.extend(named);
        let recipients = states(new).map(|state| (state.recipient.index, vec![state])).collect();
        self.messages.insert(id, Message { envelopes: vec![new.envelope.clone()], recipients });
    }

    fn refused(&mut self, new: &NewMessage) {
        let Some(message) = self.messages.get_mut(&new.envelope.id) else { return };
        take_last(&mut message.envelopes, &new.envelope);
        for state in states(new) {
            message.take(&state);
        }
    }

    /// These changes are about to be made.
    pub(super) fn committing(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Update { item, released, .. } = change else { continue };
            let Some((message, lane)) = self.message_of(*item) else { continue };
            for release in released {
                for recipient in &release.recipients {
                    let state = State { lane: lane.clone(), due: release.due, recipient: recipient.clone() };
                    message.recipients.entry(recipient.index).or_default().push(state);
                }
            }
        }
    }

    /// The store said what became of them.
    pub(super) fn committed(
        &mut self,
        changes: &[Change],
        result: &Result<Vec<ChangeOutcome>, StorageError>,
    ) {
        if result.as_ref().is_err_and(|error| error.kind() == StorageErrorKind::OutcomeUnknown) {
            return;
        }
        for (number, change) in changes.iter().enumerate() {
            let Change::Update { item, settled, released, .. } = change else { continue };
            let Some((message, lane)) = self.message_of(*item) else { continue };
            let outcome = result.as_ref().ok().and_then(|outcomes| outcomes.get(number));
            let is_applied = outcome == Some(&ChangeOutcome::Applied);
            for index in settled.iter().filter(|_| is_applied) {
                message.recipients.remove(index);
            }
            for release in released {
                for recipient in &release.recipients {
                    let state = State { lane: lane.clone(), due: release.due, recipient: recipient.clone() };
                    if is_applied {
                        message.recipients.insert(recipient.index, vec![state]);
                    } else {
                        message.take(&state);
                    }
                }
            }
        }
    }

    fn message_of(&mut self, item: ItemId) -> Option<(&mut Message, Lane)> {
        let (message, lane) = self.items.get(&item)?;
        Some((self.messages.get_mut(message)?, lane.clone()))
    }

    /// The store handed these out. An error says what it was not given.
    pub(super) fn claimed(&mut self, items: &[Item]) -> Result<(), (MessageId, String)> {
        for item in items {
            self.items.insert(item.id, (item.envelope.id, item.lane.clone()));
            self.judge(&item.envelope, &item.lane, item.due, &item.recipients)?;
        }
        Ok(())
    }

    /// The store says that it holds this. An error says what it was not given.
    pub(super) fn listed(&self, item: &ItemSummary) -> Result<(), (MessageId, String)> {
        self.judge(&item.envelope, &item.lane, item.due, &item.recipients)
    }

    fn judge(
        &self,
        envelope: &Envelope,
        lane: &Lane,
        due: Timestamp,
        recipients: &[Recipient],
    ) -> Result<(), (MessageId, String)> {
        // It may be from before this world.
        let Some(message) = self.messages.get(&envelope.id) else { return Ok(()) };
        let id = envelope.id;
        if !message.envelopes.iter().any(|given| **given == *envelope) {
            let given = &message.envelopes;
            return Err((id, format!("the store has {envelope:?}, and was given {given:?}")));
        }
        for recipient in recipients {
            let state = State { lane: lane.clone(), due, recipient: recipient.clone() };
            let given = message.recipients.get(&recipient.index).map(Vec::as_slice).unwrap_or_default();
            if given.is_empty() {
                let address = &recipient.address;
                return Err((id, format!("the store has {id} to {address}, who is settled or nobody's")));
            }
            if !given.contains(&state) {
                return Err((id, format!("the store has {state:?} of {id}, and was given {given:?}")));
            }
        }
        Ok(())
    }
}

impl Message {
    /// This state was not written.
    fn take(&mut self, state: &State) {
        if let Some(states) = self.recipients.get_mut(&state.recipient.index) {
            take_last(states, state);
        }
    }
}

fn states(new: &NewMessage) -> impl Iterator<Item = State> {
    new.items.iter().flat_map(|item| {
        let state = |recipient: &Recipient| State {
            lane: item.lane.clone(),
            due: item.due,
            recipient: recipient.clone(),
        };
        item.recipients.iter().map(state)
    })
}

fn take_last<T: PartialEq>(all: &mut Vec<T>, one: &T) {
    if let Some(place) = all.iter().rposition(|other| other == one) {
        all.remove(place);
    }
}
