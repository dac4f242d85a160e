//! The scheduler: decides what is done when, and does nothing itself.
//!
//! Pure and synchronous: no I/O, no clock, no async, no randomness but its seed. It is told of events
//! ([`Scheduler::handle`]) and of time ([`Scheduler::handle_timeout`]), and asked for commands
//! ([`Scheduler::poll_command`]) and for the next time it wants to be called ([`Scheduler::poll_timeout`]). The
//! same seed and the same calls give the same commands.
//!
//! It alone owns lanes, destinations, queues, limits, retry clocks and connections, so that a limit is exact
//! because one owner counts it. Each event touches the lane, destination and connection it is about, in
//! O(log n); nothing scans over queues or messages.
//!
//! Where to read: `event.rs` and `command.rs`, then `pump.rs` (what a destination does next), `outcome.rs` (what
//! a transaction's report means) and `verdict.rs` (the rules of that).

mod arena;
mod cancel;
mod claims;
mod command;
mod connection;
mod connections;
mod control;
mod destination;
mod directory;
mod event;
mod fault;
mod few;
#[cfg(feature = "testing")]
mod gauges;
mod health;
mod holds;
mod ids;
mod index;
mod info;
mod intake;
mod lane;
mod limits;
mod lost;
mod mta_sts;
mod no_mx;
mod outcome;
mod pace;
mod permits;
mod placement;
mod pump;
mod purge;
mod queue;
mod rare;
mod record;
mod replace;
mod rules;
mod ruling;
mod session;
mod set_back;
mod state;
mod sweep;
mod timers;
mod told;
mod transit;
mod unfit;
mod unread;
mod verdict;
mod why;
mod window;
mod writes;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arena::Key;
pub use command::CancelReport;
pub(crate) use command::{Answer, Command, Outgoing, PolicyDomain, SubmitFailure, Token};
pub(crate) use connections::ConnectionId;
pub(crate) use control::Control;
use destination::Destination;
use directory::Directory;
pub(crate) use event::{Content, Event, Opened};
pub(crate) use fault::Fault;
#[cfg(feature = "testing")]
pub(crate) use gauges::Gauges;
use ids::{IdMap, NameMap, NameSet};
use lane::LaneState;
use limits::Call;
use queue::Queue;
use session::Connection;
#[cfg(feature = "testing")]
pub(crate) use state::{Stored, StoredMode, StoredPace, StoredPaceKind, StoredStep};
pub(crate) use sweep::PAGE;
use timers::Timers;
pub(crate) use told::Told;

use crate::clock::Timestamp;
use crate::event::DeliveryEvent;
use crate::message::{EventId, MessageId};
use crate::policy::{Policy, QueueSettings};
use crate::storage::{Owner, Room};
use crate::transport::Timeouts;

pub(crate) type LaneKey = Key<LaneState>;
pub(crate) type DestinationKey = Key<Destination>;
pub(crate) type QueueKey = Key<Queue>;
pub(crate) type DomainKey = Key<placement::DomainState>;

/// Idle connections, the longest idle first.
type Idle = few::FewSet<(Timestamp, ConnectionId)>;

/// A claim under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClaimId(pub(crate) u64);

/// Destinations looked at again in one call.
const REVISITS: usize = 64;

/// The bounds of what the scheduler holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Items in the window; past it fresh mail goes to the store, and only destinations that can send claim.
    pub(crate) window: usize,
    /// Items of one destination in the window.
    pub(crate) window_per_destination: usize,
    /// Octets of content held between submission and first attempt; past it bodies are read back.
    pub(crate) held_octets: usize,
    /// Octets of content in transactions, a quarter of them for small messages; see [`transit`].
    pub(crate) transit_octets: usize,
    /// Items whose outcome is not yet durable, past which no transaction starts: a crash sends them again. With fewer connections fewer, see [`Scheduler::most_unsettled`].
    pub(crate) unsettled: usize,
    /// Look-ups at a time.
    pub(crate) look_ups: usize,
    /// Claims at a time.
    pub(crate) claims: usize,
    /// Messages, and octets, that wait to be stored.
    pub(crate) submissions: usize,
    pub(crate) submission_octets: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            window: 16_384,
            window_per_destination: 128,
            held_octets: 32 << 20,
            transit_octets: 64 << 20,
            unsettled: 1_024,
            look_ups: 256,
            claims: 32,
            submissions: 1_024,
            submission_octets: 32 << 20,
        }
    }
}

