//! What the oracle knows: who was accepted, who has which message, what is open, in which mode queues are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::super::observation::{Observation, Seen, record};
use super::given::Given;
use super::modes::Modes;
use super::names::Names;
use crate::clock::Timestamp;
use crate::event::{DeliveryEvent, RecipientRecord, StorageOperation, StorageTrouble};
use crate::message::{Address, Domain, EventId, MessageId, QueueName};
use crate::policy::{Policy, QueueSettings};
use crate::scheduler::{Bounds, Stored, StoredStep};
use crate::storage::{Change, Envelope, NewMessage, OutboxEntry, OutboxPosition};
use crate::transport::TlsWish;

/// The engine's clock moved otherwise than time did by this much: it was stepped.
const SIGNIFICANT_STEP: Duration = Duration::from_millis(10);

/// A queue of a source.
pub(super) type QueueId = (QueueName, Arc<str>);

pub(super) struct Facts {
    pub(super) policy: Policy,
    pub(super) bounds: Bounds,
    settings: HashMap<QueueId, Arc<QueueSettings>>,
    pub(super) messages: HashMap<MessageId, BTreeMap<Address, Standing>>,
    /// Accepted again under the id of a message that has ended, with these recipients.
    repeated: HashMap<MessageId, Vec<Address>>,
    /// Messages that the engine said it has taken.
    pub(super) received: HashSet<MessageId>,
    /// What is in the outbox up to here was acknowledged.
    pub(super) acknowledged: OutboxPosition,
    pub(super) open: BTreeMap<u64, Open>,
    pub(super) modes: Modes,
    pub(super) names: Names,
    pub(super) given: Given,
    /// How often mail for each domain was stored, before and after.
    fresh: HashMap<Domain, u64>,
    /// How many times an engine was started.
    pub(super) life: u32,
    /// Counts what excuses that mail is sent again: crashes, shutdowns that were cut, and trouble with the store.
    pub(super) excuses: u32,
    /// The store had trouble in this life: what it could not write lies there until the next start.
    pub(super) trouble: bool,
    /// A fault of the world's lost bodies: mail without content may bounce.
    pub(super) bodies_lost: bool,
    /// What the scheduler writes is not durable yet, or was refused: what it decided is told later.
    pub(super) is_writing: bool,
    /// The longest that a call of the store was made to take.
    pub(super) slowest_call: Duration,
    /// Some submission's outcome is not known: mail that nobody accepted may be in the store.
    pub(super) strangers: bool,
    /// Transactions in which a server took something whose end is not durable: when, and for how many recipients.
    undurable: HashMap<u64, (Duration, usize)>,
    /// The most connections that were open since everything was durable.
    pub(super) most_open: usize,
    transactions: u64,
    /// Counts whatever makes rates and counts begin anew: starts, steps of the clock, other policies.
    pub(super) epoch: u64,
    /// When it began, on the engine's clock.
    pub(super) epoch_since: Timestamp,
    /// Counts what may make mail due before its time.
    pub(super) controls: u64,
    pub(super) last_control: Option<Timestamp>,
    /// What was decided before may have been by another policy.
    pub(super) policy_since: Timestamp,
    /// When that policy came.
    pub(super) policy_at: Duration,
    /// The latest that the engine's clock has shown.
    latest: Timestamp,
    /// Failed steps in the store, by row.
    steps: HashMap<Vec<u8>, StoredStep>,
    /// How often those of a queue were forgotten, since it had no mail any more or some was delivered.
    forgotten: HashMap<QueueId, u64>,
    clock: Option<(Duration, Timestamp)>,
    /// The last moment at which the rules changed, the clock or the host's word among them: what else is seen in it may
    /// go by the old ones or the new.
    pub(super) rules_changed: Option<Duration>,
}

