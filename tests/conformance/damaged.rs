//! What a store does about entries that are damaged.

use bytes::Bytes;
use postrider::message::EventId;
use postrider::storage::{
    BodyKey, Change, Filter, Item, ItemSummary, OutboxEntry, StateRow, StorageError, StorageErrorKind,
};
use postrider::testing::conformance::Damage;

use crate::faults::Fault;
use crate::faulty::{FaultyStore, Result, error};

impl FaultyStore {
    fn is_damaged(&self, what: Damage) -> bool {
        self.kept().damaged.contains(&what)
    }

    /// How many entries a page may lack.
    pub(crate) fn damaged(&self) -> usize {
        self.kept().damaged.len()
    }

    /// Takes note of a damaged entry that was met.
    fn meet(&self, what: Damage) -> StorageError {
        let kind = match self.has(Fault::SaysTemporaryForCorrupt) {
            true => StorageErrorKind::Temporary,
            false => StorageErrorKind::Corrupt,
        };
        let damage = StorageError::new(kind, format!("{what:?}"));
        let mut open = self.open();
        let is_new = open.met.insert(format!("{what:?}"));
        if (is_new || self.has(Fault::TellsDamageAgain)) && !self.has(Fault::SkipsDamage) {
            open.damage.push(damage.clone());
        }
        damage
    }

    /// `true`: it is whole.
    fn is_whole(&self, what: Damage) -> bool {
        let damaged = self.is_damaged(what);
        if damaged {
            self.meet(what);
        }
        !damaged
    }

    pub(crate) fn whole_claims(&self, items: &mut Vec<Item>) {
        items.retain(|item| self.is_whole(Damage::Item(item.id)));
    }

    pub(crate) fn whole_items(
        &self,
        filter: &Filter,
        limit: usize,
        items: &mut Vec<ItemSummary>,
    ) -> Result<()> {
        if self.has(Fault::DamageShortensPages) {
            items.truncate(limit);
        }
        let before = items.len();
        items.retain(|item| self.is_whole(Damage::Item(item.id)));
        items.truncate(limit);
        let lost = items.is_empty() && matches!(filter, Filter::Message(_));
        let fails = lost && !self.has(Fault::ListsADamagedMessageAsGone);
        if before > items.len() && (fails || self.has(Fault::FailsWithADamagedItem)) {
            return Err(error(StorageErrorKind::Corrupt));
        }
        Ok(())
    }

    pub(crate) fn whole_state(&self, limit: usize, rows: &mut Vec<StateRow>) -> Result<()> {
        let damaged = |row: &StateRow| {
            let damaged = self.kept().damaged.clone();
            damaged.into_iter().find(|what| matches!(what, Damage::State(key) if *key == row.key))
        };
        if self.has(Fault::FailsWithADamagedRow) && rows.iter().any(|row| damaged(row).is_some()) {
            return Err(error(StorageErrorKind::Corrupt));
        }
        rows.retain(|row| damaged(row).is_none_or(|what| self.is_whole(what)));
        rows.truncate(limit);
        Ok(())
    }

    pub(crate) fn whole_outbox(&self, entries: &mut Vec<OutboxEntry>) {
        if self.has(Fault::DropsDamagedOutcomes) {
            entries.retain(|entry| self.is_whole(Damage::Outbox(entry.position)));
        }
        for entry in entries {
            if !self.is_whole(Damage::Outbox(entry.position)) {
                (entry.event, entry.payload) = (EventId::from_uuid(uuid::Uuid::nil()), Bytes::new());
            }
        }
    }

    /// What is written anew is whole.
    pub(crate) fn written(&self, change: &Change) {
        if let Change::PutState(row) = change {
            self.kept().damaged.retain(|what| !matches!(what, Damage::State(key) if *key == row.key));
        }
    }

    pub(crate) fn damage_bodies(&self, keys: &[BodyKey], bodies: &mut Vec<Result<Bytes>>) -> Result<()> {
        let damaged = |key: &BodyKey| self.is_damaged(Damage::Body(key.0));
        for (key, body) in
            keys.iter().zip(bodies.iter_mut()).filter(|(key, body)| damaged(key) && body.is_ok())
        {
            *body = match self.fault {
                Fault::ServesDamagedBodies => Ok(Bytes::from_static(b"something else")),
                Fault::FailsWithADamagedBody => return Err(error(StorageErrorKind::Corrupt)),
                Fault::SaysTemporaryForCorrupt => Err(error(StorageErrorKind::Temporary)),
                _ => Err(StorageError::new(StorageErrorKind::Corrupt, format!("the body of {}", key.0))),
            };
        }
        if self.has(Fault::SkipsDamagedBodies) {
            bodies.retain(|body| !matches!(body, Err(error) if error.kind() == StorageErrorKind::Corrupt));
        }
        Ok(())
    }
}
