//! Stores that do not keep the contract, in ways that only show over time.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::message::Priority;
use crate::storage::*;

type Result<T> = std::result::Result<T, StorageError>;

/// What the store does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// After a restart mail of no lane is to be seen.
    HidesLanes,
    /// What was acknowledged stays in the outbox.
    KeepsAcknowledged,
    /// Bodies are empty.
    LosesBodies,
    /// Bodies are not there.
    ForgetsBodies,
    /// An id is forgotten as soon as its message has ended.
    ForgetsIds,
    /// Rows of state are not kept.
    DropsState,
    /// What it holds can not be listed.
    ListsNothing,
    /// Pages of its list begin with the last of the page before.
    ListsAgain,
    /// Messages that the host gave a time to live have none.
    DropsExpiry,
    /// Messages are from somebody else.
    ChangesSender,
    /// Messages have no tags.
    DropsTags,
    /// Messages are sent from another source.
    ChangesSource,
    /// All messages have one priority.
    ChangesPriority,
    /// What a deferral met is gone.
    ForgetsFailures,
    /// Nobody was tried more often than once.
    CapsAttempts,
    /// What is deferred waits a minute longer.
    ReleasesLate,
}

#[derive(Debug)]
struct Bad {
    inner: Arc<MemoryStorage>,
    wrong: Wrong,
}

impl Bad {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store that {:?}", self.wrong)
    }
}

#[async_trait]
impl Storage for Bad {
    async fn insert(&self, messages: Vec<NewMessage>) -> Result<Vec<Inserted>> {
        let change = |mut message: NewMessage| {
            let envelope = Arc::make_mut(&mut message.envelope);
            if self.is(Wrong::DropsExpiry) {
                envelope.expires_at = None;
            }
            if self.is(Wrong::ChangesSender) {
                envelope.reverse_path = None;
            }
            if self.is(Wrong::DropsTags) {
                envelope.tags.clear();
            }
            message.host_id &= !self.is(Wrong::ForgetsIds);
            for item in &mut message.items {
                if self.is(Wrong::ChangesSource) {
                    item.lane.source = "other".into();
                }
                if self.is(Wrong::ChangesPriority) {
                    item.lane.priority = Priority::Normal;
                }
            }
            message
        };
        self.inner.insert(messages.into_iter().map(change).collect()).await
    }

