//! Many worlds, and faults put back to see that they are found.

use super::*;

/// Seeds of each run; `POSTRIDER_SEEDS` asks for more.
const SEEDS: u64 = 300;

fn seeds() -> std::ops::RangeInclusive<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = number("POSTRIDER_SEED") {
        return seed..=seed;
    }
    1..=number("POSTRIDER_SEEDS").unwrap_or(SEEDS)
}

#[test]
fn random_worlds_keep_every_invariant() {
    let (mut failed, mut messages, mut transactions) = (Vec::new(), 0, 0);
    for seed in seeds() {
        match Simulation::new(seed).run() {
            Ok(report) => {
                messages += report.messages;
                transactions += report.transactions;
            }
            Err(error) => {
                eprintln!("{error}\n");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?} failed: POSTRIDER_SEED=N repeats one");
    assert!(messages > 0 && transactions > 0);
}
