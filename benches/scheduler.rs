//! Events per second of the scheduler alone, by the number of domains: it must not fall with them.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use postrider::testing::SchedulerLoad;

const MESSAGES: usize = 20_000;

fn by_domains(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    group.sample_size(10);
    for domains in [1, 1_000, 10_000] {
        let load = SchedulerLoad::new(MESSAGES, domains);
        group.throughput(Throughput::Elements(load.run().events));
        group.bench_function(BenchmarkId::new("events", domains), |bencher| bencher.iter(|| load.run()));
    }
    group.finish();
}

criterion_group!(benches, by_domains);
criterion_main!(benches);
