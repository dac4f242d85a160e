//! The power is cut at every step of a recorded run. What is found must be what was acknowledged, with or without the
//! calls in flight.
//!
//! `POSTRIDER_CUTS=all cargo test --lib -- storage::disk::cuts` tries every kind of survival at every step.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::files::{FileSystem, Mode};
use super::simulated::{Disk, Survival};
use super::*;
use crate::message::{EventId, MessageId};
use crate::storage::rows::MessageRow;
use crate::storage::{ClaimPart, Item, MemoryStorage, Release};
use crate::testing::conformance::{A, at, id, item, lane, message, message_of, settle};

pub(super) const STORE: &str = "/store";

pub(super) fn options(disk: &Disk) -> DiskOptions {
    let mut options = DiskOptions::new().with_segment_size(4096).with_reserve(4096);
    options.files = Arc::new(disk.clone());
    options.small_metadata = 0;
    options
}

pub(super) async fn open(disk: &Disk) -> DiskStorage {
    DiskStorage::open_with(STORE, options(disk)).await.unwrap()
}

/// A runtime on which calls that are made together wait together, for there is one thread to serve them.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
    runtime.unwrap().block_on(test)
}

#[derive(Clone)]
enum Call {
    Insert(Vec<NewMessage>),
    Commit(Vec<Change>),
    Maintain,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Inserted(Vec<Inserted>),
    Committed(Vec<ChangeOutcome>),
    Maintained,
}

async fn call(store: &dyn Storage, call: Call) -> Result<Answer> {
    Ok(match call {
        Call::Insert(messages) => Answer::Inserted(store.insert(messages).await?),
        Call::Commit(changes) => Answer::Committed(store.commit(changes).await?),
        Call::Maintain => store.maintain(at(50)).await.map(|()| Answer::Maintained)?,
    })
}

/// All that can be read without a lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dump {
    pub(super) items: Vec<ItemSummary>,
    pub(super) state: Vec<StateRow>,
    pub(super) outbox: Vec<OutboxEntry>,
}

pub(super) async fn dump(store: &dyn Storage) -> Result<Dump> {
    let mut items = store.list(Filter::All, None, 100_000).await?;
    items.iter_mut().for_each(|item| item.leased = false);
    let outbox = store.outbox(OutboxPosition::default(), 100_000).await?;
    Ok(Dump { items, state: store.state(None, 100_000).await?, outbox })
}

/// Every message has the envelope and the body it came with. Claims all.
pub(super) async fn claim_all(
    store: &dyn Storage,
    dump: &Dump,
    originals: &BTreeMap<MessageId, NewMessage>,
) -> Vec<Item> {
    let what = vec![ClaimPart::Items(dump.items.iter().map(|item| item.id).collect())];
    let claimed = store.claim(ClaimRequest { owner: A, now: at(1), until: at(2), what }).await.unwrap().items;
    assert_eq!(claimed.len(), dump.items.len());
    let keys = claimed.iter().map(|item| BodyKey(item.envelope.id)).collect();
    for (item, body) in claimed.iter().zip(store.bodies(keys).await.unwrap()) {
        let original = &originals[&item.envelope.id];
        assert_eq!(item.envelope, original.envelope);
        assert!(body.unwrap() == original.body, "the body of {}", item.envelope.id);
    }
    claimed
}

/// A run on a disk, and on a model beside it.
struct Recording {
    disk: Disk,
    store: Option<DiskStorage>,
    model: MemoryStorage,
    originals: BTreeMap<MessageId, NewMessage>,
    /// Messages of host ids inserted so far.
    host_ids: BTreeSet<MessageId>,
    /// What the model holds at first and after each call.
    states: Vec<(Dump, BTreeSet<MessageId>)>,
    /// The steps during which each call was in flight.
    calls: Vec<Range<usize>>,
}

