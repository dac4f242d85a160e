//! [`SchedulerLoad`]: how fast the scheduler decides, alone.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::dns::{Route, RouteHost, RouteKind};
use crate::message::{Address, Domain, Message, MessageId, Priority};
use crate::policy::{DomainSettings, Policy, RetryAfter};
use crate::reply::Reply;
use crate::scheduler::{Bounds, Command, Event, Outgoing, Scheduler, Token};
use crate::storage::{
    Change, ChangeOutcome, ClaimPart, Claimed, Envelope, Inserted, Item, ItemId, Lane, LaneHead, Lease,
    NewMessage, Owner, Recipient,
};
use crate::transport::{RecipientReport, TransactionReport};

/// Drives the scheduler with a store and a network made of a few tables, on a clock of its own: no thread, no I/O.
///
/// There is a queue for each of `queues` domains, each with a host of its own, and mail in all of them at all times:
/// one message in each waits in the store, and is deferred anew whenever it is tried. Besides, messages to random
/// domains come in and are delivered. Of a hundred attempts in a second, twenty are of messages that waited. For each
/// attempt a message is submitted or claimed, its domain looked up, a connection opened, the message sent and its
/// outcome written; when the session has idled for five seconds it is closed. The store takes 5 ms for anything, the
/// network 30 to 200 ms. Queues are visited in no order in which anything lies in memory, and long after the last time:
/// what is known of one is in no cache by then.
///
/// Two schedulers are told the same, and so do the same. The first one is given answers by the store and the network,
/// and what it is told is written down ([`prepare`](Self::prepare)). The second one is told that, a few events at a
/// time, made ready just before as they would come from a task that has just made them ([`make_ready`](Self::make_ready)).
/// Then nobody but the scheduler works ([`replay`](Self::replay)).
///
/// ```
/// let mut load = postrider::testing::SchedulerLoad::new(100, 1);
/// load.prepare(10_000);
/// while load.make_ready(32) {
///     load.replay(); // What is to be timed.
/// }
/// assert_eq!(load.report().queues_with_mail, 100);
/// ```
pub struct SchedulerLoad {
    first: Box<Scheduler>,
    second: Box<Scheduler>,
    now: Timestamp,
    random: fastrand::Rng,
    queues: u32,
    /// What happens, and when; what is to happen at the same time in order.
    agenda: BTreeMap<(Timestamp, u64), Event>,
    /// What the second one is still to be told, the last first.
    script: Vec<Told>,
    /// Of that, what is ready.
    ready: Vec<Told>,
    /// What it commanded.
    commands: Vec<Command>,
    /// In place of what was committed.
    nothing: Arc<Vec<Change>>,
    next_submission: Timestamp,
    store: Store,
    network: Network,
    report: SchedulerLoadReport,
}

/// An event, or that a timer is due.
type Told = (Timestamp, Option<Event>);

/// What a [`SchedulerLoad`] did, and what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerLoadReport {
    /// Events told to the scheduler, and times that it was told that a timer of its is due.
    pub events: u64,
    /// Commands it gave.
    pub commands: u64,
    /// Messages submitted.
    pub submitted: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Attempts that were deferred.
    pub deferred: u64,
    /// Messages in the store.
    pub stored: usize,
    /// Queues of the scheduler.
    pub queues: usize,
    /// Domains with mail in the store.
    pub queues_with_mail: usize,
}

/// Eighty messages come in a second.
const BETWEEN_SUBMISSIONS: Duration = Duration::from_micros(12_500);
/// So many of the messages that wait are tried in a second.
const RETRIES: u32 = 20;
const STORE: Duration = Duration::from_millis(5);
const LOOK_UP: Duration = Duration::from_millis(30);
const CONNECT: Duration = Duration::from_millis(100);
const TRANSACT: Duration = Duration::from_millis(200);
const CLOSE: Duration = Duration::from_millis(50);
/// Heads of lanes told at a time at the start.
const PAGE: usize = 1_000;

