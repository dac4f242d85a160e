//! What a store does about crashes, troubles, races and futures that are dropped, rightly and with faults.

use std::sync::Arc;

use postrider::message::MessageId;
use postrider::storage::{
    Change, ChangeOutcome, ClaimRequest, Inserted, Item, NewMessage, OutboxEntry, Storage, StorageErrorKind,
};
use postrider::testing::conformance::Trouble;

use crate::faults::Fault;
use crate::faulty::{FaultyStore, Result, Write, error};

/// Others get their turns.
fn hesitate() {
    (0..3_000).for_each(|_| std::thread::yield_now());
}

impl FaultyStore {
    /// What a call that writes meets; what it was to write.
    pub(crate) async fn meet_trouble(&self, write: Write) -> Result<()> {
        if self.open().is_poisoned && !self.has(Fault::GoesOnAfterAFailedFlush) {
            return Err(error(StorageErrorKind::Poisoned));
        }
        let trouble = self.kept().trouble;
        match trouble {
            Some(Trouble::NoRoom) => {
                if self.has(Fault::StoresWhatFoundNoRoom) && matches!(write, Write::Insert(_)) {
                    self.write_all(vec![write]).await;
                }
                let temporary = self.has(Fault::SaysTemporaryForFull);
                Err(error(if temporary { StorageErrorKind::Temporary } else { StorageErrorKind::Full }))
            }
            Some(_) => {
                self.open().is_poisoned = true;
                self.kept().a_flush_failed = true;
                self.kept().unflushed.push(write.clone());
                Err(error(match self.fault {
                    Fault::SaysTemporaryForAFailedFlush => StorageErrorKind::Temporary,
                    Fault::WritesWhatIsPoisoned => {
                        self.write_all(vec![write]).await;
                        StorageErrorKind::Poisoned
                    }
                    _ => StorageErrorKind::OutcomeUnknown,
                }))
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn write_all(&self, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Insert(messages) => drop(self.storage.insert(messages).await.unwrap()),
                Write::Commit(changes) => drop(self.storage.commit(changes).await.unwrap()),
            }
        }
    }

    /// Does what earlier openings were to do whose calls were dropped, and remembers this one if it is.
    pub(crate) async fn delay_if_dropped(&self, write: Write) {
        if !self.has(Fault::DroppedCallsComeAfterAReopen) {
            return;
        }
        let opening = self.kept().openings;
        let earlier: Vec<_> = self.kept().dropped.extract_if(.., |(of, _)| *of < opening).collect();
        self.write_all(earlier.into_iter().map(|(_, write)| write).collect()).await;
        let mut late = Late { store: self, write: Some(write) };
        tokio::task::yield_now().await;
        late.write = None;
    }

    /// Looks first and stores then, without a lock over both.
    pub(crate) async fn insert_in_a_race(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        let known: Vec<_> =
            messages.iter().map(|message| self.kept().inserted.contains(&message.envelope.id)).collect();
        hesitate();
        let ids: Vec<_> = messages.iter().map(|message| message.envelope.id).collect();
        let mut answers = self.storage.insert(messages.clone()).await?;
        for ((answer, is_known), message) in answers.iter_mut().zip(known).zip(messages) {
            if *answer == Inserted::Duplicate && !is_known {
                *answer = self.storage.insert(vec![renamed(message)]).await?.remove(0);
            }
        }
        self.kept().inserted.extend(ids);
        Ok(answers)
    }

    pub(crate) async fn insert_in_halves(&self, mut messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        if messages.iter().any(|message| message.items.is_empty()) {
            return self.storage.insert(messages).await;
        }
        let rest = messages.split_off(messages.len() / 2);
        let mut answers = self.storage.insert(messages).await?;
        tokio::task::yield_now().await;
        answers.extend(self.storage.insert(rest).await?);
        Ok(answers)
    }

    /// Positions are given in one order and shown in another.
    pub(crate) async fn commit_and_show_late(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        let events: Vec<_> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Report { event, .. } => Some(*event),
                _ => None,
            })
            .collect();
        self.open().late.extend(events.iter().copied());
        let outcomes = self.commit_whole(changes).await;
        hesitate();
        self.open().late.retain(|event| !events.contains(event));
        outcomes
    }

    /// A lease that was current when the call began counts.
    pub(crate) async fn commit_what_was_current(
        &self,
        mut changes: Vec<Change>,
    ) -> Result<Vec<ChangeOutcome>> {
        let was_current: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Update { item, lease, .. } => self.current(*item) == Some(*lease),
                _ => false,
            })
            .collect();
        hesitate();
        for (change, was_current) in changes.iter_mut().zip(was_current) {
            if let Change::Update { item, lease, .. } = change
                && was_current
            {
                *lease = self.current(*item).unwrap_or(*lease);
            }
        }
        self.commit_whole(changes).await
    }

    pub(crate) async fn commit_in_halves(&self, mut changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        let rest = changes.split_off(changes.len() / 2);
        let mut outcomes = self.commit_whole(changes).await?;
        tokio::task::yield_now().await;
        outcomes.extend(self.commit_whole(rest).await?);
        Ok(outcomes)
    }

    /// Takes what it claims out of the store, and puts it back once it is to return.
    pub(crate) async fn lose_if_dropped(&self, request: &ClaimRequest) {
        let Ok(claimed) = self.storage.claim(request.clone()).await else { return };
        let (settled, unclaimed): (Vec<_>, Vec<_>) = claimed
            .items
            .iter()
            .map(|Item { id, lease, recipients, .. }| {
                let settled = recipients.iter().map(|recipient| recipient.index).collect();
                let (item, lease) = (*id, *lease);
                let update = Change::Update { item, lease, settled, released: vec![] };
                (update, Change::Unclaim { item, lease })
            })
            .unzip();
        // Its end takes them with it.
        let mut guard = Guard { store: self, changes: settled };
        tokio::task::yield_now().await;
        guard.changes.clear();
        let _ = self.storage.commit(unclaimed).await;
    }

    /// Acknowledges what it reads, unless it gets to return it.
    pub(crate) async fn take_if_dropped(&self, entries: &[OutboxEntry]) {
        let changes = entries.last().map(|entry| Change::Acknowledge(entry.position)).into_iter().collect();
        let mut guard = Guard { store: self, changes };
        tokio::task::yield_now().await;
        guard.changes.clear();
    }
}

/// Remembers a call as it is dropped.
struct Late<'a> {
    store: &'a FaultyStore,
    write: Option<Write>,
}

impl Drop for Late<'_> {
    fn drop(&mut self) {
        let mut kept = self.store.kept();
        let opening = kept.openings;
        kept.dropped.extend(self.write.take().map(|write| (opening, write)));
    }
}

/// Commits as it is dropped.
struct Guard<'a> {
    store: &'a FaultyStore,
    changes: Vec<Change>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        if !changes.is_empty() {
            // A store in memory does not wait.
            let _ = futures::FutureExt::now_or_never(self.store.storage.commit(changes));
        }
    }
}

/// Under an id of its own.
fn renamed(mut message: NewMessage) -> NewMessage {
    let envelope = Arc::make_mut(&mut message.envelope);
    let number = envelope.id.as_uuid().as_u128() | 1 << 100;
    envelope.id = MessageId::from_uuid(uuid::Uuid::from_u128(number));
    message
}