/// Counters since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) received: u64,
    pub(crate) delivered: u64,
    pub(crate) deferred: u64,
    pub(crate) bounced: u64,
    pub(crate) cancelled: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TimerOwner {
    Destination(DestinationKey),
    Lane(LaneKey),
    Queue(QueueKey),
    Slot(limits::SlotKey),
    Revisit,
    Storage,
    LostBodies,
}

/// See the [module](self).
pub(crate) struct Scheduler {
    policy: Policy,
    /// The policy's: each connection has them.
    timeouts: Arc<Timeouts>,
    hostname: Arc<str>,
    owner: Owner,
    bounds: Bounds,
    rng: fastrand::Rng,
    pub(crate) counters: Counters,

    lanes: Directory<LaneState>,
    destinations: Directory<Destination>,
    domains: Directory<placement::DomainState>,
    policy_doubts: IdMap<DomainKey, mta_sts::PolicyDoubt>,
    source_names: NameSet<Arc<str>>,
    queues: Directory<Queue>,
    /// Of queues that have none of their own, by source: most queues share these.
    common_settings: NameMap<Arc<str>, Arc<QueueSettings>>,
    connections: connections::Connections,
    health: health::Health,
    /// Sources this machine could not send from, until then.
    resting: NameMap<Arc<str>, Timestamp>,
    /// No name server could be reached: no look-up until then.
    resolver_rests: Option<Timestamp>,

    window: window::Window,
    unread: unread::Unread,
    /// Queues whose source is disabled.
    disabled_queues: usize,
    /// Queues whose mode changed in this call: their rows are to be written, and they may be at rest now.
    changed_queues: Vec<QueueKey>,
    /// Destinations to look at again since their queue changed.
    revisits: VecDeque<DestinationKey>,
    revisit_timer: Option<Timestamp>,
    /// Destinations to look at again since the policy changed.
    replaced: VecDeque<DestinationKey>,
    pauses: control::Pauses,
    sweeps: BTreeMap<Token, sweep::Sweep>,
    /// Items taken out by their id, which claims made before this one may still bring.
    swept: IdMap<crate::storage::ItemId, ClaimId>,
    purges: BTreeMap<purge::PurgeId, purge::Purge>,
    /// Purges by a tag.
    tag_purges: Vec<purge::PurgeId>,
    next_purge: u64,
    /// A purge is ending items: it goes on by itself.
    purging: bool,

    claims: BTreeMap<ClaimId, claims::ClaimInFlight>,
    next_claim: u64,
    /// Destinations whose claims wait until the store answers again.
    retry_claim_of: BTreeSet<DestinationKey>,
    cancels: cancel::Cancels,
    writes: writes::Writes,

    limits: limits::Limits,
    /// The limit of all connections.
    total: limits::SlotKey,
    /// The destination whose turn it is: it alone does not stand behind those in line.
    called: Option<limits::Call>,
    /// Connections that hold permits.
    open: usize,
    /// Connections with a transaction.
    busy: usize,
    /// Connections that became idle and may be used before anybody else is told.
    newly_idle: VecDeque<ConnectionId>,
    /// Idle connections by source, address and TLS, the longest idle first.
    idle_at: NameMap<session::Meeting, Idle>,
    looking_up: usize,
    transit: transit::Transit,
    waiting: Waiting,

    dirty: VecDeque<DestinationKey>,
    timers: Timers<TimerOwner>,
    /// When idle sessions end. They are few and soon, among those of a million queues.
    session_timers: Timers<ConnectionId>,
    storage_timer: Option<Timestamp>,
    lost_bodies: lost::LostBodies,
    commands: VecDeque<Command>,
    reports_blocked: bool,
    store_room: Room,
    shutting_down: bool,
    drained: bool,
}

/// Destinations that wait for something another one must give back. Each stands in a list at most once.
#[derive(Default)]
struct Waiting {
    look_up: Turns,
    /// For one of the claims under way to come back.
    claim: VecDeque<DestinationKey>,
    /// For room in the window, without a connection that keeps a share of it.
    window: VecDeque<DestinationKey>,
    /// For unsettled changes to become durable, or for reports to be taken.
    settle: VecDeque<DestinationKey>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        let Self { look_up: Turns { fresh, again, again_next: _ }, claim, window, settle } = self;
        [fresh, again, claim, window, settle].into_iter().all(VecDeque::is_empty)
    }
}

/// First come, first served, but destinations with fresh mail and those without take turns: a flood of retries
/// after a restart does not bury new mail.
#[derive(Default)]
struct Turns {
    fresh: VecDeque<DestinationKey>,
    again: VecDeque<DestinationKey>,
    again_next: bool,
}

