//! Reading what replies tell of, with all rules.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use postrider::reply::{Classifier, Origin, Stage};

const SAMPLES: &str = include_str!("../tests/classify/samples.tsv");

fn classify(c: &mut Criterion) {
    let classifier = Classifier::default();
    let origin = Origin::at(Stage::Rcpt).with_host("mx1.example.com");
    let mut group = c.benchmark_group("classify");
    for (name, reply) in [
        ("short", "550 5.1.1 User unknown"),
        (
            "usual",
            "550 5.1.1 <user@example.net>: Recipient address rejected: User unknown in virtual mailbox table",
        ),
        (
            "long",
            "550 5.7.26 The MAIL FROM domain [a.example] has an SPF record with a hard fail policy (-all) but it fails to \
             pass SPF checks with the ip: [192.0.2.1]. To best protect our users from spam and phishing, the message has \
             been blocked. For more information, go to https://support.example.com/mail/?p=SpfAuthError 41be03b00d2f7-gsmtp",
        ),
        ("without words", "550 5.1.1 4f1c2e3a9b"),
    ] {
        group.bench_function(BenchmarkId::from_parameter(name), |bench| {
            bench.iter(|| classifier.classify(black_box(reply), origin));
        });
    }
    // The mean over many, each another.
    let samples: Vec<String> = SAMPLES
        .lines()
        .map(|line| {
            let parts = line.split('\t').skip(2).take(3).filter(|part| !part.is_empty());
            parts.collect::<Vec<_>>().join(" ")
        })
        .collect();
    group.throughput(criterion::Throughput::Elements(samples.len() as u64));
    group.bench_function("all samples", |bench| {
        bench.iter(|| {
            samples
                .iter()
                .filter(|reply| {
                    classifier.classify(black_box(reply), origin).confidence
                        > black_box(postrider::reply::Confidence::Code)
                })
                .count()
        });
    });
    group.finish();
}

criterion_group!(benches, classify);
criterion_main!(benches);
