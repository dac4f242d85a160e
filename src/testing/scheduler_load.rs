//! [`SchedulerLoad`]: how fast the scheduler decides, alone.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::dns::{Route, RouteHost, RouteKind};
use crate::message::Message;
use crate::policy::Policy;
use crate::reply::Reply;
use crate::scheduler::{Bounds, Command, ConnectionId, Event, Scheduler, Token};
use crate::storage::{
    Change, ChangeOutcome, ClaimPart, Claimed, Inserted, Item, ItemId, Lane, LaneHead, Lease, NewMessage,
    Owner,
};
use crate::transport::{RecipientReport, TransactionReport};

/// Drives the scheduler with a store and a network that answer at once: what is measured is the scheduler.
///
/// Messages to many domains in turn are submitted, looked up, connected for, sent and settled. One thread, no
/// runtime, no clock.
#[derive(Debug)]
pub struct SchedulerLoad {
    messages: Vec<Message>,
    route: Arc<Route>,
}

/// What a [`SchedulerLoad`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerLoadReport {
    /// Events told to the scheduler.
    pub events: u64,
    /// Commands it gave.
    pub commands: u64,
    /// Recipients delivered.
    pub deliveries: u64,
}

impl SchedulerLoad {
    /// `messages` messages, one recipient each, to `domains` domains in turn. Panics never; zero domains are one.
    pub fn new(messages: usize, domains: usize) -> Self {
        let make = |n: usize| {
            Message::new("s@sender.example", [format!("r@d{}.example", n % domains.max(1))], "x").ok()
        };
        let peer = SocketAddr::from(([192, 0, 2, 1], 25));
        let host = RouteHost { name: "mx.example".into(), addresses: vec![peer] };
        let route = Route {
            preferences: vec![vec![host]],
            exchangers: vec![vec!["mx.example".into()]],
            kind: RouteKind::Mx,
            ttl: Duration::from_secs(3600),
        };
        Self { messages: (0..messages).filter_map(make).collect(), route: Arc::new(route) }
    }

    /// Takes all messages to their end.
    pub fn run(&self) -> SchedulerLoadReport {
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let bounds = Bounds::default();
        let mut world = World {
            scheduler: Scheduler::new(Policy::new(), "mta.example.org".into(), Owner(1), 1, bounds),
            now,
            report: SchedulerLoadReport::default(),
            answers: VecDeque::new(),
            stored: HashMap::new(),
            items: HashMap::new(),
            next_item: 0,
            route: self.route.clone(),
            reply: Reply::new(250, [b"2.0.0 ok".as_slice()]),
        };
        for (token, message) in (0..).zip(&self.messages) {
            world.tell(Event::Submit { token: Token(token), message: Box::new(message.clone()) });
            // Answers come a few at a time, as they would while submissions go on.
            for _ in 0..8 {
                world.answer();
            }
        }
        while world.answer() || world.wait() {}
        world.report.deliveries = world.scheduler.counters.delivered;
        world.report
    }
}

struct World {
    scheduler: Scheduler,
    now: Timestamp,
    report: SchedulerLoadReport,
    answers: VecDeque<Event>,
    /// Items without a lease, by lane, in order of their insertion, which is that of their due times.
    stored: HashMap<Lane, VecDeque<ItemId>>,
    items: HashMap<ItemId, Item>,
    next_item: u64,
    route: Arc<Route>,
    reply: Reply,
}

impl World {
    fn tell(&mut self, event: Event) {
        self.report.events += 1;
        self.scheduler.handle(self.now, event);
        self.take_commands();
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.scheduler.poll_command() {
            self.report.commands += 1;
            if let Some(answer) = self.carry_out(command) {
                self.answers.push_back(answer);
            }
        }
    }

    fn answer(&mut self) -> bool {
        let answer = self.answers.pop_front();
        answer.is_some_and(|event| {
            self.tell(event);
            true
        })
    }

    fn wait(&mut self) -> bool {
        let Some(at) = self.scheduler.poll_timeout() else { return false };
        self.now = at;
        self.scheduler.handle_timeout(at);
        self.take_commands();
        true
    }

    fn carry_out(&mut self, command: Command) -> Option<Event> {
        Some(match command {
            Command::Insert(messages) => {
                Event::InsertDone(Ok(messages.into_iter().map(|message| self.insert(message)).collect()))
            }
            Command::Commit(changes) => {
                for change in &changes {
                    match change {
                        Change::Update { item, .. } => drop(self.items.remove(item)),
                        Change::Unclaim { item, .. } => self.free(*item),
                        _ => {}
                    }
                }
                Event::CommitDone(Ok(vec![ChangeOutcome::Applied; changes.len()]))
            }
            Command::Claim { claim, what } => Event::Claimed { claim, result: Ok(self.claim(&what)) },
            Command::List { token, .. } => Event::Listed { token, result: Ok(Vec::new()) },
            Command::Page { token, .. } => Event::Page { token, result: Ok(Vec::new()) },
            Command::Resolve { destination, .. } => {
                Event::Resolved { destination, result: Ok(self.route.clone()) }
            }
            Command::Connect { connection, .. } => Event::Connected { connection, tls: None },
            Command::Transact { connection, transaction } => {
                self.accept(connection, transaction.recipients.len())
            }
            Command::Close { connection } => Event::Closed { connection },
            Command::Report(_) | Command::Answer { .. } | Command::Drained => return None,
        })
    }

    fn insert(&mut self, message: NewMessage) -> Inserted {
        let mut keys = Vec::with_capacity(message.items.len());
        for new in message.items {
            self.next_item += 1;
            let (id, lease) = (ItemId(self.next_item), Lease(self.next_item));
            let (lane, due, recipients) = (new.lane, new.due, new.recipients);
            let item = Item { id, lease, lane, due, envelope: message.envelope.clone(), recipients };
            self.items.insert(id, item);
            if new.claim_for.is_none() {
                self.free(id);
            }
            keys.push((id, new.claim_for.map(|_| lease)));
        }
        Inserted::Stored(keys)
    }

    fn free(&mut self, id: ItemId) {
        if let Some(item) = self.items.get(&id) {
            self.stored.entry(item.lane.clone()).or_default().push_back(id);
        }
    }

    fn claim(&mut self, what: &[ClaimPart]) -> Claimed {
        let mut claimed = Claimed::default();
        for part in what {
            let ClaimPart::Due { lane, limit, .. } = part else { continue };
            let stored = self.stored.entry(lane.clone()).or_default();
            let taken: Vec<_> = stored.drain(..stored.len().min(*limit)).collect();
            claimed.items.extend(taken.iter().filter_map(|id| self.items.get(id).cloned()));
            let first = stored.front().and_then(|id| self.items.get(id));
            claimed.heads.push(LaneHead {
                lane: lane.clone(),
                next_due: first.map(|item| item.due),
                oldest: first.map(|item| item.envelope.age_from),
                oldest_with_expiry: None,
                first_expiry: None,
            });
        }
        claimed
    }

    fn accept(&self, connection: ConnectionId, recipients: usize) -> Event {
        let report = TransactionReport {
            mail: Some(self.reply.clone()),
            recipients: vec![RecipientReport::Reply(self.reply.clone()); recipients],
            data: Some(Reply::new(354, [b"go on".as_slice()])),
            dot_sent: true,
            dot: Some(self.reply.clone()),
            end: None,
        };
        Event::TransactionDone { connection, report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_delivered() {
        for domains in [1, 10, 1_000] {
            assert_eq!(SchedulerLoad::new(1_000, domains).run().deliveries, 1_000, "{domains} domains");
        }
    }
}
