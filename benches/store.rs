//! Stores: accepting mail in batches, and claiming and settling it. Times are for a whole batch.
#![allow(clippy::expect_used, reason = "a bench may stop")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use postrider::clock::Timestamp;
use postrider::message::{Address, Domain, MessageId, Priority};
use postrider::storage::{
    Change, ClaimPart, ClaimRequest, DiskStorage, Envelope, Filter, Lane, MemoryStorage, NewItem, NewMessage,
    Owner, Recipient, Storage,
};
use tokio::runtime::Runtime;

const BODY_OCTETS: usize = 10 * 1024;
const LANES: u64 = 100;
const OWNER: Owner = Owner(1);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn lane(number: u64) -> Lane {
    let domain = Domain::parse(&format!("d{}.example", number % LANES)).expect("a domain");
    Lane { domain, source: "vmta1".into(), priority: Priority::Normal }
}

/// Messages whose ids grow as those of the engine do.
struct Mail {
    next: u64,
    body: bytes::Bytes,
}

impl Mail {
    fn new() -> Self {
        Self { next: 1, body: vec![b'x'; BODY_OCTETS].into() }
    }

    fn batch(&mut self, size: usize) -> Vec<NewMessage> {
        (0..size).map(|_| self.message()).collect()
    }

    fn message(&mut self) -> NewMessage {
        let number = self.next;
        self.next += 1;
        let lane = lane(number);
        let address = Address::parse(&format!("user{number}@{}", lane.domain)).expect("an address");
        let envelope = Envelope {
            id: MessageId::from_uuid(uuid::Uuid::from_u128(u128::from(number) << 16)),
            reference: Some(format!("campaign-{number}")),
            reverse_path: Address::parse("bounces@sender.example").ok(),
            submitted_at: at(number),
            age_from: at(number),
            expires_at: None,
            size: BODY_OCTETS as u64,
            eight_bit: false,
            require_tls: false,
            smtputf8: false,
            recipient_count: 1,
            tags: BTreeMap::from([("job".to_owned(), "newsletter".to_owned())]),
            dsn: None,
        };
        let recipients = vec![Recipient { index: 0, address, attempts: 0, last: None, dsn: None }];
        let items = vec![NewItem { lane, due: at(number), recipients, claim_for: None }];
        NewMessage { envelope: Arc::new(envelope), body: self.body.clone(), items, host_id: false }
    }
}

/// A store and what keeps it there.
struct Subject {
    name: &'static str,
    store: Box<dyn Storage>,
    _folder: Option<tempfile::TempDir>,
}

fn subjects(runtime: &Runtime) -> [Subject; 2] {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = runtime.block_on(DiskStorage::open(folder.path())).expect("a store");
    [
        Subject { name: "memory", store: Box::new(MemoryStorage::new()), _folder: None },
        Subject { name: "disk", store: Box::new(disk), _folder: Some(folder) },
    ]
}

async fn claim_and_settle(store: &dyn Storage, size: usize) -> usize {
    let each = size.div_ceil(LANES as usize);
    let part = |number| ClaimPart::Due { lane: lane(number), before: Timestamp::MAX, limit: each };
    let what = (0..LANES).map(part).collect();
    let request = ClaimRequest { owner: OWNER, now: at(0), until: Timestamp::MAX, what };
    let claimed = store.claim(request).await.expect("a claim");
    let settle = |item: &postrider::storage::Item| Change::Update {
        item: item.id,
        lease: item.lease,
        settled: vec![0],
        released: Vec::new(),
    };
    let changes: Vec<_> = claimed.items.iter().map(settle).collect();
    store.commit(changes).await.expect("a commit").len()
}

fn stores(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    for (size, name) in [(64, "insert"), (256, "insert")] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(size as u64));
        for subject in subjects(&runtime) {
            let mut mail = Mail::new();
            group.bench_function(BenchmarkId::new(subject.name, size), |bencher| {
                bencher.iter_batched(
                    || mail.batch(size),
                    |batch| black_box(runtime.block_on(subject.store.insert(batch)).expect("an insert")),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
    let size = 400;
    let mut group = criterion.benchmark_group("claim and settle");
    group.throughput(Throughput::Elements(size as u64));
    for subject in subjects(&runtime) {
        let mut mail = Mail::new();
        group.bench_function(BenchmarkId::new(subject.name, size), |bencher| {
            bencher.iter_batched(
                || runtime.block_on(subject.store.insert(mail.batch(size))).expect("an insert"),
                |_| black_box(runtime.block_on(claim_and_settle(&*subject.store, size))),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// What it costs to look at one large lane among others.
fn lanes(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let size = 20_000;
    let mut group = criterion.benchmark_group("lane");
    group.throughput(Throughput::Elements(size as u64));
    for subject in subjects(&runtime) {
        let lane = lane(1);
        let mut mail = Mail { body: bytes::Bytes::new(), ..Mail::new() };
        let others = mail.batch(size);
        let mut large = mail.batch(size);
        large.iter_mut().flat_map(|message| &mut message.items).for_each(|item| item.lane = lane.clone());
        for batch in [others, large] {
            runtime.block_on(subject.store.insert(batch)).expect("an insert");
        }
        group.bench_function(BenchmarkId::new("count", subject.name), |bencher| {
            bencher.iter(|| black_box(runtime.block_on(subject.store.count(&lane)).expect("a count")));
        });
        group.bench_function(BenchmarkId::new("page of 1000", subject.name), |bencher| {
            let page = || subject.store.list(Filter::Lane(lane.clone()), None, 1_000);
            bencher.iter(|| black_box(runtime.block_on(page()).expect("a page")));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = stores, lanes
}
criterion_main!(benches);