/// How one recipient of one message stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub(super) accepted: bool,
    /// No attempt before this.
    pub(super) not_before: Option<Timestamp>,
    /// What made it so was followed by so many controls.
    pub(super) not_before_as_of: u64,
    /// Its end is in the store.
    pub(super) ended: bool,
    /// When it ended, by its final event.
    pub(super) ended_at: Option<Timestamp>,
    /// Its final event, and in which life it was last reported.
    pub(super) reported: Option<(EventId, u32)>,
    /// Attempts of the last deferral, and the life it was seen in.
    pub(super) attempts: u32,
    pub(super) attempts_seen_in: u32,
    /// A server took it for the last time after so many [`Facts::excuses`], and said so or not.
    pub(super) taken: Option<(u32, bool)>,
    pub(super) times_taken: u32,
    /// When it was taken last, on the engine's clock.
    pub(super) taken_at: Option<Timestamp>,
    /// In this transaction, and the end is not durable.
    undurable_since: Option<u64>,
    /// The queue it was offered from last.
    pub(super) offered_from: Option<QueueName>,
    /// When it was first offered, on the engine's clock.
    pub(super) first_offered: Option<Timestamp>,
}

/// A connection.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) peer: SocketAddr,
    pub(super) local: Option<IpAddr>,
    pub(super) host: Arc<str>,
    pub(super) queue: QueueName,
    pub(super) source: Arc<str>,
    /// What it was opened for.
    pub(super) tls: TlsWish,
    /// The host it was opened to, whose name a certificate is verified for.
    pub(super) verified: Arc<str>,
    /// Being opened, or with a transaction: it counts for this queue and host for certain. What is idle may have been
    /// handed over to another.
    pub(super) at_work: bool,
}

impl Open {
    /// The one that is being opened.
    pub(super) fn opening(seen: &Seen) -> Option<Self> {
        let Seen::Connecting { peer, local, host, queue, source, tls, .. } = seen else { return None };
        let (peer, local, tls, verified) = (*peer, *local, *tls, host.clone());
        let (host, queue, source) = (host.clone(), queue.clone(), source.clone());
        Some(Self { peer, local, host, queue, source, tls, verified, at_work: true })
    }

    /// It carries mail of this queue to this host.
    pub(super) fn put_to_work(&mut self, queue: &QueueName, host: &Arc<str>) {
        (self.at_work, self.queue, self.host) = (true, queue.clone(), host.clone());
    }
}

impl Facts {
    pub(super) fn new(policy: Policy, bounds: Bounds) -> Self {
        Self {
            policy,
            bounds,
            settings: HashMap::new(),
            messages: HashMap::new(),
            repeated: HashMap::new(),
            received: HashSet::new(),
            acknowledged: OutboxPosition::default(),
            open: BTreeMap::new(),
            modes: Modes::default(),
            names: Names::default(),
            given: Given::default(),
            fresh: HashMap::new(),
            life: 0,
            excuses: 0,
            trouble: false,
            bodies_lost: false,
            is_writing: false,
            slowest_call: Duration::ZERO,
            strangers: false,
            undurable: HashMap::new(),
            most_open: 0,
            transactions: 0,
            epoch: 0,
            epoch_since: Timestamp::from_unix_seconds(0),
            controls: 0,
            last_control: None,
            policy_since: Timestamp::from_unix_seconds(0),
            policy_at: Duration::ZERO,
            latest: Timestamp::from_unix_seconds(0),
            steps: HashMap::new(),
            forgotten: HashMap::new(),
            clock: None,
            rules_changed: None,
        }
    }

