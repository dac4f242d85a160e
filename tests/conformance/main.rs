//! The rules of a store find what is wrong with one: a store that keeps them all, with one fault at a time put in. They find nothing
//! wrong with one that keeps them by another way, as engines share it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests")]

mod damaged;
mod faults;
mod faulty;
mod shared;
mod troubled;

use std::panic::{AssertUnwindSafe, catch_unwind};

use postrider::testing::conformance::{self, rules};

use faults::{FAULTS, Fault};
use faulty::{Faulty, with_fault};
use shared::Server;

// Without a fault.
postrider::storage_conformance!(no_fault: Faulty);

postrider::storage_conformance!(
    shared_by_engines: Server,
    without damaged_bodies,
    without damaged_items,
    without damaged_rows
);

fn breaks(fault: Fault, rule: &str) -> bool {
    with_fault(fault, || catch_unwind(AssertUnwindSafe(|| conformance::run::<Faulty>(rule))).is_err())
}

#[test]
fn every_fault_is_found_by_its_rules() {
    for (fault, expected) in FAULTS {
        for rule in *expected {
            assert!(rules().iter().any(|known| known.name() == *rule), "no rule {rule}");
            assert!(breaks(*fault, rule), "{fault:?} passes {rule}");
        }
    }
}

/// With `--nocapture` it shows which rules find which fault.
#[test]
#[allow(clippy::print_stdout, reason = "a table for who asks for it")]
fn every_rule_finds_a_fault() {
    let mut unbroken: Vec<_> = rules().iter().map(|rule| rule.name()).collect();
    for (fault, _) in FAULTS {
        let found: Vec<_> =
            rules().iter().map(|rule| rule.name()).filter(|rule| breaks(*fault, rule)).collect();
        println!("{fault:?}: {}", found.join(", "));
        unbroken.retain(|rule| !found.contains(rule));
    }
    assert_eq!(unbroken, [""; 0], "rules that find nothing");
}

#[test]
fn a_broken_rule_says_what_would_be_right_and_what_was_found() {
    let panic = with_fault(Fault::CutsBodiesAtNul, || {
        catch_unwind(|| conformance::run::<Faulty>("nul_octets_in_bodies_come_back")).unwrap_err()
    });
    let text = panic.downcast_ref::<String>().unwrap();
    for part in
        ["`nul_octets_in_bodies_come_back`", "Right would be: NUL octets", "Found: at once, of 1 octets 0"]
    {
        assert!(text.contains(part), "{text}");
    }
}

/// The least a fixture can do: it damages nothing.
struct Least(postrider::storage::MemoryStorage);

impl conformance::StorageUnderTest for Least {
    type Store = postrider::storage::MemoryStorage;

    async fn create() -> Self {
        Self(postrider::storage::MemoryStorage::new())
    }

    async fn open(&self) -> Self::Store {
        self.0.reopened()
    }
}

#[test]
fn a_rule_that_can_not_be_tried_does_not_pass() {
    for (rule, hint) in [
        ("a_damaged_body_fails_alone", "without damaged_bodies"),
        ("a_damaged_item_is_left_aside", "without damaged_bodies"),
        ("a_damaged_state_row_is_left_aside", "without damaged_bodies"),
        ("what_is_acknowledged_survives_a_crash", "without crashes"),
        ("a_call_without_room_applies_nothing", "without full_disks"),
        ("a_failed_flush_stops_the_store", "without failed_flushes"),
        ("a_crash_after_a_failed_flush_loses_nothing", "without failed_flushes"),
    ] {
        let panic = catch_unwind(|| conformance::run::<Least>(rule)).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains(hint), "{text}");
    }
}
