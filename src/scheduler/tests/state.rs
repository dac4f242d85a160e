//! State rows: what can not be read is dropped and told, and the rest stays.

use futures::FutureExt;

use super::harness::*;
use crate::control::Selector;
use crate::event::DeliveryEvent;
use crate::scheduler::{Bounds, Control, Event};
use crate::storage::{Change, StateRow, Storage};

const POLICY: &str = "[domain.\"rate.example\"]\nmax-msg-rate = \"2/h\"";

fn rows(rig: &Rig) -> Vec<StateRow> {
    rig.store.state(None, 1_000).now_or_never().unwrap().unwrap()
}

/// The first part of a key.
fn kind(row: &StateRow) -> &str {
    std::str::from_utf8(row.key.split(|&octet| octet == 0).next().unwrap()).unwrap()
}

fn told(rig: &Rig) -> Vec<&str> {
    rig.events
        .iter()
        .filter_map(|event| match event {
            DeliveryEvent::StorageTrouble(trouble) => Some(&*trouble.error),
            _ => None,
        })
        .collect()
}

/// Two pauses, and one row of each other kind.
fn with_all_kinds() -> Rig {
    let mut rig = Rig::with_policy(POLICY, Bounds::default());
    rig.submit("a@rate.example");
    assert_eq!(rig.accept_all(), 1);
    rig.submit("a@dead.example");
    rig.refuse();
    rig.submit("a@back.example");
    let selector = Selector::queue("back.example");
    rig.control(Control::SetBackoff { selector, backoff: true });
    rig.control(Control::Pause(Selector::queue("one.example")));
    rig.control(Control::Pause(Selector::queue("two.example")));
    let rows = rows(&rig);
    for (name, count) in [("destination", 1), ("queue", 1), ("pace", 1), ("pause", 2)] {
        assert_eq!(rows.iter().filter(|row| kind(row) == name).count(), count, "{name}");
    }
    rig
}

#[test]
fn another_version_of_one_kind_costs_that_kind_alone() {
    for (name, what) in [
        ("destination", "a retry clock"),
        ("queue", "a queue's mode"),
        ("pace", "what is used of a rate"),
        ("pause", "a pause"),
    ] {
        let rig = with_all_kinds();
        let before = rows(&rig);
        let changed = before.iter().filter(|row| kind(row) == name).map(|row| {
            let mut row = row.clone();
            row.value[0] += 6;
            Change::PutState(row)
        });
        rig.store.commit(changed.collect()).now_or_never().unwrap().unwrap();
        let rig = rig.restarted(POLICY);
        // Once, however many rows there are.
        let text = format!("{what} is forgotten: its row is of version 7, and this program knows 1 alone");
        assert_eq!(told(&rig), [&text]);
        let kept: Vec<_> = before.into_iter().filter(|row| kind(row) != name).collect();
        assert_eq!(rows(&rig), kept, "{name}");
        assert_eq!(rig.scheduler.pauses.is_empty(), name == "pause");
        let steps = rig.scheduler.destinations.iter().filter(|(_, destination)| destination.retry.step > 0);
        assert_eq!(steps.count(), usize::from(name != "destination"));
    }
}

#[test]
fn damaged_rows_and_unknown_ones_are_dropped() {
    let mut rig = Rig::with_policy("", Bounds::default());
    for (key, value) in [
        (&b"k"[..], vec![1, 0]),
        (b"", vec![]),
        (b"pause", vec![]),
        (b"pause\0x", vec![1]),
        (b"queue\0x", vec![1, 255, 255, 255]),
    ] {
        rig.tell(Event::State(vec![StateRow { key: key.to_vec(), value }]));
    }
    assert_eq!(rig.committed, 5);
    assert_eq!(
        told(&rig),
        ["something unknown", "a pause", "a queue's mode"]
            .map(|what| format!("{what} is forgotten: its row is damaged, or of a later program"))
    );
    rig.scheduler.assert_empty();
}
