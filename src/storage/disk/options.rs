//! [`DiskOptions`].

use std::sync::Arc;

use super::files::{FileSystem, SystemFiles};

const MIB: u64 = 1024 * 1024;

/// How a [`DiskStorage`](super::DiskStorage) uses disk and memory. The defaults suit a server.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    pub(super) segment_size: u64,
    pub(super) cache_size: usize,
    pub(super) reserve: u64,
    pub(super) waiting_calls: usize,
    pub(super) verified_octets: u64,
    /// A smaller metadata file is not compacted.
    pub(super) small_metadata: u64,
    pub(super) files: Arc<dyn FileSystem>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            segment_size: 64 * MIB,
            cache_size: 32 * MIB as usize,
            reserve: 8 * MIB,
            waiting_calls: 1024,
            verified_octets: 512 * MIB,
            small_metadata: 16 * MIB,
            files: Arc::new(SystemFiles),
        }
    }
}

impl DiskOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// From which size on, in octets, a body file is closed and the next one begun. Default 64 MiB, at least 4 KiB.
    ///
    /// A file is larger than this by what one flush adds. Space is given back file by file: smaller ones give it
    /// back sooner, larger ones make fewer files.
    pub fn with_segment_size(mut self, octets: u64) -> Self {
        self.segment_size = octets.max(4096);
        self
    }

    /// Memory for pages of the metadata file, in octets. Default 32 MiB: it holds the index of a few hundred
    /// thousand messages; a larger backlog is read from disk.
    pub fn with_cache_size(mut self, octets: usize) -> Self {
        self.cache_size = octets;
        self
    }

    /// Disk space set aside for settling mail once the disk is full, in octets. Default 8 MiB; zero: none.
    ///
    /// It is a file of this size. New mail is refused before it is touched. When the metadata file can not grow for what is settled
    /// or kept of accepted mail, the file is given up, and made again of half of what was left then: room is [`Scarce`](crate::storage::Room::Scarce), and new mail is refused, until it is whole. When there
    /// is nothing to give up the commit fails with [`Full`](crate::storage::StorageErrorKind::Full), and room is
    /// [`Exhausted`](crate::storage::Room::Exhausted) until one succeeds. It grows when a body file was given back, and at
    /// each upkeep, as far as there is room.
    pub fn with_reserve(mut self, octets: u64) -> Self {
        self.reserve = octets;
        self
    }

    /// How many inserts and commits may wait for the disk at once. Default 1024, at least 1; more calls wait for
    /// their turn before they take memory here.
    pub fn with_waiting_calls(mut self, calls: usize) -> Self {
        self.waiting_calls = calls.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// Up to which size, in octets, the metadata file is read and verified as a whole when the store is opened. Default
    /// 512 MiB, which is about two million messages; a quarter of it took 0.2 seconds where it was measured.
    ///
    /// A larger one is verified only if damage was met before. Zero: only then, whatever its size.
    pub fn with_verified_metadata(mut self, octets: u64) -> Self {
        self.verified_octets = octets;
        self
    }
}