impl Recording {
    async fn make() -> Self {
        let (disk, model) = (Disk::default(), MemoryStorage::new().reopened());
        let states = vec![(dump(&model).await.unwrap(), BTreeSet::new())];
        let store = Some(open(&disk).await);
        let (originals, host_ids) = Default::default();
        let mut recording = Self { disk, store, model, originals, host_ids, states, calls: Vec::new() };
        recording.workload().await;
        recording.store = None;
        recording
    }

    async fn reopen(&mut self) {
        self.store = None;
        self.store = Some(open(&self.disk).await);
        self.model = self.model.reopened();
    }

    /// Makes calls that wait for the disk together.
    async fn together(&mut self, calls: Vec<Call>) {
        let begin = self.disk.steps();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || wait.recv().is_err());
        let store = self.store.as_ref().unwrap();
        let all = futures::future::join_all(calls.iter().map(|one| call(store, one.clone())));
        let (answers, ()) = tokio::join!(all, async move { drop(release) });
        assert!(busy.await.unwrap());
        let end = self.disk.steps();
        for (one, answer) in calls.into_iter().zip(answers) {
            if let Call::Insert(messages) = &one {
                for message in messages {
                    let id = message.envelope.id;
                    self.originals.entry(id).or_insert_with(|| message.clone());
                    self.host_ids.extend(message.host_id.then_some(id));
                }
            }
            assert_eq!(answer.unwrap(), call(&self.model, one).await.unwrap());
            self.states.push((dump(&self.model).await.unwrap(), self.host_ids.clone()));
            self.calls.push(begin..end);
        }
    }

    async fn one(&mut self, call: Call) {
        self.together(vec![call]).await;
    }

    async fn insert(&mut self, message: NewMessage) {
        self.one(Call::Insert(vec![message])).await;
    }

    async fn claim(&mut self, domain: &str, limit: usize) -> Vec<Item> {
        let what = vec![ClaimPart::Due { lane: lane(domain), before: at(1000), limit }];
        let request = ClaimRequest { owner: A, now: at(1), until: at(9000), what };
        let claimed = self.store.as_ref().unwrap().claim(request.clone()).await.unwrap().items;
        assert_eq!(claimed, self.model.claim(request).await.unwrap().items);
        claimed
    }

    async fn workload(&mut self) {
        let mut large = sized(1, "a.example", 9000);
        large.host_id = true;
        let several = message_of(2, 1, vec![item("a.example", 1, 3), item("b.example", 2, 1)]);
        self.one(Call::Insert(vec![large, several, sized(3, "b.example", 0)])).await;
        for number in 1..5 {
            let inserts = (0..2).map(|part| sized(number * 10 + part, "a.example", 900));
            let mut calls: Vec<_> = inserts.map(|message| Call::Insert(vec![message])).collect();
            calls.push(Call::Commit(vec![put_state(number as u8), report(number)]));
            self.together(calls).await;
        }
        // The large message ends; of the one with several recipients each meets something else.
        let held = self.claim("a.example", 2).await;
        let (large, several) = if held[0].recipients.len() == 1 { (0, 1) } else { (1, 0) };
        let update = Change::Update {
            item: held[several].id,
            lease: held[several].lease,
            settled: vec![1],
            released: vec![release(&held[several], 0, 70), release(&held[several], 2, 80)],
        };
        let changes = vec![update, report(20), settle(&held[large], &[0]), report(21), put_state(1)];
        self.one(Call::Commit(changes)).await;
        let ended = sized(1, "a.example", 9000);
        self.one(Call::Insert(vec![ended])).await;
        self.settle("a.example", 3).await;
        self.reopen().await;
        self.one(Call::Commit(vec![Change::Acknowledge(OutboxPosition(3)), Change::DeleteState(vec![2])]))
            .await;
        self.insert(sized(60, "c.example", 5000)).await;
        // One stays in each file.
        self.settle("a.example", 4).await;
        let before = self.locations();
        for _ in 0..3 {
            self.one(Call::Maintain).await;
        }
        let after = self.locations();
        assert!(before.keys().eq(after.keys()) && before != after, "bodies are moved: {before:?} {after:?}");
        let held = self.claim("c.example", 1).await;
        let late = Call::Commit(vec![settle(&held[0], &[0]), report(30)]);
        self.together(vec![late, Call::Insert(vec![sized(61, "c.example", 10)]), Call::Maintain]).await;
        self.reopen().await;
        self.insert(sized(62, "b.example", 700)).await;
    }

    /// The file and place of each body.
    fn locations(&self) -> BTreeMap<MessageId, (u64, u64)> {
        let place = |(id, row): (MessageId, Result<MessageRow<codec::Location>>)| {
            let body = row.unwrap().body;
            (id, (body.segment, body.offset))
        };
        let shared = &self.store.as_ref().unwrap().shared;
        let read = shared.with(|rows| rows.messages()?.map(|entry| Ok(place(entry?))).collect());
        read.unwrap()
    }

    async fn settle(&mut self, domain: &str, count: usize) {
        let held = self.claim(domain, count).await;
        let changes = held.iter().flat_map(|item| [settle(item, &[0]), report(u128::from(item.id.0) + 100)]);
        self.one(Call::Commit(changes.collect())).await;
    }

    /// What may be found if the power goes after this many steps.
    fn allowed(&self, steps: usize) -> &[(Dump, BTreeSet<MessageId>)] {
        let acknowledged = self.calls.iter().filter(|call| call.end <= steps).count();
        let begun = self.calls.iter().filter(|call| call.start < steps).count().max(acknowledged);
        &self.states[acknowledged..=begun]
    }

    async fn verify(&self, disk: &Disk, steps: usize) {
        let store = open(disk).await;
        let found = dump(&store).await.unwrap();
        let allowed = self.allowed(steps);
        let Some((_, host_ids)) = allowed.iter().find(|(dump, _)| *dump == found) else {
            panic!("found {found:#?}\nbut allowed are {allowed:#?}");
        };
        let held = claim_all(&store, &found, &self.originals).await;
        let gone = host_ids.iter().filter(|id| found.items.iter().all(|item| item.envelope.id != **id));
        for id in gone {
            let again = store.insert(vec![self.originals[id].clone()]).await.unwrap();
            assert_eq!(again, [Inserted::Duplicate], "{id} had ended");
        }
        // It goes on to work.
        let mut left = found.items.clone();
        let mut changes = vec![report(999)];
        for item in held.iter().step_by(2) {
            let all: Vec<u32> = item.recipients.iter().map(|recipient| recipient.index).collect();
            changes.push(settle(item, &all));
            left.retain(|kept| kept.id != item.id);
        }
        assert!(store.commit(changes).await.unwrap().iter().all(|done| *done == ChangeOutcome::Applied));
        store.insert(vec![sized(900, "a.example", 3000)]).await.unwrap();
        store.maintain(at(60)).await.unwrap();
        drop(store);
        let store = open(disk).await;
        let mut now = dump(&store).await.unwrap();
        assert_eq!(now.items.pop().unwrap().envelope.id, id(900));
        assert_eq!(now.items, left);
        assert_eq!(now.outbox.last().unwrap().event, event(999));
        drop(store);
        let report = check::run(Path::new(STORE), &options(disk), &mut |_| {}).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

pub(super) fn sized(number: u128, domain: &str, octets: usize) -> NewMessage {
    let mut message = message(number, domain, 3);
    let mut body = vec![0; octets];
    fastrand::Rng::with_seed(number as u64).fill(&mut body);
    message.body = Bytes::from(body);
    message
}

fn event(number: u128) -> EventId {
    EventId::from_uuid(uuid::Uuid::from_u128(number))
}

fn report(number: u128) -> Change {
    Change::Report { of: None, event: event(number), payload: vec![number as u8; 60].into() }
}

fn put_state(key: u8) -> Change {
    Change::PutState(StateRow { key: vec![key], value: vec![key; 5] })
}

fn release(item: &Item, index: usize, due: u64) -> Release {
    let mut recipient = item.recipients[index].clone();
    recipient.attempts += 1;
    Release { due: at(due), recipients: vec![recipient] }
}

pub(super) fn tries_all() -> bool {
    std::env::var("POSTRIDER_CUTS").is_ok_and(|value| value == "all")
}

/// Names the cut if anything panics in it.
struct Named(String);

impl Drop for Named {
    #[allow(clippy::print_stderr, reason = "beside the panic's own message")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("power cut {}", self.0);
        }
    }
}

