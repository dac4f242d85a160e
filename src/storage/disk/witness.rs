//! What the other tables say about items whose rows are in damaged pages.
//!
//! A page that was not written has the rows of an earlier time, whole, and among them those of items that were settled since. The order has
//! an entry for each item that lives, and so have the messages, or the parts where one has several. What one of them does not have is
//! settled. Neither says with which recipients an item lives, or until when it waits: where its row is of an earlier time, recipients that were
//! settled since get it again, and it is due when it was.

use crate::storage::ItemId;
use crate::storage::order::OrderKey;
use crate::storage::rows::Result;

use super::codec;
use super::salvage::Salvage;
use super::tables::{self, MESSAGES, ORDER, PARTS};

/// Items that live. Takes eight octets for each and each witness.
pub(super) struct Witness {
    /// By the order, if that is sound.
    ordered: Option<Vec<u64>>,
    /// By their messages, if these are.
    listed: Option<Vec<u64>>,
}

impl Witness {
    /// # Errors
    /// `Temporary` if the file can not be read.
    pub(super) fn hear(source: &Salvage) -> Result<Self> {
        let mut ordered = Vec::new();
        let is_sound = source.sound_rows(ORDER, |key, ()| {
            OrderKey::from_bytes(key).map(|key| ordered.push(key.spot.1.0)).is_some()
        })?;
        let ordered = is_sound.then(|| sorted(ordered));
        let mut listed = Vec::new();
        let is_sound = source.sound_rows(MESSAGES, |id, row| {
            let row = codec::message_from_row(tables::id_from(id), row);
            row.map(|row| listed.extend(row.sole.map(|item| item.0))).is_ok()
        })?;
        let is_sound = is_sound
            && source.sound_rows(PARTS, |key, ()| {
                listed.push(tables::part_item(key).0);
                true
            })?;
        Ok(Self { ordered, listed: is_sound.then(|| sorted(listed)) })
    }

    /// Whether an item may live. If both witnesses are damaged, each may: rather mail twice than mail lost.
    pub(super) fn may_live(&self, item: ItemId) -> bool {
        [&self.ordered, &self.listed].into_iter().flatten().all(|ids| ids.binary_search(&item.0).is_ok())
    }
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids.dedup();
    ids.shrink_to_fit();
    ids
}
