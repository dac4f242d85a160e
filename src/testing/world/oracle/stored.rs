//! The store holds what it was given.

use super::{Facts, Invariant, Judgement, Snapshot, Wrong};

pub(super) struct Stored;

impl Invariant for Stored {
    fn check(&mut self, facts: &Facts, snapshot: &Snapshot) -> Judgement {
        let found = snapshot.items.iter().try_for_each(|item| facts.given.listed(item));
        found.map_err(|(message, what)| Wrong { message: Some(message), ..what.into() })
    }
}