/// Cuts at every step whose number leaves `part` when divided by `parts`.
fn cut(part: usize, parts: usize) {
    let all = tries_all();
    run(async {
        let recording = Recording::make().await;
        let mut replay = recording.disk.replay();
        let mut steps = 0;
        loop {
            let mut random = fastrand::Rng::with_seed(steps as u64);
            let by_chance = [Survival::ALL[random.usize(0..4)]];
            let kinds = if all { &Survival::ALL[..] } else { &by_chance };
            for kind in kinds.iter().filter(|_| steps % parts == part) {
                let seed = random.u64(..);
                let mut named = Named(format!("after step {steps}, {kind:?}, seed {seed}"));
                let mut disk = replay.reboot(*kind, seed);
                if seed.is_multiple_of(4) {
                    // Again, while it is opened.
                    drop(open(&disk).await);
                    let again = disk.replay().at(random.usize(0..=disk.steps()));
                    let kind = Survival::ALL[random.usize(0..4)];
                    named.0 += &format!(", then again, {kind:?}");
                    disk = again.reboot(kind, seed);
                }
                recording.verify(&disk, steps).await;
            }
            if !replay.advance() {
                break;
            }
            steps += 1;
        }
        assert!(steps > 300, "{steps} steps are no workload");
    });
}

