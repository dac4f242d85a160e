//! The reply parser and dot-stuffing.
#![allow(clippy::expect_used, reason = "a bench may stop")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use postrider::reply::ReplyParser;
use postrider::testing::fuzz::send_content;

fn replies(c: &mut Criterion) {
    let mut group = c.benchmark_group("reply");
    for (name, octets) in [
        ("short", "250 2.1.5 Ok\r\n"),
        (
            "refusal",
            "550 5.1.1 <user@example.net>: Recipient address rejected: User unknown in virtual table\r\n",
        ),
        (
            "ehlo",
            "250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-STARTTLS\r\n250 8BITMIME\r\n",
        ),
    ] {
        group.throughput(Throughput::Bytes(octets.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bench| {
            let mut parser = ReplyParser::new();
            bench.iter(|| {
                let mut input = black_box(octets.as_bytes());
                parser.parse(&mut input).expect("a reply")
            });
        });
    }
    group.finish();
}

fn content(c: &mut Criterion) {
    let line = "The quick brown fox jumps over the lazy dog, as it does in seventy-odd octets.\r\n";
    let clean = line.repeat((1024 * 1024) / line.len()).into_bytes();
    let dotted = clean.iter().map(|&octet| if octet == b'T' { b'.' } else { octet }).collect::<Vec<u8>>();
    let mut group = c.benchmark_group("content");
    for (name, body) in [("clean", &clean), ("a dot on each line", &dotted)] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), body, |bench, body| {
            bench.iter(|| {
                send_content(black_box(body), |slices| {
                    let _ = black_box(slices.len());
                })
            });
        });
    }
    // What memory gives: once over the same octets.
    group.throughput(Throughput::Bytes(clean.len() as u64));
    group.bench_function("a copy", |bench| bench.iter(|| black_box(&clean).clone()));
    group.finish();
}

criterion_group!(benches, replies, content);
criterion_main!(benches);
