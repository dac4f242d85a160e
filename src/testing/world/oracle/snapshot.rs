//! Store and engine at a moment in which nothing moves.

use std::time::Duration;

use super::super::book::Book;
use super::Broken;
use crate::clock::Timestamp;
use crate::engine::DeliveryEngine;
use crate::event::DeliveryEvent;
use crate::scheduler::Gauges;
use crate::storage::{Filter, ItemSummary, OutboxPosition, Storage, StorageError};
use crate::testing::conversation::pause;

/// In so long all that could be done at once is done.
pub(in crate::testing::world) const MOMENT: Duration = Duration::from_millis(1);
/// Items and outcomes read at a time.
const PAGE: usize = 4_096;

pub(in crate::testing::world) struct Snapshot {
    pub(super) at: Duration,
    pub(super) time: Timestamp,
    pub(super) items: Vec<ItemSummary>,
    pub(super) outbox: Vec<(OutboxPosition, DeliveryEvent)>,
    /// `None`: the engine has ended.
    pub(super) gauges: Option<Gauges>,
}

impl Snapshot {
    pub(in crate::testing::world) fn at(&self) -> Duration {
        self.at
    }

    /// Waits a moment, so that all that could be done at once is done.
    ///
    /// # Errors
    /// The store can not be read, so that nothing could be judged.
    pub(in crate::testing::world) async fn take(
        engine: &DeliveryEngine,
        store: &dyn Storage,
        book: &Book,
    ) -> Result<Self, Broken> {
        pause(MOMENT).await;
        let gauges = engine.gauges().await.ok();
        let items = items(store).await?;
        let outbox = outbox(store).await?;
        Ok(Self { at: book.elapsed(), time: book.now(), items, outbox, gauges })
    }
}

fn unread(error: StorageError) -> Broken {
    let what = format!("the store does not tell what it holds: {error}");
    Broken { invariant: "unanswered", what, message: None, queue: None }
}

fn repeated(what: String) -> Broken {
    Broken { invariant: "endless", what, message: None, queue: None }
}

async fn items(store: &dyn Storage) -> Result<Vec<ItemSummary>, Broken> {
    let mut items: Vec<ItemSummary> = Vec::new();
    loop {
        let after = items.last().map(ItemSummary::position);
        let page = store.list(Filter::All, after, PAGE).await.map_err(unread)?;
        let Some(first) = page.first() else { return Ok(items) };
        if after.is_some_and(|after| first.id <= after.id) {
            return Err(repeated(format!("the store lists {:?} after {after:?}", first.id)));
        }
        items.extend(page);
    }
}

async fn outbox(store: &dyn Storage) -> Result<Vec<(OutboxPosition, DeliveryEvent)>, Broken> {
    let mut events = Vec::new();
    let mut after = OutboxPosition::default();
    loop {
        let page = store.outbox(after, PAGE).await.map_err(unread)?;
        let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(events) };
        if first.position <= after {
            return Err(repeated(format!(
                "the store has {:?} after {after:?} in its outbox",
                first.position
            )));
        }
        after = last.position;
        events.extend(
            page.iter().filter_map(|entry| Some((entry.position, crate::outbox::event(entry).ok()?))),
        );
    }
}
