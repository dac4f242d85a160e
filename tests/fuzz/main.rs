//! The bodies of the fuzz targets, fed from seeds.
//!
//! `POSTRIDER_FUZZ_SECONDS=3600 cargo test --release --features testing --test fuzz` goes on for so long with each, with
//! seeds of its own. What fails is printed, with the seed: `POSTRIDER_SEED=17` runs that one alone.

#![allow(clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

mod differential;
mod inputs;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use postrider::clock::Clock;
use postrider::testing::fuzz;

/// Inputs of each run.
const INPUTS: u64 = 20_000;

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: a number is wanted")))
}

/// Feeds inputs made from seeds.
fn feed(make: fn(&mut fastrand::Rng) -> Vec<u8>, body: fn(&[u8])) {
    let run = |seed: u64| {
        let input = make(&mut fastrand::Rng::with_seed(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&input))) {
            let shown = input.get(..2_000).unwrap_or(&input).escape_ascii();
            println!("POSTRIDER_SEED={seed} repeats it; {} octets: {shown}", input.len());
            resume_unwind(panic);
        }
    };
    if let Some(seed) = setting("POSTRIDER_SEED") {
        return run(seed);
    }
    let Some(seconds) = setting("POSTRIDER_FUZZ_SECONDS") else {
        return (0..INPUTS).for_each(run);
    };
    let clock = Clock::system();
    let (began, first) = (clock.now(), fastrand::u64(..));
    let mut seeds = (0..).map(|number| first.wrapping_add(number));
    while clock.now().saturating_since(began) < Duration::from_secs(seconds) {
        seeds.by_ref().take(100).for_each(run);
    }
}

#[test]
fn replies() {
    feed(inputs::replies, fuzz::reply_parser);
}

#[test]
fn replies_are_read_as_smtp_proto_reads_them() {
    feed(differential::well_formed, differential::agree);
}

#[test]
fn ehlo() {
    feed(inputs::ehlo, fuzz::ehlo);
}

#[test]
fn content() {
    feed(inputs::content, fuzz::content);
}

#[test]
fn policy_files() {
    feed(inputs::policy, |octets| fuzz::policy_file(&String::from_utf8_lossy(octets)));
}