impl SchedulerLoad {
    /// An engine that has just started with a message in the store for each domain. The same seed gives the same
    /// load.
    pub fn new(queues: u32, seed: u64) -> Self {
        let queues = queues.max(1);
        let mut random = fastrand::Rng::with_seed(seed);
        let now = Timestamp::from_unix_seconds(1_800_000_000);
        let interval = Duration::from_secs(1).max(Duration::from_secs(1) * queues / RETRIES);
        let retries = RetryAfter::new([interval]).unwrap_or_default();
        let settings = DomainSettings::new().with_retry_after(retries);
        let policy = Policy::new().with_domain("*", settings).unwrap_or_default();
        let scheduler = || {
            let name = "mta.example.org".into();
            Box::new(Scheduler::new(policy.clone(), name, Owner(1), seed, Bounds::default()))
        };
        let mut load = Self {
            first: scheduler(),
            second: scheduler(),
            now,
            queues,
            agenda: BTreeMap::new(),
            script: Vec::new(),
            ready: Vec::new(),
            commands: Vec::new(),
            nothing: Arc::default(),
            next_submission: now,
            store: Store::default(),
            network: Network::default(),
            report: SchedulerLoadReport::default(),
            random: random.fork(),
        };
        // Each in its turn, in no order.
        let mut turns: Vec<u32> = (0..queues).collect();
        random.shuffle(&mut turns);
        for (turn, queue) in turns.into_iter().zip(0..) {
            let Ok(address) = Address::parse(&address(true, queue)) else { continue };
            load.store.add(waiting_item(now, now + interval * turn / queues, address), false);
        }
        let mut heads: Vec<LaneHead> =
            load.store.lanes.iter().map(|(lane, stored)| stored.head(lane)).collect();
        heads.sort_by(|a, b| a.lane.cmp(&b.lane));
        for page in heads.chunks(PAGE) {
            load.first.handle(now, Event::Heads(page.to_vec()));
            load.second.handle(now, Event::Heads(page.iter().filter_map(copy).collect()));
        }
        load
    }

    /// The first scheduler goes on for so many events.
    pub fn prepare(&mut self, events: usize) {
        for _ in 0..events {
            if !self.step() {
                break;
            }
        }
        self.script.reverse();
    }

    /// Takes so many events of what was prepared, or what is left. `false`: there was nothing left.
    ///
    /// What the commands of the last ones carried is freed here, as it is by who carries them out.
    pub fn make_ready(&mut self, events: usize) -> bool {
        self.commands.clear();
        let rest = self.script.len().saturating_sub(events);
        let script = self.script.drain(rest..).rev();
        self.ready.extend(script.map(|(now, event)| (now, event.as_ref().map(made_anew))));
        !self.ready.is_empty()
    }

    /// Tells the second scheduler what is ready, and takes its commands.
    pub fn replay(&mut self) {
        for (now, event) in self.ready.drain(..) {
            // Who commits has let go of it when it is done.
            if let Some(Event::CommitDone(_)) = event
                && let Some(Command::Commit(changes)) =
                    self.commands.iter_mut().rfind(|command| matches!(command, Command::Commit(_)))
            {
                *changes = self.nothing.clone();
            }
            match event {
                Some(event) => self.second.handle(now, event),
                None => self.second.handle_timeout(now),
            }
            while let Some(command) = self.second.poll_command() {
                self.commands.push(command);
            }
        }
    }

    /// No more mail comes, and from now on all of it is taken, until nothing is left.
    pub fn finish(&mut self) {
        self.network.takes_all = true;
        self.next_submission = Timestamp::MAX;
        self.prepare(usize::MAX);
        while self.make_ready(1) {
            self.replay();
        }
    }

    /// What was done up to now.
    pub fn report(&self) -> SchedulerLoadReport {
        SchedulerLoadReport {
            delivered: self.second.counters.delivered,
            deferred: self.second.counters.deferred,
            stored: self.store.lanes.values().map(|stored| stored.free.len() + stored.leased).sum(),
            queues: self.second.queue_counts().0,
            queues_with_mail: self.store.lanes.len(),
            ..self.report
        }
    }

