//! A store that keeps every rule, save where one fault is put in. It damages what it is told to.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use postrider::clock::Timestamp;
use postrider::message::{EventId, MessageId};
use postrider::storage::{
    BodyKey, Change, ChangeOutcome, ClaimPart, ClaimRequest, Claimed, Filter, Inserted, Item, ItemId,
    ItemSummary, Lane, LaneHead, Lease, ListPosition, MemoryStorage, NewMessage, OutboxEntry, OutboxPosition,
    Owner, StateRow, Storage, StorageError, StorageErrorKind, Usage,
};
use postrider::testing::conformance::{Damage, NotSupported, StorageUnderTest, Trouble};

use crate::faults::Fault;

pub(crate) type Result<T> = std::result::Result<T, StorageError>;

thread_local! {
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

/// Stores made meanwhile by this thread have the fault.
pub(crate) fn with_fault<T>(fault: Fault, work: impl FnOnce() -> T) -> T {
    FAULT.set(fault);
    let done = work();
    FAULT.set(Fault::None);
    done
}

/// Where the store lies.
pub(crate) struct Faulty {
    fault: Fault,
    storage: MemoryStorage,
    kept: Arc<Mutex<Kept>>,
}

/// What outlives a reopen.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) openings: usize,
    last_message: Option<MessageId>,
    pub(crate) damaged: Vec<Damage>,
    /// The process ended with nothing closed.
    crashed: bool,
    pub(crate) trouble: Option<Trouble>,
    /// Messages of inserts that have returned.
    pub(crate) inserted: HashSet<MessageId>,
    bodies: HashMap<MessageId, Bytes>,
    /// Calls that were dropped, and of which opening.
    pub(crate) dropped: Vec<(usize, Write)>,
    /// Positions are shown so much smaller than they are.
    shift: u64,
    last_position: u64,
    /// Of calls whose flush failed.
    pub(crate) unflushed: Vec<Write>,
    pub(crate) a_flush_failed: bool,
}

/// What a call is to write.
#[derive(Clone)]
pub(crate) enum Write {
    Insert(Vec<NewMessage>),
    Commit(Vec<Change>),
}

/// What does not.
#[derive(Default)]
pub(crate) struct Open {
    last_claimed: Option<Item>,
    leases: HashMap<ItemId, Lease>,
    owners: HashMap<Lease, Owner>,
    renewed: HashSet<Owner>,
    heads: Vec<LaneHead>,
    lanes: BTreeSet<Lane>,
    acknowledged: OutboxPosition,
    told: HashSet<EventId>,
    in_flight: Vec<Item>,
    /// Damage that was met, and what of it is not told yet.
    pub(crate) met: HashSet<String>,
    pub(crate) damage: Vec<StorageError>,
    /// A flush has failed.
    pub(crate) is_poisoned: bool,
    /// Outcomes of commits that have not returned.
    pub(crate) late: HashSet<EventId>,
}

impl StorageUnderTest for Faulty {
    type Store = FaultyStore;

    async fn create() -> Self {
        Self { fault: FAULT.get(), storage: MemoryStorage::new(), kept: Arc::default() }
    }

    async fn open(&self) -> FaultyStore {
        let storage = match self.fault {
            Fault::LeasesOutliveReopens
            | Fault::LeasesOfBeforeHoldAndAreStale
            | Fault::LeasesOfBeforeNeverRunOut => self.storage.clone(),
            _ => self.storage.reopened(),
        };
        self.kept.lock().unwrap().openings += 1;
        let (fault, kept) = (self.fault, self.kept.clone());
        let store = FaultyStore { fault, storage, kept, open: Mutex::default() };
        store.lose().await;
        store
    }

    async fn damage(&self, what: Damage) -> std::result::Result<(), NotSupported> {
        self.kept.lock().unwrap().damaged.push(what);
        Ok(())
    }

    async fn crash(&self, store: FaultyStore) -> std::result::Result<(), NotSupported> {
        drop(store);
        self.kept.lock().unwrap().crashed = true;
        Ok(())
    }

    async fn trouble(&self, trouble: Option<Trouble>) -> std::result::Result<(), NotSupported> {
        self.kept.lock().unwrap().trouble = trouble;
        Ok(())
    }
}

