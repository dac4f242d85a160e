//! All connections, by what is asked of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::scheduler::limits::SlotKey;
use crate::scheduler::session::{Connection, InTransaction, State};
use crate::scheduler::{ConnectionId, DestinationKey, Scheduler};
use crate::storage::ItemId;
use crate::why::{Holder, Wait};

/// A queue's name and its source.
type QueueId<'a> = (&'a QueueName, &'a Arc<str>);

/// Holders of a limit that are told.
const MOST_HOLDERS: usize = 5;

#[derive(Default)]
pub(super) struct Connections<'a> {
    /// How many each queue holds of a slot.
    holders: HashMap<SlotKey, BTreeMap<QueueId<'a>, u64>>,
    /// Which carries an item.
    pub(super) carrying: HashMap<ItemId, Wait>,
    /// The transaction of each destination that began first.
    pub(super) longest: HashMap<DestinationKey, ((Timestamp, ConnectionId), Wait)>,
    /// The first connection that each destination is opening.
    pub(super) opening: HashMap<DestinationKey, (ConnectionId, &'a Connection)>,
}

impl<'a> Connections<'a> {
    /// Goes over all of them once.
    pub(super) fn of(scheduler: &'a Scheduler) -> Self {
        let mut found = Self::default();
        for (id, connection) in scheduler.connections.iter() {
            found.note(scheduler, id, connection);
        }
        found
    }

    fn note(&mut self, scheduler: &'a Scheduler, id: ConnectionId, connection: &'a Connection) {
        let destination = scheduler.destinations.get(connection.destination);
        let queue = destination.and_then(|destination| scheduler.queues.get(destination.queue));
        for &slot in &connection.holds {
            let Some(queue) = queue else { continue };
            *self.holders.entry(slot).or_default().entry((&queue.name, &queue.source)).or_default() += 1;
        }
        match &connection.state {
            State::Opening => {
                let first = self.opening.entry(connection.destination).or_insert((id, connection));
                if id < first.0 {
                    *first = (id, connection);
                }
            }
            State::Busy(transaction) => {
                let wait = carried(connection, transaction);
                self.carrying.insert(transaction.item, wait.clone());
                let age = (transaction.begun, id);
                let longest = self.longest.entry(connection.destination).or_insert((age, wait.clone()));
                if age < longest.0 {
                    *longest = (age, wait);
                }
            }
            State::Idle { .. } | State::Between | State::Closing => {}
        }
    }

    /// Most first, and how many more there are.
    pub(super) fn holders(&self, slot: SlotKey) -> (Vec<Holder>, u64) {
        let Some(queues) = self.holders.get(&slot) else { return (Vec::new(), 0) };
        let mut holders: Vec<_> = queues.iter().collect();
        holders.sort_by_key(|&(_, &connections)| std::cmp::Reverse(connections));
        let more = holders.len().saturating_sub(MOST_HOLDERS) as u64;
        let told = holders.into_iter().take(MOST_HOLDERS).map(|(&(queue, source), &connections)| Holder {
            queue: queue.clone(),
            source: source.clone(),
            connections,
        });
        (told.collect(), more)
    }
}

fn carried(connection: &Connection, transaction: &InTransaction) -> Wait {
    Wait::InTransaction {
        host: connection.current.host.clone(),
        peer: connection.current.peer,
        since: transaction.begun,
    }
}