    /// The next thing that happens. `false`: nothing does.
    fn step(&mut self) -> bool {
        let event = self.agenda.first_key_value().map_or(Timestamp::MAX, |(&(at, _), _)| at);
        let timer = self.first.poll_timeout().unwrap_or(Timestamp::MAX);
        let next = event.min(timer).min(self.next_submission);
        if next == Timestamp::MAX {
            return false;
        }
        self.now = self.now.max(next);
        let told = if next == timer {
            None
        } else if next == event {
            self.agenda.pop_first().map(|(_, event)| event)
        } else {
            self.next_submission = self.now + BETWEEN_SUBMISSIONS;
            self.submission()
        };
        self.report.events += 1;
        self.script.push((self.now, told.clone()));
        match told {
            Some(event) => self.first.handle(self.now, event),
            None => self.first.handle_timeout(self.now),
        }
        while let Some(command) = self.first.poll_command() {
            self.report.commands += 1;
            self.carry_out(command);
        }
        true
    }

    fn submission(&mut self) -> Option<Event> {
        let to = address(false, self.random.u32(..self.queues));
        let message = Message::new("s@sender.example", [to], "x").ok()?;
        self.report.submitted += 1;
        Some(Event::Submit { token: Token(self.report.submitted), message: Box::new(message) })
    }

    fn carry_out(&mut self, command: Command) {
        let store = &mut self.store;
        let (time, answer) = match command {
            Command::Insert(messages) => (STORE, Event::InsertDone(Ok(store.insert(messages)))),
            Command::Commit(changes) => {
                (STORE, Event::CommitDone(Ok(store.commit(Arc::unwrap_or_clone(changes)))))
            }
            Command::Claim { claim, what } => {
                (STORE, Event::Claimed { claim, result: Ok(store.claim(&what)) })
            }
            Command::Resolve { destination, domain, .. } => {
                (LOOK_UP, Event::Resolved { destination, result: Ok(route(domain.as_str())) })
            }
            Command::Connect { connection, .. } => {
                (CONNECT, Event::Connected { connection, opened: Default::default() })
            }
            Command::Transact { connection, transaction } => {
                let report = Box::new(self.network.send(&transaction));
                (TRANSACT, Event::TransactionDone { connection, report })
            }
            Command::Close { connection } => (CLOSE, Event::Closed { connection }),
            _ => return,
        };
        self.agenda.insert((self.now + time, self.report.commands), answer);
    }
}

/// The recipient in domain `queue` that waits for ever, or one that takes mail.
fn address(waits: bool, queue: u32) -> String {
    format!("{}@d{queue}.example", if waits { "waits" } else { "takes" })
}

/// With memory of its own, that was written just now.
fn made_anew(event: &Event) -> Event {
    match event {
        Event::Resolved { destination, result: Ok(route) } => {
            Event::Resolved { destination: *destination, result: Ok(Arc::new(Route::clone(route))) }
        }
        Event::TransactionDone { connection, report } => {
            let recipient = |report: &RecipientReport| match report {
                RecipientReport::Reply(reply) => RecipientReport::Reply(reply_anew(reply)),
                other => other.clone(),
            };
            let report = TransactionReport {
                mail: report.mail.as_ref().map(reply_anew),
                recipients: report.recipients.iter().map(recipient).collect(),
                data: report.data.as_ref().map(reply_anew),
                dot: report.dot.as_ref().map(reply_anew),
                ..TransactionReport::clone(report)
            };
            Event::TransactionDone { connection: *connection, report: Box::new(report) }
        }
        other => other.clone(),
    }
}

fn reply_anew(reply: &Reply) -> Reply {
    Reply::new(reply.code(), reply.lines())
}

/// With a name of its own: what one scheduler reads is not in a cache for the other.
fn copy(head: &LaneHead) -> Option<LaneHead> {
    let domain = Domain::parse(head.lane.domain.as_str()).ok()?;
    Some(LaneHead { lane: Lane { domain, ..head.lane.clone() }, ..head.clone() })
}