pub(crate) struct FaultyStore {
    pub(crate) fault: Fault,
    pub(crate) storage: MemoryStorage,
    kept: Arc<Mutex<Kept>>,
    open: Mutex<Open>,
}

pub(crate) fn error(kind: StorageErrorKind) -> StorageError {
    StorageError::new(kind, "put in")
}

fn to_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_unix_seconds(time.as_unix_micros() / 1_000_000)
}

impl FaultyStore {
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    pub(crate) fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap()
    }

    pub(crate) fn current(&self, item: ItemId) -> Option<Lease> {
        self.open().leases.get(&item).copied()
    }

    fn is_renewed(&self, lease: Lease) -> bool {
        let open = self.open();
        open.owners.get(&lease).is_some_and(|owner| open.renewed.contains(owner))
    }

    /// What is not there any more after a reopen.
    async fn lose(&self) {
        let last = self.kept().last_message.take();
        let crashed = std::mem::take(&mut self.kept().crashed);
        let loses = self.has(Fault::LosesTheLastMessageOnReopen)
            || crashed && self.has(Fault::LosesTheLastMessageInACrash)
            || crashed
                && self.has(Fault::LosesTheLastMessageInACrashAfterAFailedFlush)
                && self.kept().a_flush_failed;
        if crashed && self.has(Fault::OutboxCountsAnewAfterACrash) {
            self.count_anew().await;
        }
        if crashed && self.has(Fault::AppliesWhatFailedInACrash) {
            let unflushed = std::mem::take(&mut self.kept().unflushed);
            self.write_all(unflushed).await;
        }
        if let (true, Some(message)) = (loses, last) {
            for summary in self.storage.list(Filter::Message(message), None, 99).await.unwrap() {
                self.settle(summary).await;
            }
        }
        if self.has(Fault::LosesStateOnReopen) {
            self.delete_state().await;
        }
    }

    /// If the outbox is empty, its next entry has the first position again.
    async fn count_anew(&self) {
        if self.storage.outbox(OutboxPosition::default(), 1).await.unwrap().is_empty() {
            let mut kept = self.kept();
            kept.shift = kept.last_position;
        }
    }

    async fn delete_state(&self) {
        for row in self.storage.state(None, 999).await.unwrap() {
            self.storage.commit(vec![Change::DeleteState(row.key)]).await.unwrap();
        }
    }

    async fn settle(&self, summary: ItemSummary) {
        let (owner, now) = (Owner(u64::MAX), Timestamp::EPOCH);
        let what = vec![ClaimPart::Items(vec![summary.id])];
        let claimed = self.storage.claim(ClaimRequest { owner, now, until: now, what }).await.unwrap();
        let settled = summary.recipients.iter().map(|recipient| recipient.index).collect();
        for Item { id: item, lease, .. } in claimed.items {
            let released = vec![];
            let settled = Vec::clone(&settled);
            self.storage.commit(vec![Change::Update { item, lease, settled, released }]).await.unwrap();
        }
    }

    fn changed_message(&self, mut message: NewMessage) -> NewMessage {
        let body = &mut message.body;
        match self.fault {
            Fault::LosesTags => Arc::make_mut(&mut message.envelope).tags.clear(),
            Fault::CutsTags => {
                let tags = &mut Arc::make_mut(&mut message.envelope).tags;
                tags.values_mut().for_each(|value| *value = value.chars().take(60).collect());
            }
            Fault::CapsAttempts => {
                let recipients = message.items.iter_mut().flat_map(|item| &mut item.recipients);
                recipients.for_each(|recipient| recipient.attempts = recipient.attempts.min(1));
            }
            Fault::ForgetsFailuresAtInsert => {
                let recipients = message.items.iter_mut().flat_map(|item| &mut item.recipients);
                recipients.for_each(|recipient| recipient.last = None);
            }
            Fault::ForgetsHostIds => message.host_id = false,
            Fault::CutsBodiesAtNul => {
                let end = body.iter().position(|octet| *octet == 0).unwrap_or(body.len());
                body.truncate(end);
            }
            Fault::CutsLargeBodies => body.truncate(16 << 20),
            Fault::ClaimsNothingAtInsert => message.items.iter_mut().for_each(|item| item.claim_for = None),
            Fault::RoundsDueTimes => {
                message.items.iter_mut().for_each(|item| item.due = to_seconds(item.due))
            }
            Fault::AcceptsEmptyMessages => message.items.retain(|item| !item.recipients.is_empty()),
            Fault::StoresAnIdTwice => {
                let id = Arc::make_mut(&mut message.envelope);
                let number = id.id.as_uuid().as_u128() | u128::from(fresh()) << 64;
                id.id = MessageId::from_uuid(uuid::Uuid::from_u128(number));
            }
            _ => {}
        }
        message
    }

    /// The change as this store understands it; `None`: it does nothing.
    fn changed(&self, change: Change) -> Option<Change> {
        self.written(&change);
        match change {
            Change::Update { item, mut lease, mut settled, mut released } => {
                match self.fault {
                    Fault::IgnoresFencing => lease = self.current(item).unwrap_or(lease),
                    Fault::LeasesOfBeforeHoldAndAreStale if !self.open().owners.contains_key(&lease) => {
                        lease = Lease(0);
                    }
                    Fault::RenewsWhatOthersHave if self.is_renewed(lease) => {
                        lease = self.current(item).unwrap_or(lease);
                    }
                    Fault::RoundsDueTimes => {
                        released.iter_mut().for_each(|part| part.due = to_seconds(part.due))
                    }
                    Fault::CapsAttempts => {
                        let recipients = released.iter_mut().flat_map(|part| &mut part.recipients);
                        recipients.for_each(|recipient| recipient.attempts = recipient.attempts.min(1));
                    }
                    Fault::SettlesAThousandAtMost => settled.truncate(1_000),
                    Fault::ReleasesAllAtOnce => {
                        if let Some((first, rest)) = released.split_first_mut() {
                            rest.iter_mut().for_each(|part| part.due = first.due);
                        }
                    }
                    Fault::SettlesWhoIsNotNamed => {
                        let named = |index: &u32| {
                            released
                                .iter()
                                .flat_map(|part| &part.recipients)
                                .any(|other| other.index == *index)
                        };
                        settled = (0..10).filter(|index| !named(index)).collect();
                    }
                    Fault::ReleasesUnderTheLease => released.clear(),
                    _ => {}
                }
                Some(Change::Update { item, lease, settled, released })
            }
            Change::Unclaim { item, mut lease } => {
                if matches!(self.fault, Fault::UnclaimsWithoutALease | Fault::IgnoresFencing) {
                    lease = self.current(item).unwrap_or(lease);
                }
                if self.has(Fault::LosesWhatIsUnclaimed) {
                    let settled = (0..10).collect();
                    return Some(Change::Update { item, lease, settled, released: vec![] });
                }
                Some(Change::Unclaim { item, lease })
            }
            Change::PutState(mut row) => {
                match self.fault {
                    Fault::KeepsLongStateKeys => row.key.truncate(512),
                    Fault::CutsState => row.value.truncate(200),
                    _ => {}
                }
                Some(Change::PutState(row))
            }
            Change::Report { of, event, mut payload } => {
                if self.has(Fault::CutsOutcomes) {
                    payload.truncate(100);
                }
                let of = of.filter(|_| !self.has(Fault::ReportsUnderStaleLeases));
                Some(Change::Report { of, event, payload })
            }
            Change::Acknowledge(position) => match self.fault {
                Fault::OutboxKeepsAll => None,
                Fault::OutboxComesBackOnReopen => {
                    let mut open = self.open();
                    open.acknowledged = open.acknowledged.max(position);
                    None
                }
                _ => Some(Change::Acknowledge(OutboxPosition(position.0 + self.kept().shift))),
            },
            other => Some(other),
        }
    }

    pub(crate) async fn commit_whole(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        let changed: Vec<_> = changes.into_iter().map(|change| self.changed(change)).collect();
        let real = changed.iter().flatten().cloned().collect();
        let mut outcomes = self.storage.commit(real).await?.into_iter();
        Ok(changed
            .iter()
            .map(|c| c.as_ref().map_or(ChangeOutcome::Applied, |_| outcomes.next().unwrap()))
            .collect())
    }

    fn changed_request(&self, mut request: ClaimRequest) -> ClaimRequest {
        let mut more = Vec::new();
        for part in &mut request.what {
            match part {
                ClaimPart::Age { lane, before, limit } if self.has(Fault::ClaimsByAgeWhatExpires) => {
                    let (lane, before, limit) = (lane.clone(), *before, *limit);
                    more.push(ClaimPart::AgeWithExpiry { lane, before, limit });
                }
                ClaimPart::Age { limit, .. } | ClaimPart::Expiry { limit, .. }
                    if self.has(Fault::ClaimsOverTheLimitOfAge) =>
                {
                    *limit = 99;
                }
                _ => {}
            }
        }
        request.what.extend(more);
        match self.fault {
            Fault::LeasesNeverRunOut => request.now = Timestamp::EPOCH,
            Fault::LeasesOfBeforeNeverRunOut if self.kept().openings > 1 => request.now = Timestamp::EPOCH,
            Fault::ClaimsPartsBackwards => request.what.reverse(),
            _ => {}
        }
        request
    }
}