/// The metadata of every earlier moment beside the bodies of the end.
#[test]
fn metadata_older_than_its_bodies_is_refused_and_nothing_is_deleted() {
    run(async {
        let recording = Recording::make().await;
        let metadata = Path::new(STORE).join(open::METADATA);
        let (mut replay, mut steps, mut refused) = (recording.disk.replay(), 0, 0);
        let (last, _) = recording.states.last().unwrap();
        for end in recording.calls.iter().map(|call| call.end) {
            while steps < end {
                assert!(replay.advance());
                steps += 1;
            }
            let older = replay.reboot(Survival::All, 1).content(&metadata);
            let disk = recording.disk.reboot(Survival::All, 1);
            disk.open(&metadata, Mode::Fresh).unwrap().write_all_at(&older, 0).unwrap();
            let bodies = || {
                let paths = disk.paths().into_iter().filter(|path| path.to_string_lossy().contains("bodies"));
                paths.map(|path| (disk.content(&path), path)).collect::<Vec<_>>()
            };
            let before = bodies();
            match DiskStorage::open_with(STORE, options(&disk)).await {
                Ok(store) => assert_eq!(dump(&store).await.unwrap(), *last, "from step {end}"),
                Err(error) => {
                    assert_eq!(error.kind(), StorageErrorKind::Corrupt, "from step {end}: {error}");
                    assert!(error.to_string().contains("older than its bodies"), "from step {end}: {error}");
                    assert!(bodies() == before, "from step {end}");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, recording.calls.len() - 1, "all but the last");
    });
}

#[test]
fn a_cut_loses_nothing_that_was_acknowledged_1() {
    cut(0, 4);
}

#[test]
fn a_cut_loses_nothing_that_was_acknowledged_2() {
    cut(1, 4);
}

#[test]
fn a_cut_loses_nothing_that_was_acknowledged_3() {
    cut(2, 4);
}

#[test]
fn a_cut_loses_nothing_that_was_acknowledged_4() {
    cut(3, 4);
}