/// An item that was stored before the engine started.
fn waiting_item(now: Timestamp, due: Timestamp, address: Address) -> Item {
    let envelope = Arc::new(Envelope {
        id: MessageId::generate(now, u128::from(due.as_unix_micros()) << 48),
        reference: None,
        reverse_path: None,
        submitted_at: now,
        age_from: now,
        expires_at: None,
        size: 1,
        eight_bit: false,
        require_tls: false,
        smtputf8: false,
        recipient_count: 1,
        tags: BTreeMap::new(),
        dsn: None,
    });
    let lane =
        Lane { domain: address.domain().clone(), source: "default".into(), priority: Priority::Normal };
    let recipients = vec![Recipient { index: 0, address, attempts: 1, last: None, dsn: None }];
    Item { id: ItemId(0), lease: Lease(0), lane, due, envelope, recipients }
}

#[derive(Default)]
struct Store {
    lanes: HashMap<Lane, Stored>,
    leased: HashMap<ItemId, Item>,
    last: u64,
}

/// What is stored of a lane.
#[derive(Default)]
struct Stored {
    /// Items without a lease, in order of their due times.
    free: BTreeMap<(Timestamp, ItemId), Item>,
    leased: usize,
}

impl Stored {
    fn head(&self, lane: &Lane) -> LaneHead {
        let first = self.free.first_key_value().map(|(_, item)| item);
        LaneHead {
            next_due: first.map(|item| item.due),
            oldest: first.map(|item| item.envelope.age_from),
            ..LaneHead::empty(lane.clone())
        }
    }
}

impl Store {
    fn add(&mut self, mut item: Item, lease: bool) -> ItemId {
        self.last += 1;
        item.id = ItemId(self.last);
        let id = item.id;
        let stored = self.lanes.entry(item.lane.clone()).or_default();
        if lease {
            stored.leased += 1;
            self.leased.insert(id, item);
        } else {
            stored.free.insert((item.due, id), item);
        }
        id
    }

    fn take(&mut self, id: ItemId) -> Option<Item> {
        let item = self.leased.remove(&id)?;
        let stored = self.lanes.get_mut(&item.lane)?;
        stored.leased -= 1;
        if stored.leased == 0 && stored.free.is_empty() {
            self.lanes.remove(&item.lane);
        }
        Some(item)
    }

    fn insert(&mut self, messages: Vec<NewMessage>) -> Vec<Inserted> {
        let lease = Lease(1);
        let insert = |message: NewMessage| {
            let items = message.items.into_iter().map(|new| {
                let leased = new.claim_for.is_some();
                let item = Item {
                    id: ItemId(0),
                    lease,
                    lane: new.lane,
                    due: new.due,
                    envelope: message.envelope.clone(),
                    recipients: new.recipients,
                };
                (self.add(item, leased), leased.then_some(lease))
            });
            Inserted::Stored(items.collect())
        };
        messages.into_iter().map(insert).collect()
    }

    fn commit(&mut self, changes: Vec<Change>) -> Vec<ChangeOutcome> {
        let outcomes = vec![ChangeOutcome::Applied; changes.len()];
        for change in changes {
            match change {
                // Each item has one recipient.
                Change::Update { item, released, .. } => {
                    let Some(item) = self.take(item) else { continue };
                    for release in released {
                        let item = Item { due: release.due, recipients: release.recipients, ..item.clone() };
                        self.add(item, false);
                    }
                }
                Change::Unclaim { item, .. } => {
                    if let Some(item) = self.take(item) {
                        self.add(item, false);
                    }
                }
                _ => {}
            }
        }
        outcomes
    }

    fn claim(&mut self, what: &[ClaimPart]) -> Claimed {
        let mut claimed = Claimed::default();
        for part in what {
            let (lane, before, limit) = match part {
                ClaimPart::Due { lane, before, limit } => (lane, *before, *limit),
                _ => continue,
            };
            let Some(stored) = self.lanes.get_mut(lane) else {
                claimed.heads.push(LaneHead::empty(lane.clone()));
                continue;
            };
            for _ in 0..limit {
                let Some(first) = stored.free.first_entry().filter(|first| first.key().0 <= before) else {
                    break;
                };
                let item = first.remove();
                stored.leased += 1;
                claimed.items.push(item.clone());
                self.leased.insert(item.id, item);
            }
            claimed.heads.push(stored.head(lane));
        }
        claimed
    }
}