    async fn heads(&self, after: Option<Lane>, limit: usize) -> Result<Vec<LaneHead>> {
        if self.is(Wrong::HidesLanes) { Ok(Vec::new()) } else { self.inner.heads(after, limit).await }
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed> {
        self.inner.claim(request).await
    }

    async fn renew(&self, owner: Owner, until: Timestamp) -> Result<()> {
        self.inner.renew(owner, until).await
    }

    async fn bodies(&self, keys: Vec<BodyKey>) -> Result<Vec<Result<Bytes>>> {
        if self.is(Wrong::ForgetsBodies) {
            let gone = |_| Err(StorageError::new(StorageErrorKind::NotFound, "gone"));
            return Ok(keys.into_iter().map(gone).collect());
        }
        let bodies = self.inner.bodies(keys).await?;
        let lost = self.is(Wrong::LosesBodies);
        Ok(bodies.into_iter().map(|body| body.map(|body| if lost { Bytes::new() } else { body })).collect())
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<Vec<ChangeOutcome>> {
        let told = changes.len();
        let change = |mut change| {
            if let Change::Update { released, .. } = &mut change {
                for release in released {
                    if self.is(Wrong::ReleasesLate) {
                        release.due = release.due + MINUTE;
                    }
                    for recipient in &mut release.recipients {
                        if self.is(Wrong::ForgetsFailures) {
                            recipient.last = None;
                        }
                        if self.is(Wrong::CapsAttempts) {
                            recipient.attempts = recipient.attempts.min(1);
                        }
                    }
                }
            }
            change
        };
        let kept = changes.into_iter().map(change).filter(|change| match change {
            Change::Acknowledge(_) => !self.is(Wrong::KeepsAcknowledged),
            Change::PutState(_) => !self.is(Wrong::DropsState),
            _ => true,
        });
        let mut outcomes = self.inner.commit(kept.collect()).await?;
        outcomes.resize(told, ChangeOutcome::Applied);
        Ok(outcomes)
    }

    async fn state(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<StateRow>> {
        self.inner.state(after, limit).await
    }

    async fn outbox(&self, after: OutboxPosition, limit: usize) -> Result<Vec<OutboxEntry>> {
        self.inner.outbox(after, limit).await
    }

    async fn list(
        &self,
        filter: Filter,
        after: Option<ListPosition>,
        limit: usize,
    ) -> Result<Vec<ItemSummary>> {
        if self.is(Wrong::ListsNothing) {
            return Err(StorageError::new(StorageErrorKind::Temporary, "not today"));
        }
        let again = |after: ListPosition| match self.is(Wrong::ListsAgain) {
            true => ListPosition { id: ItemId(after.id.0 - 1), ..after },
            false => after,
        };
        self.inner.list(filter, after.map(again), limit).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }

    async fn maintain(&self, now: Timestamp) -> Result<()> {
        self.inner.maintain(now).await
    }
}

fn world_on(wrong: Wrong, model: ServerModel) -> World {
    let store = MemoryStorage::new();
    let open = move || Bad { inner: Arc::new(store.reopened()), wrong };
    builder(model).storage(open).build().unwrap()
}

#[test]
fn mail_that_the_engine_does_not_see_any_more() {
    let mut world = world_on(Wrong::HidesLanes, ServerModel::new().with_greylist(HOUR));
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.restart();
    let violation = world.try_run_until_idle(DAY).unwrap_err();
    assert_eq!(violation.invariant, "starved", "{violation}");
    let mut world = world_on(Wrong::HidesLanes, ServerModel::new().with_greylist(HOUR));
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    world.restart();
    assert_eq!(world.try_run_for(2 * DAY).unwrap_err().invariant, "starved");
}

#[test]
fn what_it_holds_is_not_to_be_known() {
    let mut world = world_on(Wrong::ListsNothing, ServerModel::new());
    world.submit(message(BOB)).unwrap();
    let violation = world.try_run_for(HOUR).unwrap_err();
    assert_eq!(violation.invariant, "unanswered", "{violation}");
    assert!(violation.to_string().contains("does not tell what it holds"), "{violation}");
}

#[test]
fn pages_that_begin_again_have_no_end() {
    let mut world = world_on(Wrong::ListsAgain, ServerModel::new().with_greylist(HOUR));
    world.submit(message(BOB)).unwrap();
    let violation = world.try_run_for(2 * MINUTE).unwrap_err();
    assert_eq!(violation.invariant, "endless", "{violation}");
}

#[test]
fn what_it_holds_is_not_what_it_was_given() {
    for wrong in [
        Wrong::ChangesSender,
        Wrong::DropsExpiry,
        Wrong::DropsTags,
        Wrong::ChangesSource,
        Wrong::ChangesPriority,
        Wrong::ForgetsFailures,
        Wrong::CapsAttempts,
        Wrong::ReleasesLate,
    ] {
        let mut world = world_on(wrong, ServerModel::new().with_greylist(DAY));
        let message = message(BOB).with_priority(Priority::High).with_tag("job", "one");
        world.submit(message.expires_after(DAY)).unwrap();
        let violation = world.try_run_for(HOUR).unwrap_err();
        assert_eq!(violation.invariant, "stored", "{wrong:?}: {violation}");
    }
}

#[test]
fn content_that_is_lost() {
    let mut world = world_on(Wrong::ForgetsBodies, ServerModel::new().with_greylist(MINUTE));
    world.submit(message(BOB)).unwrap();
    assert_eq!(world.try_run_for(HOUR).unwrap_err().invariant, "lost");
    // Unless the world will have it so.
    let mut world = builder(ServerModel::new().with_greylist(MINUTE)).build().unwrap();
    let gone = StoreTrouble::Fails(StorageErrorKind::NotFound);
    world.add_store_faults([StoreFault::new(StoreCall::Bodies, gone)]);
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.count(Outcome::Bounced), 1);
}

#[test]
fn an_id_that_is_forgotten_too_early() {
    let mut world = world_on(Wrong::ForgetsIds, ServerModel::new());
    let id = MessageId::generate(world.now(), 7);
    world.submit(message(BOB).with_id(id)).unwrap();
    assert!(world.run_until_idle(HOUR));
    world.submit(message(BOB).with_id(id)).unwrap();
    assert_eq!(world.try_run_for(HOUR).unwrap_err().invariant, "settled");
}

#[test]
fn a_body_that_is_read_slowly_breaks_no_rate() {
    let slow = policy("[domain.'*']\nmax-msg-rate = '200/h'");
    for seconds in [1, 17, 40] {
        let mut world = builder(ServerModel::new()).policy(slow.clone()).build().unwrap();
        let trouble = StoreTrouble::Slow(Duration::from_secs(seconds));
        world.add_store_faults([StoreFault::new(StoreCall::Bodies, trouble)]);
        for n in 0..3 {
            let held = message(&format!("r{n}@example.net")).hold_until(world.now() + MINUTE);
            world.submit(held).unwrap();
        }
        assert!(world.run_until_idle(HOUR), "{seconds}");
    }
}

#[test]
fn an_id_again_with_another_body_is_the_first_one_until_it_is_forgotten() {
    let id = MessageId::generate(Timestamp::from_unix_seconds(1), 7);
    let body = |body: &str| Message::new("news@sender.example", [BOB], body.to_owned()).unwrap().with_id(id);
    let mut world = builder(ServerModel::new().with_greylist(HOUR)).build().unwrap();
    assert_eq!(world.submit(body("one")).unwrap(), id);
    world.run_for(MINUTE);
    assert_eq!(world.submit(body("two")).unwrap(), id);
    assert!(world.run_until_idle(DAY));
    world.run_for(3 * DAY);
    assert_eq!(world.submit(body("three")).unwrap(), id);
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.server(SERVER).taken, 2);
}

#[test]
fn an_outbox_that_is_slow_or_fails_is_no_fault_of_the_engine() {
    let kinds = [
        StoreTrouble::Slow(9 * HOUR),
        StoreTrouble::Fails(StorageErrorKind::Temporary),
        StoreTrouble::Fails(StorageErrorKind::Full),
    ];
    for trouble in kinds {
        let mut world = builder(ServerModel::new().with_greylist(HOUR)).build().unwrap();
        world.add_store_faults([StoreFault::new(StoreCall::Outbox, trouble).at(3).times(u64::MAX)]);
        for n in 0..5 {
            world.submit(message(&format!("r{n}@example.net"))).unwrap();
        }
        world.run_for(2 * DAY);
        world.clear_store_faults();
        assert!(world.run_until_idle(2 * DAY), "{trouble:?}");
        assert_eq!(world.count(Outcome::Delivered), 5, "{trouble:?}");
    }
}

/// A test that asks the engine itself, and lets no time pass by the world's own methods afterwards.
#[test]
fn a_violation_that_nobody_was_told_of_fails_the_test_at_the_worlds_end() {
    let end = std::panic::catch_unwind(|| {
        let mut world = world_on(Wrong::LosesBodies, ServerModel::new().with_greylist(MINUTE));
        world.submit(message(BOB)).unwrap();
        world.with_engine(async |engine| engine.wait_idle().await);
    });
    let said = end.unwrap_err();
    let said = said.downcast_ref::<String>().unwrap();
    assert!(said.contains("content"), "{said}");
}

#[test]
fn outcomes_that_are_told_again_with_each_process() {
    let mut world = world_on(Wrong::KeepsAcknowledged, ServerModel::new());
    world.submit(message(BOB)).unwrap();
    assert_eq!(world.try_run_for(HOUR).unwrap_err().invariant, "finals");
}

#[test]
fn bodies_that_are_not_what_was_submitted() {
    let mut world = world_on(Wrong::LosesBodies, ServerModel::new().with_greylist(MINUTE));
    world.submit(message(BOB)).unwrap();
    assert_eq!(world.try_run_for(HOUR).unwrap_err().invariant, "content");
}

#[test]
fn retries_that_begin_anew_with_each_process() {
    let store = MemoryStorage::new();
    let open = move || Bad { inner: Arc::new(store.reopened()), wrong: Wrong::DropsState };
    let refuses = ServerModel::new().with_failure(Duration::ZERO..DAY, Failure::Refuse);
    let retries = policy("[domain.'*']\nretry-after = ['7m', '20m', '1h', '4h']");
    let mut world = builder(refuses).policy(retries).storage(open).build().unwrap();
    world.submit(message(BOB)).unwrap();
    world.run_for(HOUR);
    let violation = (0..20).find_map(|_| {
        world.crash();
        world.try_run_for(MINUTE).err()
    });
    let violation = violation.unwrap();
    assert!(["due", "schedule"].contains(&violation.invariant), "{violation}");
}

#[test]
fn mail_that_could_not_be_settled_is_the_stores_trouble() {
    let mut world = builder(ServerModel::new().with_greylist(4 * MINUTE)).build().unwrap();
    world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    let invalid = StoreTrouble::Fails(StorageErrorKind::Invalid);
    world.add_store_faults([StoreFault::new(StoreCall::Commit, invalid)]);
    world.run_for(HOUR);
    let told = |seen: &Observation| matches!(&seen.seen, Seen::Event(event) if matches!(**event, DeliveryEvent::StorageTrouble(_)));
    assert!(world.trace().iter().any(told), "the host is told");
    assert!(!world.run_until_idle(DAY), "nothing else is left to do, and that is in the store");
    assert_eq!(world.stats().queued, 1, "until the next start");
}
