//! Stores to test and messages to put into them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::message::{Address, Domain, MessageId, Priority};
use crate::storage::{
    BodyKey, Change, ChangeOutcome, ClaimPart, ClaimRequest, Claimed, Envelope, Inserted, Item, ItemId, Lane,
    Lease, NewItem, NewMessage, Owner, Recipient, Storage, StorageError,
};

/// A store that can be closed and opened again, which is what a crash is to it.
pub(crate) trait Fixture: Sized {
    async fn open() -> Self;
    async fn reopen(self) -> Self;
    fn store(&self) -> &dyn Storage;

    async fn insert(&self, message: NewMessage) -> Inserted {
        self.store().insert(vec![message]).await.unwrap().remove(0)
    }

    async fn claim(&self, owner: Owner, part: ClaimPart) -> Vec<Item> {
        self.claimed(owner, at(1_000), part).await.items
    }

    /// At `now`, holding for a minute.
    async fn claimed(&self, owner: Owner, now: Timestamp, part: ClaimPart) -> Claimed {
        let until = now + Duration::from_secs(60);
        self.store().claim(ClaimRequest { owner, now, until, what: vec![part] }).await.unwrap()
    }

    async fn change(&self, change: Change) -> ChangeOutcome {
        self.store().commit(vec![change]).await.unwrap().remove(0)
    }

    async fn body(&self, id: MessageId) -> Result<Bytes, StorageError> {
        self.store().bodies(vec![BodyKey(id)]).await.unwrap().remove(0)
    }
}

pub(crate) struct InMemory(crate::storage::MemoryStorage);

impl Fixture for InMemory {
    async fn open() -> Self {
        Self(crate::storage::MemoryStorage::new())
    }

    async fn reopen(self) -> Self {
        Self(self.0.reopened())
    }

    fn store(&self) -> &dyn Storage {
        &self.0
    }
}

#[cfg(feature = "disk")]
pub(crate) struct OnDisk {
    store: Option<crate::storage::DiskStorage>,
    pub(crate) folder: tempfile::TempDir,
}

#[cfg(feature = "disk")]
impl Fixture for OnDisk {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: Some(open_small(&folder).await), folder }
    }

    async fn reopen(mut self) -> Self {
        self.store = None;
        self.store = Some(open_small(&self.folder).await);
        self
    }

    fn store(&self) -> &dyn Storage {
        self.store.as_ref().unwrap()
    }
}

#[cfg(feature = "disk")]
async fn open_small(folder: &tempfile::TempDir) -> crate::storage::DiskStorage {
    // Small files, so that every test meets more than one.
    let options = crate::storage::DiskOptions::new().with_segment_size(4096).with_reserve(4096);
    crate::storage::DiskStorage::open_with(folder.path(), options).await.unwrap()
}

pub(crate) const A: Owner = Owner(1);
pub(crate) const B: Owner = Owner(2);

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

pub(crate) fn id(number: u128) -> MessageId {
    MessageId::from_uuid(uuid::Uuid::from_u128(number))
}

pub(crate) fn lane(domain: &str) -> Lane {
    Lane { domain: Domain::parse(domain).unwrap(), source: "s".into(), priority: Priority::Normal }
}

pub(crate) fn due(domain: &str, before: u64, limit: usize) -> ClaimPart {
    ClaimPart::Due { lane: lane(domain), before: at(before), limit }
}

pub(crate) fn recipient(index: u32, domain: &str) -> Recipient {
    let address = Address::parse(&format!("r{index}@{domain}")).unwrap();
    Recipient { index, address, attempts: 0, last: None }
}

pub(crate) fn item(domain: &str, due: u64, recipients: u32) -> NewItem {
    let recipients = (0..recipients).map(|index| recipient(index, domain)).collect();
    NewItem { lane: lane(domain), due: at(due), recipients, claim_for: None }
}

/// A message of one item with one recipient, due at and aged from `time`.
pub(crate) fn message(number: u128, domain: &str, time: u64) -> NewMessage {
    message_of(number, time, vec![item(domain, time, 1)])
}

pub(crate) fn message_of(number: u128, age_from: u64, items: Vec<NewItem>) -> NewMessage {
    let body = Bytes::from(format!("Subject: {number}\r\n\r\nbody\r\n"));
    let envelope = Envelope {
        id: id(number),
        reference: Some(format!("ref {number}")),
        reverse_path: Some(Address::parse("from@sender.example").unwrap()),
        submitted_at: at(age_from),
        age_from: at(age_from),
        expires_at: None,
        size: body.len() as u64,
        eight_bit: false,
        recipient_count: items.iter().map(|item| item.recipients.len() as u32).sum(),
        tags: BTreeMap::new(),
    };
    NewMessage { envelope: Arc::new(envelope), body, items, host_id: false }
}

/// The message with its envelope changed.
pub(crate) fn with(mut message: NewMessage, change: impl FnOnce(&mut Envelope)) -> NewMessage {
    change(Arc::make_mut(&mut message.envelope));
    message
}

pub(crate) fn stored(inserted: Inserted) -> Vec<(ItemId, Option<Lease>)> {
    match inserted {
        Inserted::Stored(items) => items,
        Inserted::Duplicate => panic!("a duplicate"),
    }
}

pub(crate) fn settle(item: &Item, settled: &[u32]) -> Change {
    Change::Update { item: item.id, lease: item.lease, settled: settled.to_vec(), released: Vec::new() }
}

/// The numbers of the messages the items belong to.
pub(crate) fn numbers(items: &[Item]) -> Vec<u128> {
    items.iter().map(|item| item.envelope.id.as_uuid().as_u128()).collect()
}