struct Network {
    /// Also what waits is taken.
    takes_all: bool,
    taken: Reply,
    data: Reply,
    deferred: Reply,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            takes_all: false,
            taken: Reply::new(250, [b"2.0.0 ok".as_slice()]),
            data: Reply::new(354, [b"go on".as_slice()]),
            deferred: Reply::new(450, [b"4.2.0 busy".as_slice()]),
        }
    }
}

/// Each domain has a host. Its records are as good as run out by the time they come.
fn route(domain: &str) -> Arc<Route> {
    let name: Arc<str> = format!("mx.{domain}").into();
    let number = domain.bytes().filter(u8::is_ascii_digit);
    let number = number.fold(0, |number: u32, digit| number * 10 + u32::from(digit - b'0'));
    let peer = SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + number), 25));
    Arc::new(Route {
        hosts: vec![RouteHost {
            name,
            preference: 0,
            addresses: vec![peer],
            barred: false,
            unknown: false,
            tlsa: None,
        }],
        kind: RouteKind::Mx,
        ttl: Duration::ZERO,
        mta_sts: None,
        policy_unknown: false,
    })
}

impl Network {
    fn send(&self, transaction: &Outgoing) -> TransactionReport {
        let takes = |to: &Address| self.takes_all || to.as_str().starts_with("takes");
        let taken = transaction.recipients.iter().all(takes);
        let reply = if taken { &self.taken } else { &self.deferred };
        TransactionReport {
            mail: Some(self.taken.clone()),
            recipients: vec![RecipientReport::Reply(reply.clone()); transaction.recipients.len()],
            data: taken.then(|| self.data.clone()),
            dot_sent: taken,
            dot: taken.then(|| self.taken.clone()),
            end: None,
        }
    }
}

impl std::fmt::Debug for SchedulerLoad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchedulerLoad").field("report", &self.report()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_on(load: &mut SchedulerLoad, events: usize) {
        load.prepare(events);
        while load.make_ready(32) {
            load.replay();
        }
    }

    #[test]
    fn every_queue_has_mail_at_all_times_and_nothing_is_lost() {
        for queues in [30, 2_000] {
            let mut load = SchedulerLoad::new(queues, 7);
            let there = queues as usize;
            assert_eq!((load.report().queues, load.report().queues_with_mail), (there, there));
            let mut before = load.report();
            for _ in 0..10 {
                go_on(&mut load, 1_000);
                load.second.assert_consistent();
                let report = load.report();
                assert_eq!((report.queues, report.queues_with_mail), (there, there));
                assert!(report.deferred > before.deferred, "some wait: {report:?}");
                assert!(report.delivered > before.delivered, "others are delivered: {report:?}");
                before = report;
            }
            load.finish();
            let report = load.report();
            assert_eq!(report.delivered, report.submitted + u64::from(queues), "{report:?}");
            assert_eq!(report.stored, 0, "{report:?}");
            load.second.assert_empty();
        }
    }

    #[test]
    fn an_attempt_is_eight_events_and_a_fifth_of_them_is_deferred() {
        let mut load = SchedulerLoad::new(20_000, 7);
        go_on(&mut load, 5_000);
        let before = load.report();
        go_on(&mut load, 20_000);
        let after = load.report();
        let deferred = after.deferred - before.deferred;
        let attempts = after.delivered - before.delivered + deferred;
        let in_percent = |part: u64, of: u64| part * 100 / of;
        let events = in_percent(after.events - before.events, attempts);
        assert!((750..=800).contains(&events), "{events} events for 100 attempts");
        let deferred = in_percent(deferred, attempts);
        assert!((19..=21).contains(&deferred), "{deferred} of 100 attempts deferred");
    }

    #[test]
    fn both_schedulers_do_the_same() {
        let mut load = SchedulerLoad::new(50, 3);
        let mut commands = 0;
        for _ in 0..100 {
            load.prepare(50);
            while load.make_ready(7) {
                load.replay();
                commands += load.commands.len() as u64;
            }
            assert_eq!(load.first.counters, load.second.counters);
            assert_eq!(load.first.poll_timeout(), load.second.poll_timeout());
        }
        assert_eq!(commands, load.report().commands);
    }
}
