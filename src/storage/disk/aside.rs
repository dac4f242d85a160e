//! Body files that were set aside over damage to the metadata.

use std::path::Path;

use crate::storage::rows::Result;

use super::error;
use super::files::FileSystem;
use super::segment::number_in;

/// What body files are called in which nothing is known to be alive, over damage to what would say so.
pub(super) const ASIDE: &str = "bodies-damaged";

/// Body files that were set aside. They are not read again.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside {
    pub(super) files: u64,
    pub(super) octets: u64,
    pub(super) last: Option<u64>,
}

impl Aside {
    /// What the host is to know of them.
    pub(super) fn words(&self) -> Option<String> {
        let Self { files, octets, .. } = self;
        (*files > 0).then(|| {
            format!(
                "the metadata was damaged once, and may have lost what led to bodies in {files} files of {octets} octets: they \
                 are kept as *.{ASIDE} beside the other body files. Delete them once no mail in them is missed"
            )
        })
    }
}

/// The body files in the folder that were set aside.
pub(super) fn aside(files: &dyn FileSystem, folder: &Path) -> Result<Aside> {
    let mut aside = Aside::default();
    for (path, octets) in files.list(folder).map_err(|error| error::io("listing", folder, error))? {
        if let Some(number) = number_in(&path, ASIDE) {
            aside.files += 1;
            aside.octets = aside.octets.saturating_add(octets);
            aside.last = aside.last.max(Some(number));
        }
    }
    Ok(aside)
}
