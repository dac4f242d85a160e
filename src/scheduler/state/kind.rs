//! The kinds of rows. Each has a version of its own, so that a change to one loses what is kept of that one alone.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{DestinationRow, PaceRow, QueueRow};
use crate::control::Selector;
use crate::storage::StateRow;

/// What rows of one kind hold. It is to be raised with each change of what is written: rows of another version are dropped, and
/// that is told.
pub(super) trait Kind: Serialize + DeserializeOwned {
    /// The first part of their keys.
    const NAME: &'static [u8];
    /// The first octet of their values.
    const VERSION: u8;
    /// What they are, for who must be told that they are gone.
    const WHAT: &'static str;
}

impl Kind for DestinationRow {
    const NAME: &'static [u8] = b"destination";
    const VERSION: u8 = 1;
    const WHAT: &'static str = "a retry clock";
}

impl Kind for QueueRow {
    const NAME: &'static [u8] = b"queue";
    const VERSION: u8 = 1;
    const WHAT: &'static str = "a queue's mode";
}

impl Kind for PaceRow {
    const NAME: &'static [u8] = b"pace";
    const VERSION: u8 = 1;
    const WHAT: &'static str = "what is used of a rate";
}

impl Kind for Selector {
    const NAME: &'static [u8] = b"pause";
    const VERSION: u8 = 1;
    const WHAT: &'static str = "a pause";
}

/// What a row holds.
pub(super) enum Row {
    Destination(DestinationRow),
    Queue(QueueRow),
    Pace(PaceRow),
    Pause(Selector),
}

impl Row {
    pub(super) fn read(row: &StateRow) -> Result<Self, Unread> {
        let name = row.key.split(|&octet| octet == 0).next().unwrap_or_default();
        match name {
            DestinationRow::NAME => decode(row).map(Self::Destination),
            QueueRow::NAME => decode(row).map(Self::Queue),
            PaceRow::NAME => decode(row).map(Self::Pace),
            Selector::NAME => decode(row).map(Self::Pause),
            _ => Err(Unread { what: "something unknown", version: None }),
        }
    }
}

fn decode<K: Kind>(row: &StateRow) -> Result<K, Unread> {
    match row.value.split_first() {
        Some((&version, encoded)) if version == K::VERSION => {
            postcard::from_bytes(encoded).map_err(|_| Unread { what: K::WHAT, version: None })
        }
        Some((&version, _)) => Err(Unread { what: K::WHAT, version: Some((version, K::VERSION)) }),
        None => Err(Unread { what: K::WHAT, version: None }),
    }
}

/// A row that can not be read. The same for all of a kind, so that it is told once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unread {
    what: &'static str,
    /// It has this one, and not that.
    version: Option<(u8, u8)>,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is forgotten: its row ", self.what)?;
        match self.version {
            Some((got, known)) => write!(f, "is of version {got}, and this program knows {known} alone"),
            None => f.write_str("is damaged, or of a later program"),
        }
    }
}
