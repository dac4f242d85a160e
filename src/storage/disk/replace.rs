//! A new metadata file in the place of a damaged one, which stays beside it.

use std::io;
use std::path::Path;

use crate::storage::rows::Result;

use super::error;
use super::files::FileSystem;
use super::open::{METADATA, is_there};

/// The new file while it is written.
pub(super) const REBUILDING: &str = "metadata.rebuilding";
/// The new file once it is whole, until it takes the place of the old one.
pub(super) const REBUILT: &str = "metadata.rebuilt";
/// What the damaged file is called afterwards. It is not read again.
pub(super) const DAMAGED: &str = "metadata.damaged";
/// So many damaged files are kept. Then the last one is replaced: the first has most of what there was.
const MOST_KEPT: u32 = 4;

/// Ends a rebuild that was cut off: the old file goes only once the new one is whole. One that is not whole goes.
pub(super) fn finish(path: &Path, files: &dyn FileSystem) -> Result<()> {
    let [name, rebuilding, rebuilt] = [METADATA, REBUILDING, REBUILT].map(|name| path.join(name));
    let finish = || {
        if is_there(files, &rebuilding)? {
            files.remove(&rebuilding)?;
        }
        if !is_there(files, &rebuilt)? {
            return Ok(());
        }
        if is_there(files, &name)? {
            files.remove(&rebuilt)?;
        } else {
            files.rename(&rebuilt, &name)?;
        }
        files.sync_folder(path)
    };
    finish().map_err(|error| error::io("renaming", &rebuilt, error))
}

/// Puts the new file, which is whole, in the place of the damaged one. Returns under which name that is kept.
pub(super) fn replace(path: &Path, files: &dyn FileSystem) -> Result<String> {
    let [name, rebuilding, rebuilt] = [METADATA, REBUILDING, REBUILT].map(|name| path.join(name));
    let replace = || {
        let kept = kept_name(path, files)?;
        files.rename(&rebuilding, &rebuilt)?;
        files.sync_folder(path)?;
        files.rename(&name, &path.join(&kept))?;
        // Else the next one could be on disk without this one, and the damaged file be gone.
        files.sync_folder(path)?;
        files.rename(&rebuilt, &name)?;
        files.sync_folder(path)?;
        Ok(kept)
    };
    replace().map_err(|error| error::io("renaming", &rebuilt, error))
}

/// Under which name a damaged file is kept.
fn kept_name(path: &Path, files: &dyn FileSystem) -> io::Result<String> {
    for nth in 1..MOST_KEPT {
        let name = if nth == 1 { DAMAGED.to_owned() } else { format!("{DAMAGED}-{nth}") };
        if !is_there(files, &path.join(&name))? {
            return Ok(name);
        }
    }
    Ok(format!("{DAMAGED}-{MOST_KEPT}"))
}
