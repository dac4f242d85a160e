//! That metadata and bodies belong together: a store's id in both, and in both how far they have come.
//!
//! Each commit has a number. The metadata keeps the last one, and each record of a body file bears that of the commit it was
//! written for. A crash leaves records of the next commit and of none beyond, so those of a later one say that the
//! metadata was put back from an earlier time. Most of what it does not know then is somebody's mail.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::storage::rows::Result;

use super::error::corrupt;
use super::open::METADATA;
use super::segment::{Bodies, FILE_HEADER};

/// What the metadata says about its body files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pairing {
    /// The store's id, drawn when it was opened for the first time. The header of each body file has it too.
    pub(super) store: u128,
    /// The number of the last commit.
    pub(super) commit: u64,
    /// The body file that was written last; zero: none ever was.
    pub(super) segment: u64,
    /// How long that file was then.
    pub(super) length: u64,
}

impl Pairing {
    /// That of a new store.
    pub(super) fn new(store: u128) -> Self {
        Self { store, commit: 0, segment: 0, length: FILE_HEADER }
    }

    /// Where the metadata has lost it: all that is in the body files is taken for known. Follows all their records.
    ///
    /// # Errors
    /// `Corrupt` if there are files of two stores.
    pub(super) fn derive(bodies: &Bodies, files: &BTreeMap<u64, u64>, otherwise: u128) -> Result<Self> {
        let mut derived =
            Self::new(files.keys().find_map(|file| bodies.store_of(*file)).unwrap_or(otherwise));
        for (segment, size) in files {
            derived.check_store(bodies, *segment)?;
            let records = bodies.records(*segment, FILE_HEADER, *size).map_while(Result::ok);
            derived.commit = records.map(|(_, header)| header.commit).fold(derived.commit, u64::max);
            (derived.segment, derived.length) = (*segment, *size);
        }
        Ok(derived)
    }

    /// Reads the header of each body file, and of records those that came after the last commit: none, unless the
    /// store was not closed in good order.
    ///
    /// # Errors
    /// `Corrupt` if there are bodies of another store, or the metadata is older than the bodies.
    pub(super) fn verify(&self, bodies: &Bodies, files: &BTreeMap<u64, u64>) -> Result<()> {
        self.verify_store(bodies, files.keys().copied())?;
        for (segment, size) in files.range(self.segment..) {
            let from = if *segment == self.segment { self.length } else { FILE_HEADER };
            // What can not be read says nothing, and is told where it is missed.
            for (offset, header) in bodies.records(*segment, from, *size).map_while(Result::ok) {
                if header.commit > self.commit.saturating_add(1) {
                    return Err(self.older(bodies, (*segment, offset, header.commit)));
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// `Corrupt` if there are bodies of another store.
    pub(super) fn verify_store(&self, bodies: &Bodies, mut files: impl Iterator<Item = u64>) -> Result<()> {
        files.try_for_each(|segment| self.check_store(bodies, segment))
    }

    /// A header that can not be read says nothing.
    fn check_store(&self, bodies: &Bodies, segment: u64) -> Result<()> {
        match bodies.store_of(segment) {
            Some(other) if other != self.store => Err(corrupt(format!(
                "{METADATA} is of the store {:032x}, {} of the store {other:032x}: put back the metadata that these bodies \
                 came with, or move the body files of the other store away",
                self.store,
                bodies.path_of(segment).display()
            ))),
            _ => Ok(()),
        }
    }

    fn older(
        &self,
        bodies: &Bodies,
        (segment, offset, commit): (u64, u64, u64),
    ) -> crate::storage::StorageError {
        let last = bodies.path_of(self.segment);
        corrupt(format!(
            "{METADATA} is older than its bodies: its last commit is {}, the record at {offset} of {} is of commit {commit}. \
             Put the newest metadata back. To go on without what was stored since, move the body files after {} away and \
             cut that one, if it is there, to {} octets",
            self.commit,
            bodies.path_of(segment).display(),
            last.display(),
            self.length
        ))
    }
}
