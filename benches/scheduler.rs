//! What an event costs the scheduler alone, by the number of queues that have mail.
//!
//! `cargo bench --bench scheduler -- --summary` prints it beside a reference measured in the same run: one pop and one
//! insert of a `BTreeMap` that holds a million (time, id) keys. With `--count` it does the same work on every run, for who
//! counts instructions. Without either criterion measures it.
//!
//! It is built as `[profile.bench]` says, optimised as a whole, which a host may do too.
//!
//! The workload is that of [`SchedulerLoad`]. An event is a call of the scheduler that tells it something: a message
//! is submitted, stored, routed, its session opened, it is sent, the outcome persisted, the session closed, a timer
//! due. Counted is the time in these calls, which includes what they free, and in taking the commands that follow, in
//! batches of 32 events. Not counted is what store, network and host would do: making events, carrying out commands.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group};
use postrider::testing::SchedulerLoad;

const QUEUES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// So many are written down before they are told: what is timed does not take turns with what is not.
const PREPARED: usize = 20_000;
/// So many are timed together.
const BATCH: usize = 32;
const ROUNDS: usize = 9;
/// Events, or operations of the reference, of one round.
const EVENTS: u64 = 100_000;

/// The time that so many events took.
#[allow(clippy::disallowed_methods, reason = "this is what it measures")]
fn measure(load: &mut SchedulerLoad, events: u64) -> Duration {
    let mut taken = Duration::ZERO;
    let mut left = usize::try_from(events).unwrap_or(usize::MAX);
    while left > 0 {
        let prepared = left.min(PREPARED);
        load.prepare(prepared);
        while load.make_ready(BATCH) {
            let start = Instant::now();
            load.replay();
            taken += start.elapsed();
        }
        left -= prepared;
    }
    taken
}

/// A timer queue as simple as one can be.
struct Reference {
    keys: BTreeMap<(u64, u64), ()>,
    random: fastrand::Rng,
}

impl Reference {
    const KEYS: u64 = 1_000_000;
    const LATEST: u64 = 1_000_000_000;

    fn new() -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let keys = (0..Self::KEYS).map(|id| ((random.u64(..Self::LATEST), id), ())).collect();
        let mut reference = Self { keys, random };
        // What has just been built lies in order. In use each key has been moved.
        reference.measure(3 * Self::KEYS);
        reference
    }

    /// The first key goes in again at a random later time.
    #[allow(clippy::disallowed_methods, reason = "this is what it measures")]
    fn measure(&mut self, operations: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..operations {
            if let Some(((time, id), ())) = self.keys.pop_first() {
                self.keys.insert((time + 1 + self.random.u64(..Self::LATEST), id), ());
            }
        }
        black_box(self.keys.len());
        start.elapsed()
    }
}

/// The same work on every run, for a tool that counts instructions: `valgrind --tool=callgrind
/// --toggle-collect='*counted*'` counts those of so many events.
fn events_to_count() {
    let mut load = SchedulerLoad::new(QUEUES[1], 1);
    measure(&mut load, EVENTS);
    load.prepare(PREPARED);
    while load.make_ready(BATCH) {
        counted(&mut load);
    }
}

#[inline(never)]
fn counted(load: &mut SchedulerLoad) {
    load.replay();
}

#[allow(clippy::print_stdout, reason = "it is run for this")]
fn summary() {
    let mut reference = Reference::new();
    let mut operations = Vec::new();
    let mut loads = QUEUES.map(|queues| (queues, SchedulerLoad::new(queues, 1), Vec::new()));
    // In turns, so that what else the machine does meets all alike.
    for round in 0..=ROUNDS {
        let operation = reference.measure(EVENTS).as_secs_f64() * 1e9 / EVENTS as f64;
        // The first round finds no connection open yet.
        let counts = round > 0;
        operations.extend(counts.then_some(operation));
        for (_, load, of_load) in &mut loads {
            let event = measure(load, EVENTS).as_secs_f64() * 1e9 / EVENTS as f64;
            of_load.extend(counts.then_some(event));
        }
    }
    for (queues, load, of_load) in &mut loads {
        let report = load.report();
        assert_eq!((report.queues, report.queues_with_mail), (*queues as usize, *queues as usize));
        println!("queues={queues} ns_per_event={:.1}", median(of_load));
    }
    println!("reference ns_per_op={:.1}", median(&mut operations));
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    group.sample_size(10);
    for queues in [1_000, 100_000] {
        let mut load = None;
        group.bench_function(BenchmarkId::new("event", queues), |bencher| {
            let load = load.get_or_insert_with(|| SchedulerLoad::new(queues, 1));
            bencher.iter_custom(|events| measure(load, events));
        });
    }
    group.finish();
}

criterion_group!(benches, events);

fn main() {
    if std::env::args().any(|arg| arg == "--summary") {
        summary();
    } else if std::env::args().any(|arg| arg == "--count") {
        events_to_count();
    } else {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