    /// When the last recipient ended, if its end was reported.
    pub(super) fn last_ended_at(&self, message: MessageId) -> Option<Timestamp> {
        self.messages.get(&message)?.values().filter_map(|standing| standing.ended_at).max()
    }

    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.settings.clear();
        self.begin_epoch(self.latest);
    }

    fn begin_epoch(&mut self, now: Timestamp) {
        self.epoch += 1;
        self.epoch_since = now;
    }

    pub(super) fn settings(&self, queue: &QueueName, source: &Arc<str>) -> Arc<QueueSettings> {
        let known = self.settings.get(&(queue.clone(), source.clone()));
        known.cloned().unwrap_or_else(|| Arc::new(self.policy.settings(queue, source)))
    }

    pub(super) fn in_backoff(&self, queue: &QueueName, source: &Arc<str>, now: Timestamp) -> bool {
        self.modes.in_backoff(&(queue.clone(), source.clone()), now)
    }

    /// A server took it, said so, and nothing has excused since that it is sent again.
    pub(super) fn is_taken(&self, standing: &Standing) -> bool {
        standing.taken == Some((self.excuses, true))
    }

    /// A deferral that is no attempt: past its queue's fuse, what would bounce waits for the host. Nobody is charged.
    pub(super) fn is_held_by_fuse(&self, record: &RecipientRecord) -> bool {
        let standing = self.standing_of(record.id, &record.recipient);
        let most = standing.attempts + self.lives_since(&standing);
        record.attempts <= most && self.modes.had_blown(&(record.queue.clone(), record.source.clone()))
    }

    /// Lives in which a deferral may have been told to nobody: its event dies with the process.
    pub(super) fn lives_since(&self, standing: &Standing) -> u32 {
        self.life - standing.attempts_seen_in.max(1).min(self.life)
    }

    /// What was stored of a message, if that is known.
    pub(super) fn envelope(&self, message: MessageId) -> Option<&Envelope> {
        self.given.envelope(message)
    }

    /// These messages are about to be stored, or were.
    pub(super) fn freshly_stored(&mut self, messages: &[NewMessage]) {
        for item in messages.iter().flat_map(|message| &message.items) {
            *self.fresh.entry(item.lane.domain.clone()).or_default() += 1;
        }
    }

    /// Changes whenever new mail may have come for the domain.
    pub(super) fn times_fresh(&self, domain: &Domain) -> u64 {
        self.fresh.get(domain).copied().unwrap_or(0)
    }

    pub(super) fn standing(&self, message: MessageId, recipient: &Address) -> Option<&Standing> {
        self.messages.get(&message)?.get(recipient)
    }

    /// Of a recipient of an observation of a message that may not be known.
    pub(super) fn standing_of(&self, message: MessageId, recipient: &Address) -> Standing {
        self.standing(message, recipient).cloned().unwrap_or_default()
    }

    fn was_accepted(&self, message: MessageId) -> bool {
        self.messages.get(&message).is_some_and(|all| all.values().any(|standing| standing.accepted))
    }

    pub(super) fn has_ended(&self, message: MessageId) -> bool {
        self.messages.get(&message).is_some_and(|all| all.values().all(|standing| standing.ended))
    }

    /// A message of an id that was forgotten: it begins anew.
    fn begin_anew(&mut self, message: MessageId) {
        let accepted = |address| (address, Standing { accepted: true, ..Standing::default() });
        let recipients = self.repeated.remove(&message).unwrap_or_default();
        self.messages.insert(message, recipients.into_iter().map(accepted).collect());
    }

    fn standing_mut(&mut self, message: MessageId, recipient: &Address) -> &mut Standing {
        let recipients = self.messages.entry(message).or_default();
        if !recipients.contains_key(recipient) {
            recipients.insert(recipient.clone(), Standing::default());
        }
        recipients.entry(recipient.clone()).or_default()
    }

    /// Takes note of what changes the rules, before anything is judged by them.
    pub(super) fn note_rules(&mut self, observation: &Observation) {
        if changes_rules(&observation.seen) {
            self.rules_changed = Some(observation.at);
        }
        self.read_clock(observation);
        self.latest = self.latest.max(observation.time);
        if observation.seen == Seen::PolicyReplaced {
            (self.policy_since, self.policy_at) = (self.latest, observation.at);
        }
    }

    /// What is seen at this moment may go by other rules.
    pub(super) fn is_unclear(&self, at: Duration) -> bool {
        self.rules_changed == Some(at)
    }

    /// Since when other rules may have held that are told only now.
    pub(super) fn rules_changed_by(&self, observation: &Observation) -> Option<Duration> {
        let told_late = match &observation.seen {
            Seen::Event(event) => match &**event {
                // It is told once it is durable.
                DeliveryEvent::QueueMode(event) => observation.time.saturating_since(event.time),
                _ => Duration::ZERO,
            },
            _ => Duration::ZERO,
        };
        self.is_unclear(observation.at).then(|| observation.at.saturating_sub(told_late))
    }

    /// A step of the clock makes rates begin anew.
    fn read_clock(&mut self, observation: &Observation) {
        let mut was_due_by = None;
        let was_stepped = self.clock.is_some_and(|(at, time)| {
            let expected = time + observation.at.saturating_sub(at);
            let ahead = observation.time.saturating_since(expected);
            if observation.time < expected {
                was_due_by = Some(expected);
            }
            ahead.max(expected.saturating_since(observation.time)) > SIGNIFICANT_STEP
        });
        if was_stepped {
            self.begin_epoch(observation.time);
            self.rules_changed = Some(observation.at);
            self.modes.stepped(observation.at);
            // What was due before the clock was set back has been taken up.
            let standings = self.messages.values_mut().flat_map(BTreeMap::values_mut);
            for standing in standings.filter(|standing| standing.not_before <= was_due_by) {
                standing.not_before = None;
            }
        }
        self.clock = Some((observation.at, observation.time));
    }

    /// Transactions before this moment in which a server took something whose end is not durable.
    pub(super) fn undurable_before(&self, now: Duration) -> usize {
        self.undurable.values().filter(|(at, _)| *at < now).count()
    }

    fn is_durable(&mut self, transaction: Option<u64>) {
        let Some(transaction) = transaction else { return };
        if let Some((_, left)) = self.undurable.get_mut(&transaction) {
            *left -= 1;
            if *left == 0 {
                self.undurable.remove(&transaction);
            }
        }
    }

    /// Ends that are durable now.
    pub(super) fn committed<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) {
        for change in changes {
            match change {
                Change::Report { event, payload, .. } => {
                    let (position, payload) = (OutboxPosition::default(), payload.clone());
                    let entry = OutboxEntry { position, event: *event, payload };
                    if let Ok(event) = crate::outbox::event(&entry)
                        && let Some(record) = record(&event)
                    {
                        let standing = self.standing_mut(record.id, &record.recipient);
                        standing.ended = true;
                        let transaction = standing.undurable_since.take();
                        self.is_durable(transaction);
                    }
                }
                Change::PutState(row) => match Stored::of(row) {
                    Some(Stored::Step(step)) => drop(self.steps.insert(row.key.clone(), step)),
                    Some(stored) => self.modes.put(&row.key, stored, self.clock.unwrap_or_default()),
                    None => {}
                },
                Change::Acknowledge(position) => self.acknowledged = self.acknowledged.max(*position),
                Change::DeleteState(key) => {
                    self.modes.delete(key);
                    if let Some(step) = self.steps.remove(key) {
                        *self.forgotten.entry((step.queue, step.source)).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
    }

    /// The failed steps that a new engine knows of.
    pub(super) fn durable_steps(&self) -> impl Iterator<Item = (QueueId, &StoredStep)> {
        self.steps.values().map(|stored| ((stored.queue.clone(), stored.source.clone()), stored))
    }

    pub(super) fn times_forgotten(&self, queue: &QueueId) -> u64 {
        self.forgotten.get(queue).copied().unwrap_or(0)
    }

    pub(super) fn learn(&mut self, observation: &Observation) {
        self.modes.learn(observation);
        match &observation.seen {
            // An id again: nothing is stored, unless the engine says that it received a message.
            Seen::Accepted { message, recipients, .. } if self.was_accepted(*message) => {
                if self.has_ended(*message) {
                    self.repeated.insert(*message, recipients.clone());
                }
            }
            Seen::Accepted { message, recipients, hold_until } => {
                let controls = self.controls;
                for recipient in recipients {
                    let standing = self.standing_mut(*message, recipient);
                    standing.accepted = true;
                    if standing.not_before.is_none() {
                        (standing.not_before, standing.not_before_as_of) = (*hold_until, controls);
                    }
                }
            }
            Seen::Refused { unknown, .. } => self.strangers |= unknown,
            Seen::Event(event) => self.learn_event(event),
            Seen::Connecting { connection, queue, source, .. } => {
                let settings = self.settings(queue, source);
                self.settings.entry((queue.clone(), source.clone())).or_insert(settings);
                self.open.extend(Open::opening(&observation.seen).map(|open| (*connection, open)));
                self.most_open = self.most_open.max(self.open.len());
            }
            Seen::Connected { connection } => {
                if let Some(open) = self.open.get_mut(connection) {
                    open.at_work = false;
                }
            }
            Seen::Offered { connection, message, queue, host, recipients } => {
                if let Some(open) = self.open.get_mut(connection) {
                    open.put_to_work(queue, host);
                }
                for recipient in recipients {
                    let standing = self.standing_mut(*message, recipient);
                    standing.offered_from = Some(queue.clone());
                    standing.first_offered.get_or_insert(observation.time);
                }
            }
            Seen::Answered { connection, message, taken, unsaid, .. } => {
                if let Some(open) = self.open.get_mut(connection) {
                    open.at_work = false;
                }
                if self.undurable.is_empty() {
                    self.most_open = self.open.len();
                }
                let excuses = self.excuses;
                self.transactions += 1;
                let transaction = self.transactions;
                for recipient in taken {
                    let standing = self.standing_mut(*message, recipient);
                    standing.taken = Some((excuses, !unsaid));
                    standing.times_taken += 1;
                    standing.taken_at = Some(observation.time);
                    if !standing.ended {
                        let earlier = standing.undurable_since.replace(transaction);
                        self.is_durable(earlier);
                        self.undurable.entry(transaction).or_insert((observation.at, 0)).1 += 1;
                    }
                }
            }
            Seen::Closed { connection } => drop(self.open.remove(connection)),
            Seen::Started => {
                self.open.clear();
                self.life += 1;
                self.excuses += u32::from(self.trouble);
                self.trouble = false;
                self.is_writing = false;
                self.begin_epoch(observation.time);
                self.undurable.clear();
                self.most_open = 0;
            }
            Seen::ClockStepped { .. } => self.begin_epoch(observation.time),
            Seen::Control(_) => {
                self.controls += 1;
                self.last_control = Some(observation.time);
            }
            Seen::Crashed | Seen::Stopped { cut: true } => self.excuses += 1,
            Seen::NotConnected { .. }
            | Seen::Stopped { cut: false }
            | Seen::NotStarted { .. }
            | Seen::PolicyReplaced
            | Seen::Note(_) => {}
        }
    }

    fn learn_event(&mut self, event: &DeliveryEvent) {
        let (life, controls, last_control) = (self.life, self.controls, self.last_control);
        match event {
            DeliveryEvent::StorageTrouble(trouble) => self.trouble |= is_about_accepted_mail(trouble),
            DeliveryEvent::Received(received) => {
                let is_again = !self.received.insert(received.id);
                if is_again && self.has_ended(received.id) {
                    self.begin_anew(received.id);
                }
            }
            DeliveryEvent::Deferred(deferred) => {
                let record = &deferred.record;
                let standing = self.standing_mut(record.id, &record.recipient);
                // The event comes once it is durable: what the host said meanwhile may have made it due.
                let holds = last_control.is_none_or(|at| at < record.time);
                let not_before = holds.then_some(deferred.next_attempt);
                (standing.not_before, standing.not_before_as_of) = (not_before, controls);
                (standing.attempts, standing.attempts_seen_in) = (record.attempts, life);
                // It may be told late, after the delivery that followed.
                if standing.taken_at.is_none_or(|taken| taken <= record.time) {
                    // An answer that was lost is what it waits for.
                    standing.taken = None;
                    let transaction = standing.undurable_since.take();
                    self.is_durable(transaction);
                }
            }
            event if event.is_final() => {
                if let Some(record) = record(event) {
                    let standing = self.standing_mut(record.id, &record.recipient);
                    standing.reported = Some((record.event, life));
                    standing.ended_at.get_or_insert(record.time);
                    standing.ended = true;
                }
            }
            _ => {}
        }
    }
}

/// A submission that was refused excuses nothing.
pub(super) fn is_about_accepted_mail(trouble: &StorageTrouble) -> bool {
    trouble.stopped || trouble.operation != StorageOperation::Insert
}

fn changes_rules(seen: &Seen) -> bool {
    match seen {
        Seen::PolicyReplaced | Seen::Control(_) => true,
        Seen::Event(event) => matches!(**event, DeliveryEvent::QueueMode(_)),
        _ => false,
    }
}