impl Turns {
    fn push(&mut self, destination: DestinationKey, fresh: bool) {
        if fresh { &mut self.fresh } else { &mut self.again }.push_back(destination);
    }

    fn pop(&mut self) -> Option<DestinationKey> {
        self.again_next = !self.again_next;
        if self.again_next {
            self.fresh.pop_front().or_else(|| self.again.pop_front())
        } else {
            self.again.pop_front().or_else(|| self.fresh.pop_front())
        }
    }
}

impl Scheduler {
    /// `owner` names this engine's leases in the store; `seed` makes its choices repeatable.
    pub(crate) fn new(policy: Policy, hostname: Arc<str>, owner: Owner, seed: u64, bounds: Bounds) -> Self {
        let mut limits = limits::Limits::default();
        let total = limits.count(limits::LimitKey::Total, policy.max_connections() as usize);
        Self {
            timeouts: Arc::new(policy.smtp().timeouts),
            policy,
            hostname,
            owner,
            bounds,
            rng: fastrand::Rng::with_seed(seed),
            counters: Counters::default(),
            lanes: Directory::default(),
            destinations: Directory::default(),
            domains: Directory::default(),
            policy_doubts: IdMap::default(),
            source_names: NameSet::default(),
            queues: Directory::default(),
            common_settings: NameMap::default(),
            connections: connections::Connections::default(),
            health: health::Health::default(),
            resting: NameMap::default(),
            resolver_rests: None,
            window: window::Window::default(),
            unread: unread::Unread::default(),
            disabled_queues: 0,
            changed_queues: Vec::new(),
            revisits: VecDeque::new(),
            revisit_timer: None,
            replaced: VecDeque::new(),
            pauses: control::Pauses::default(),
            sweeps: BTreeMap::new(),
            swept: IdMap::default(),
            purges: BTreeMap::new(),
            tag_purges: Vec::new(),
            next_purge: 0,
            purging: false,
            claims: BTreeMap::new(),
            next_claim: 0,
            retry_claim_of: BTreeSet::new(),
            cancels: cancel::Cancels::default(),
            writes: writes::Writes::default(),
            limits,
            total,
            called: None,
            open: 0,
            busy: 0,
            newly_idle: VecDeque::new(),
            idle_at: NameMap::default(),
            looking_up: 0,
            transit: transit::Transit::default(),
            waiting: Waiting::default(),
            dirty: VecDeque::new(),
            timers: Timers::new(),
            session_timers: Timers::new(),
            storage_timer: None,
            lost_bodies: lost::LostBodies::default(),
            commands: VecDeque::new(),
            reports_blocked: false,
            store_room: Room::Ample,
            shutting_down: false,
            drained: false,
        }
    }

