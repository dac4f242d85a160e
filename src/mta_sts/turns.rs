//! Turns at something slow, which owners of names share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::owner;

/// So many at a time, of which each group of names has a part.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    of_wide: usize,
    of_narrow: usize,
    /// Those of which somebody has a turn, or waits for one.
    groups: Mutex<HashMap<Group, Arc<Semaphore>>>,
}

type Group = (Breadth, Box<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Breadth {
    Narrow,
    Wide,
}

/// A turn, or what there is of one. Over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    groups: [Group; 2],
    /// Those of its groups, and that of all.
    lines: Vec<Arc<Semaphore>>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new(all: usize, of_wide: usize, of_narrow: usize) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), of_wide, of_narrow, groups: Mutex::default() })
    }

    /// Waits for a turn of this domain's.
    pub(super) async fn wait(self: &Arc<Self>, domain: &str) -> Option<Turn> {
        let mut turn = self.stand_in_line(domain);
        for line in turn.lines.clone() {
            turn.permits.push(line.acquire_owned().await.ok()?);
        }
        Some(turn)
    }

    /// A turn, if there is one now.
    pub(super) fn take(self: &Arc<Self>, domain: &str) -> Option<Turn> {
        let mut turn = self.stand_in_line(domain);
        for line in turn.lines.clone() {
            turn.permits.push(line.try_acquire_owned().ok()?);
        }
        Some(turn)
    }

    fn stand_in_line(self: &Arc<Self>, domain: &str) -> Turn {
        let groups =
            [(Breadth::Narrow, owner::narrow(domain).into()), (Breadth::Wide, owner::wide(domain).into())];
        let mut known = self.groups();
        let mut line = |group: &Group, turns| {
            let line = known.entry(group.clone()).or_insert_with(|| Arc::new(Semaphore::new(turns)));
            line.clone()
        };
        // Who waits for a wider group has a turn of the narrower one: all wait in the same order.
        let [narrow, wide] = &groups;
        let lines = vec![line(narrow, self.of_narrow), line(wide, self.of_wide), self.all.clone()];
        drop(known);
        Turn { turns: self.clone(), groups, lines, permits: Vec::new() }
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Group, Arc<Semaphore>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn are_all_free(&self, all: usize) -> bool {
        self.all.available_permits() == all && self.groups().is_empty()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permits.clear();
        self.lines.clear();
        let mut known = self.turns.groups();
        for group in &self.groups {
            if known.get(group).is_some_and(|line| Arc::strong_count(line) == 1) {
                known.remove(group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn each_group_has_its_part_of_the_turns() {
        let turns = Turns::new(6, 4, 2);
        let take = |domain: &str| turns.take(domain);
        let mut held: Vec<Turn> =
            ["a.x.co.example", "b.x.co.example"].iter().filter_map(|name| take(name)).collect();
        assert_eq!(held.len(), 2);
        assert!(take("c.x.co.example").is_none(), "those of the narrow group are taken");
        held.extend(["y.co.example", "z.co.example"].iter().filter_map(|name| take(name)));
        assert_eq!(held.len(), 4);
        assert!(take("w.co.example").is_none(), "those of the wide group are");
        held.extend(["example.com", "example.net"].iter().filter_map(|name| take(name)));
        assert_eq!(held.len(), 6);
        assert!(take("example.org").is_none(), "all are");
        let mut waiting = Box::pin(turns.wait("c.x.co.example"));
        assert!(waiting.as_mut().now_or_never().is_none());
        held.remove(0);
        assert!(waiting.as_mut().now_or_never().flatten().is_some());
        drop(held);
        drop(waiting);
        assert!(turns.are_all_free(6));
    }

    /// Below the name of a registry each owner has a part of its own.
    #[test]
    fn a_slow_owner_leaves_its_registry_s_others_their_turns() {
        let turns = Turns::new(20, 4, 2);
        let slow = ["a.x.slow.co.uk", "b.x.slow.co.uk", "a.y.slow.co.uk", "b.y.slow.co.uk", "a.z.slow.co.uk"];
        let held: Vec<Turn> = slow.iter().filter_map(|name| turns.take(name)).collect();
        assert_eq!(held.len(), 4);
        assert!(turns.take("good.co.uk").is_some());
    }

    #[test]
    fn who_stops_waiting_leaves_nothing() {
        let turns = Turns::new(1, 1, 1);
        let held = turns.take("a.example.com");
        let mut waiting = Box::pin(turns.wait("b.example.com"));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        drop(held);
        assert!(turns.are_all_free(1));
    }
}