/// No two are the same.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[async_trait]
impl Storage for FaultyStore {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        self.meet_trouble(Write::Insert(messages.clone())).await?;
        self.delay_if_dropped(Write::Insert(messages.clone())).await;
        let mut messages: Vec<_> =
            messages.into_iter().map(|message| self.changed_message(message)).collect();
        for message in &messages {
            let mut kept = self.kept();
            kept.last_message = Some(message.envelope.id);
            if self.has(Fault::KeepsBodies) {
                kept.bodies.insert(message.envelope.id, message.body.clone());
            }
            self.open().lanes.extend(message.items.iter().map(|item| item.lane.clone()));
        }
        match self.fault {
            Fault::LosesTheLastOfManyMessages if messages.len() > 1 => {
                messages.pop();
                let mut answers = self.storage.insert(messages).await?;
                answers.push(Inserted::Stored(vec![(ItemId(u64::MAX), None)]));
                Ok(answers)
            }
            Fault::AcceptsEmptyMessages if messages.iter().any(|message| message.items.is_empty()) => {
                Ok(vec![Inserted::Duplicate; messages.len()])
            }
            Fault::InsertsOneByOne => {
                let mut answers = Vec::new();
                for message in messages {
                    answers.extend(self.storage.insert(vec![message]).await?);
                }
                Ok(answers)
            }
            Fault::SaysTemporaryForInvalid => {
                self.storage.insert(messages).await.map_err(|_| error(StorageErrorKind::Temporary))
            }
            Fault::NumbersItemsAnew if self.kept().openings > 1 => {
                let mut answers = self.storage.insert(messages).await?;
                for answer in &mut answers {
                    if let Inserted::Stored(items) = answer {
                        items.iter_mut().zip(1..).for_each(|((item, _), number)| *item = ItemId(number));
                    }
                }
                Ok(answers)
            }
            Fault::StoresAnIdTwiceInARace => self.insert_in_a_race(messages).await,
            Fault::DroppedInsertsStoreHalf => self.insert_in_halves(messages).await,
            _ => self.storage.insert(messages).await,
        }
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        let mut heads = self.storage.heads(after.clone(), limit).await?;
        match self.fault {
            Fault::HeadsComeLate if after.is_none() => std::mem::swap(&mut heads, &mut self.open().heads),
            Fault::HeadsComeBackwards => heads.reverse(),
            Fault::HeadsOfEmptyLanes => {
                let lanes: Vec<_> = self.open().lanes.iter().cloned().collect();
                let missing =
                    |lane: &Lane| after.as_ref() < Some(lane) && !heads.iter().any(|head| head.lane == *lane);
                let empty: Vec<_> = lanes.into_iter().filter(missing).map(LaneHead::empty).collect();
                heads.extend(empty);
            }
            _ => {}
        }
        Ok(heads)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        let request = self.changed_request(request);
        let before = self.storage.heads(None, 99).await?;
        let owner = request.owner;
        let is_named = request.what.iter().any(|part| matches!(part, ClaimPart::Items(_)));
        if self.has(Fault::DroppedClaimsLoseItems) {
            self.lose_if_dropped(&request).await;
        }
        let mut claimed = self.storage.claim(request).await?;
        self.whole_claims(&mut claimed.items);
        for item in &claimed.items {
            let mut open = self.open();
            open.leases.insert(item.id, item.lease);
            open.owners.insert(item.lease, owner);
        }
        match self.fault {
            Fault::ClaimsBackwards => claimed.items.reverse(),
            Fault::HandsAnItemToTwo if !claimed.items.is_empty() => {
                let last = claimed.items.last().cloned();
                claimed.items.extend(std::mem::replace(&mut self.open().last_claimed, last));
            }
            Fault::HandsAnItemToTwoInARace => {
                let own: HashSet<_> = claimed.items.iter().map(|item| item.id).collect();
                self.open().in_flight.extend(claimed.items.iter().cloned());
                (0..200).for_each(|_| std::thread::yield_now());
                let mut open = self.open();
                claimed.items.extend(open.in_flight.iter().find(|item| !own.contains(&item.id)).cloned());
                open.in_flight.retain(|item| !own.contains(&item.id));
            }
            Fault::RoundsDueTimesAfterReopen if self.kept().openings > 1 => {
                claimed.items.iter_mut().for_each(|item| item.due = to_seconds(item.due));
            }
            Fault::HeadsOfAClaimComeLate => {
                for head in &mut claimed.heads {
                    *head = before.iter().find(|old| old.lane == head.lane).unwrap_or(head).clone();
                }
            }
            Fault::ClaimsNamedItemsOfOthers => {
                let last = claimed.items.last().cloned();
                claimed
                    .items
                    .extend(std::mem::replace(&mut self.open().last_claimed, last).filter(|_| is_named));
            }
            _ => {}
        }
        Ok(claimed)
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        self.open().renewed.insert(owner);
        match self.fault {
            Fault::IgnoresRenewals => Ok(()),
            _ => self.storage.renew(owner, until).await,
        }
    }

    async fn bodies(&self, mut keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        if self.has(Fault::AnswersAKeyOnce) {
            keys.dedup();
        }
        let mut bodies = self.storage.bodies(keys.clone()).await?;
        for (key, body) in keys.iter().zip(&mut bodies) {
            match self.fault {
                Fault::KeepsBodies => {
                    if let Some(kept) = self.kept().bodies.get(&key.0) {
                        *body = Ok(kept.clone());
                    }
                }
                Fault::HasNoEmptyBodies if body.as_ref().is_ok_and(|body| body.is_empty()) => {
                    *body = Err(error(StorageErrorKind::NotFound));
                }
                Fault::SaysTemporaryForNotFound => {
                    *body = body.clone().map_err(|_| error(StorageErrorKind::Temporary));
                }
                _ => {}
            }
        }
        self.damage_bodies(&keys, &mut bodies)?;
        Ok(bodies)
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        self.meet_trouble(Write::Commit(changes.clone())).await?;
        self.delay_if_dropped(Write::Commit(changes.clone())).await;
        match self.fault {
            Fault::ShowsOutcomesOutOfOrder => self.commit_and_show_late(changes).await,
            Fault::ChecksLeasesTooEarly => self.commit_what_was_current(changes).await,
            Fault::DroppedCommitsApplyHalf => self.commit_in_halves(changes).await,
            Fault::OutboxCountsAnewWhenItIsEmpty => {
                let outcomes = self.commit_whole(changes).await?;
                self.count_anew().await;
                Ok(outcomes)
            }
            Fault::AppliesHalfABatch => {
                let mut outcomes = Vec::new();
                for change in changes {
                    outcomes.extend(self.commit_whole(vec![change]).await?);
                    // Whoever reads sees it.
                    (0..20).for_each(|_| std::thread::yield_now());
                }
                Ok(outcomes)
            }
            Fault::AnswersBackwards => {
                let mut outcomes = self.commit_whole(changes).await?;
                outcomes.reverse();
                Ok(outcomes)
            }
            Fault::SaysTemporaryForInvalid => {
                self.commit_whole(changes).await.map_err(|_| error(StorageErrorKind::Temporary))
            }
            Fault::StaleFailsTheBatch => {
                let outcomes = self.commit_whole(changes).await?;
                match outcomes.contains(&ChangeOutcome::Stale) {
                    true => Err(error(StorageErrorKind::Invalid)),
                    false => Ok(outcomes),
                }
            }
            Fault::SettlingTwiceIsStale => {
                let items = self.storage.list(Filter::All, None, 99).await?;
                let is_there = |item: &ItemId, index: &u32| {
                    let item = items.iter().find(|other| other.id == *item);
                    item.is_some_and(|item| item.recipients.iter().any(|recipient| recipient.index == *index))
                };
                for change in &changes {
                    if let Change::Update { item, settled, .. } = change
                        && !settled.iter().any(|index| is_there(item, index))
                    {
                        return Ok(vec![ChangeOutcome::Stale; changes.len()]);
                    }
                }
                self.commit_whole(changes).await
            }
            _ => self.commit_whole(changes).await,
        }
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        let mut rows = self.storage.state(after, limit + self.damaged()).await?;
        self.whole_state(limit, &mut rows)?;
        if self.has(Fault::StateHasAnotherOrder) {
            rows.sort_by_key(|row| row.key.len());
        }
        Ok(rows)
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        let acknowledged = self.open().acknowledged;
        let shift = self.kept().shift;
        let after = OutboxPosition(after.0 + shift);
        let mut entries = self.storage.outbox(after.max(acknowledged), limit).await?;
        if let Some(last) = entries.last() {
            let mut kept = self.kept();
            kept.last_position = kept.last_position.max(last.position.0);
        }
        self.whole_outbox(&mut entries);
        entries.retain(|entry| !self.open().late.contains(&entry.event));
        if self.has(Fault::DroppedReadsTakeOutcomes) {
            self.take_if_dropped(&entries).await;
        }
        match self.fault {
            Fault::OutboxHasAnotherOrder => entries.sort_by_key(|entry| entry.event),
            Fault::OutboxTellsOnce => entries.retain(|entry| self.open().told.insert(entry.event)),
            Fault::OutboxCountsFromTheFirst => {
                entries.iter_mut().zip(1..).for_each(|(entry, place)| entry.position = OutboxPosition(place));
            }
            _ => {}
        }
        // Those of before are not shown to be new.
        entries.iter_mut().for_each(|entry| entry.position.0 = entry.position.0.saturating_sub(shift));
        Ok(entries)
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        let (mut after, mut limit) = (after, limit);
        match self.fault {
            Fault::ListsWithoutACursor => after = None,
            Fault::ListsHalfPages if limit > 1 => limit = limit.div_ceil(2),
            _ => {}
        }
        let more = limit + self.damaged();
        let mut items = match (&filter, self.fault) {
            (Filter::Tag { .. }, Fault::ListsTagsByName) => {
                self.storage.list(Filter::All, after, more).await?
            }
            (Filter::Tag { .. }, Fault::ListsTagsOfTheFirstThousand) => {
                let items = self.storage.list(filter.clone(), after, more).await?;
                items.into_iter().filter(|item| item.id.0 < 1_000).collect()
            }
            _ => self.storage.list(filter.clone(), after, more).await?,
        };
        if self.has(Fault::ListsNothingAsLeased) {
            items.iter_mut().for_each(|item| item.leased = false);
        }
        self.whole_items(&filter, limit, &mut items)?;
        Ok(items)
    }

    async fn count(&self, lane: &Lane) -> Result<u64> {
        if self.has(Fault::CountsWhatIsFree) {
            let items = self.storage.list(Filter::Lane(lane.clone()), None, usize::MAX).await?;
            return Ok(items.iter().filter(|item| !item.leased).count() as u64);
        }
        self.storage.count(lane).await
    }

    async fn take_damage(&self) -> Vec<StorageError> {
        std::mem::take(&mut self.open().damage)
    }

    /// Nobody else opens it, save where leases are to hold.
    fn is_exclusive(&self) -> bool {
        !matches!(self.fault, Fault::LeasesOfBeforeHoldAndAreStale | Fault::LeasesOfBeforeNeverRunOut)
    }

    async fn usage(&self) -> Result<Usage> {
        let mut usage = self.storage.usage().await?;
        if self.has(Fault::UsageForgetsTheOutbox) {
            usage.outbox = 0;
        }
        Ok(usage)
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        if self.has(Fault::MaintainsStateAway) {
            self.delete_state().await;
        }
        self.storage.maintain(now).await
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, with a fault: {:?}", self.storage, self.fault)
    }
}