    /// Takes note of an event. Commands it leads to come from [`Scheduler::poll_command`].
    pub(crate) fn handle(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Heads(heads) => self.on_heads(now, &heads),
            Event::State(rows) => self.on_state(now, &rows),
            Event::Submit { token, message } => self.on_submit(now, token, *message),
            Event::InsertDone(result) => self.on_insert_done(now, result),
            Event::CommitDone(result) => self.on_commit_done(now, result),
            Event::Claimed { claim, result } => self.on_claimed(now, claim, result),
            Event::Resolved { destination, result } => self.on_resolved(now, destination, result),
            Event::Connected { connection, opened } => self.on_connected(now, connection, opened),
            Event::ConnectFailed { connection, error } => self.on_connect_failed(now, connection, &error),
            Event::TransactionDone { connection, report } => {
                self.on_transaction_done(now, connection, &report)
            }
            Event::BodyFailed { connection, error } => self.on_body_failed(now, connection, &error),
            Event::AgainstPolicy { connection } => self.on_against_policy(now, connection),
            Event::SessionEnded { connection, end } => self.on_session_ended(now, connection, &end),
            Event::Closed { connection } => self.on_connection_gone(now, connection),
            Event::Cancel { token, message } => self.on_cancel(now, token, message, false),
            Event::Control { token, control } => self.on_control(now, token, control),
            Event::Policy(policy) => self.on_policy(now, *policy),
            Event::Page { token, result } => self.on_page(now, token, result),
            Event::Listed { token, result } => self.on_listed(now, token, result),
            Event::ReportsBlocked(blocked) => self.reports_blocked = blocked,
            Event::StoreRoom(room) => self.on_store_room(now, room),
            Event::Shutdown => self.on_shutdown(now),
            Event::Interrupted => self.on_interrupted(now),
            Event::WriteNow => self.writes.resume(),
            Event::ClockStepped { back } => self.on_clock_stepped(now, back),
        }
        self.run(now);
    }

    /// Does what is due by `now`.
    pub(crate) fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(owner) = self.timers.pop(now) {
            match owner {
                TimerOwner::Destination(key) => {
                    if let Some(destination) = self.destinations.get_mut(key) {
                        destination.timer = None;
                    }
                    self.mark(key);
                }
                TimerOwner::Lane(key) => {
                    if let Some(lane) = self.lanes.get_mut(key) {
                        lane.timer = None;
                    }
                    self.on_lane_timer(now, key);
                }
                TimerOwner::Queue(key) => {
                    if let Some(queue) = self.queues.get_mut(key) {
                        queue.timer = None;
                    }
                    self.on_queue_timer(now, key);
                }
                TimerOwner::Revisit => self.revisit_timer = None,
                TimerOwner::Slot(slot) => self.limits.on_timer(slot, now, &mut self.timers),
                TimerOwner::Storage => {
                    self.storage_timer = None;
                    self.on_storage_timer();
                }
                TimerOwner::LostBodies => self.on_lost_bodies_timer(now),
            }
        }
        while let Some(id) = self.session_timers.pop(now) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.timer = None;
            }
            self.close(id);
        }
        self.run(now);
    }

    /// The next thing to do.
    pub(crate) fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Scheduler::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Timestamp> {
        timers::earliest(self.timers.next(), self.session_timers.next())
    }

    /// Whether it takes another submission at present.
    pub(crate) fn takes_submissions(&self) -> bool {
        self.writes.takes_submissions(&self.bounds)
    }

    /// Nothing is queued, being delivered or being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.len() == 0 && self.writes.is_quiet() && self.claims.is_empty()
    }

    /// An insert is under way.
    pub(crate) fn is_inserting(&self) -> bool {
        !self.writes.inserting.is_empty()
    }

    /// A commit is under way.
    pub(crate) fn is_committing(&self) -> bool {
        self.writes.is_committing()
    }

    /// Items that are in transactions now.
    pub(crate) fn in_flight(&self) -> usize {
        self.busy
    }

    /// Connections that hold a permit.
    pub(crate) fn open_connections(&self) -> usize {
        self.open
    }

    /// Works until nothing more follows from what is known.
    fn run(&mut self, now: Timestamp) {
        if !self.revisits.is_empty() || !self.replaced.is_empty() || self.revisit_timer.is_some() {
            self.revisit_some(now);
        }
        loop {
            while let Some(key) = self.dirty.pop_front() {
                self.pump(now, key);
            }
            self.list_idle();
            self.call_next(now);
            if !self.dirty.is_empty() {
                continue;
            }
            match self.next_waiter() {
                Some(key) => self.mark(key),
                None => break,
            }
        }
        self.limits.forget_new_paces();
        if !self.changed_queues.is_empty() || self.limits.has_to_keep() {
            self.write_state();
            for key in std::mem::take(&mut self.changed_queues) {
                self.remove_queue_if_done(now, key);
            }
        }
        self.flush_writes(now);
        if self.shutting_down
            && !self.drained
            && self.open == 0
            && self.claims.is_empty()
            && self.writes.is_quiet()
        {
            self.drained = true;
            self.commands.push_back(Command::Drained);
        }
    }

    /// Looks at some of the destinations whose queue changed; the others follow at once, after what else there is.
    fn revisit_some(&mut self, now: Timestamp) {
        for _ in 0..REVISITS {
            let Some(key) = self.revisits.pop_front() else { break };
            self.revisit(now, key);
        }
        for _ in 0..REVISITS {
            let Some(key) = self.replaced.pop_front() else { break };
            self.revisit_replaced(now, key);
        }
        let next = (!self.revisits.is_empty() || !self.replaced.is_empty()).then_some(now);
        self.timers.arm(&mut self.revisit_timer, next, TimerOwner::Revisit);
    }

    /// A destination whose wait is over: what it waited for is to be had.
    fn next_waiter(&mut self) -> Option<DestinationKey> {
        self.transit.nobody_is_called();
        if self.shutting_down || self.waiting.is_empty() && self.transit.has_no_line() {
            return None;
        }
        if self.looking_up < self.bounds.look_ups
            && let Some(key) = self.waiting.look_up.pop()
        {
            self.stop_waiting(key, |waits| waits.look_up = false);
            return Some(key);
        }
        if let Some(key) = self.transit.call() {
            self.stop_waiting(key, |waits| waits.body = None);
            return Some(key);
        }
        if !self.window.is_full(self.bounds.window)
            && let Some(key) = self.waiting.window.pop_front()
        {
            self.stop_waiting(key, |waits| waits.window = false);
            return Some(key);
        }
        if self.claims.len() < self.bounds.claims
            && let Some(key) = self.waiting.claim.pop_front()
        {
            self.stop_waiting(key, |waits| waits.claim = false);
            return Some(key);
        }
        if self.may_start()
            && let Some(key) = self.waiting.settle.pop_front()
        {
            self.stop_waiting(key, |waits| waits.settle = false);
            return Some(key);
        }
        None
    }

    /// Calls the next of those in line for a limit.
    fn call_next(&mut self, now: Timestamp) {
        if self.called.is_none() && self.limits.nobody_moves() {
            return;
        }
        if let Some(Call { destination, nudged: true, place }) = self.called.take() {
            let stands =
                self.destinations.get(destination).is_some_and(|d| d.work.waits.connect.contains(&place));
            if !stands {
                self.limits.pass_nudge_on(place.slot);
            }
        }
        if !self.shutting_down
            && let Some(call) = self.limits.call(now, &mut self.timers)
        {
            self.answer_call(call);
        }
    }

    fn stop_waiting(&mut self, key: DestinationKey, stop: impl FnOnce(&mut destination::Waits)) {
        if let Some(destination) = self.destinations.get_mut(key) {
            stop(&mut destination.work.waits);
        }
    }

    /// Transactions may start: outcomes can be written and reported.
    fn may_start(&self) -> bool {
        !self.reports_blocked
            && !self.writes.is_stopped()
            && self.store_room != Room::Exhausted
            && (self.writes.unsettled_items() < self.most_unsettled()
                || fault::Fault::UnboundedUnsettled.is_there())
    }

    /// How many items may wait for their outcome to become durable.
    fn most_unsettled(&self) -> usize {
        // One for each connection keeps all of them at work while a commit is under way. If room is scarce, the next ones
        // wait until it is sure that these could be written.
        let most = if self.store_room == Room::Ample { self.open } else { 1 };
        most.min(self.bounds.unsettled).max(1)
    }

    /// Puts a destination on the list of those to look at.
    fn mark(&mut self, key: DestinationKey) {
        if let Some(destination) = self.destinations.get_mut(key)
            && !destination.dirty
        {
            destination.dirty = true;
            self.dirty.push_back(key);
        }
    }

    /// Tells the host at once.
    fn report(&mut self, event: DeliveryEvent) {
        self.commands.push_back(Command::Report(Box::new(event)));
    }

    fn event_id(&mut self, now: Timestamp) -> EventId {
        EventId::generate(now, self.random())
    }

    fn message_id(&mut self, now: Timestamp) -> MessageId {
        MessageId::generate(now, self.random())
    }

    fn random(&mut self) -> u128 {
        self.rng.u128(..)
    }

    /// Changes that are not durable.
    pub(crate) fn unsettled(&self) -> usize {
        self.writes.unsettled()
    }

    /// Items whose outcome is not durable.
    pub(crate) fn unsettled_items(&self) -> usize {
        self.writes.unsettled_items()
    }

    /// What only ever waits for moments begins anew, since its end may lie hours away now. The one scan over
    /// destinations and connections there is, for an event as rare as it is disruptive.
    fn on_clock_stepped(&mut self, now: Timestamp, back: Duration) {
        self.resting.clear();
        self.resolver_rests = None;
        self.writes.resume();
        self.retry_claims();
        if !back.is_zero() {
            self.set_back(now, back);
        }
        let all: Vec<DestinationKey> = self.destinations.iter().map(|(key, _)| key).collect();
        for key in all {
            if let Some(destination) = self.destinations.get_mut(key) {
                destination.forget_moments();
            }
            self.mark(key);
        }
        self.close_all_idle();
    }

    fn close_all_idle(&mut self) {
        let is_idle = |connection: &Connection| matches!(connection.state, session::State::Idle { .. });
        let idle = self.connections.iter().filter(|(_, connection)| is_idle(connection));
        let idle: Vec<ConnectionId> = idle.map(|(id, _)| id).collect();
        idle.into_iter().for_each(|id| self.close(id));
    }

    fn on_shutdown(&mut self, now: Timestamp) {
        if std::mem::replace(&mut self.shutting_down, true) {
            return;
        }
        for id in self.window.waiting_items() {
            self.put_back(now, id, None);
        }
        self.close_all_idle();
    }
}
