//! Everything a world sees, in order, and the oracle that reads along.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::observation::{Observation, Seen, record};
use super::oracle::{Broken, Oracle, Snapshot};
use super::{Key, Outcome, ServerReport, StoreCall};
use crate::clock::{self, Clock, Timestamp};
use crate::event::{DeliveryEvent, EventSink};
use crate::message::{Address, MessageId};
use crate::policy::Policy;
use crate::scheduler::Bounds;
use crate::storage::Item;
use crate::transport::Target;

/// Observations kept; past it they are still judged and counted.
const KEPT: usize = 4_000_000;
/// So many calls of the store and connections at one moment have no end.
const ENDLESS: u32 = 200_000;
/// Lines of the trace that a violation carries.
const QUOTED: usize = 20_000;

/// Clones are the same book.
#[derive(Clone)]
pub(super) struct Book {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// There is a reason to stop: a crash, or a broken invariant.
    stop: Notify,
}

struct State {
    time: Time,
    trace: Vec<Observation>,
    /// Observations since store and engine were looked at.
    seen_since_look: usize,
    of_message: HashMap<MessageId, Vec<usize>>,
    finals: HashMap<(MessageId, Address), DeliveryEvent>,
    oracle: Oracle,
    /// Calls of the store and connections at one moment.
    seen_at_once: (Duration, u32),
    /// What was submitted under each id, by a hash: an id again is stored once, or anew once it is forgotten.
    contents: HashMap<MessageId, Vec<u64>>,
    next_connection: u64,
    open: BTreeMap<u64, Opened>,
    peaks: BTreeMap<Key, (u64, u64)>,
    servers: BTreeMap<SocketAddr, ServerReport>,
    broken: Option<Broken>,
    crashing: bool,
}

struct Opened {
    peer: SocketAddr,
    keys: Vec<Key>,
}

/// The world's time, also while no runtime exists that could tell it.
enum Time {
    Runs { clock: Clock, since: Instant, before: Duration },
    Stands { at: Duration, time: Timestamp },
}

impl Time {
    fn elapsed(&self) -> Duration {
        match self {
            Self::Runs { since, before, .. } => *before + clock::instant().duration_since(*since),
            Self::Stands { at, .. } => *at,
        }
    }

    fn now(&self) -> Timestamp {
        match self {
            Self::Runs { clock, .. } => clock.now(),
            Self::Stands { time, .. } => *time,
        }
    }
}

impl Book {
    pub(super) fn new(start: Timestamp, policy: Policy, bounds: Bounds) -> Self {
        let state = State {
            time: Time::Stands { at: Duration::ZERO, time: start },
            trace: Vec::new(),
            seen_since_look: 0,
            of_message: HashMap::new(),
            finals: HashMap::new(),
            oracle: Oracle::new(policy, bounds),
            seen_at_once: (Duration::ZERO, 0),
            contents: HashMap::new(),
            next_connection: 0,
            open: BTreeMap::new(),
            peaks: BTreeMap::new(),
            servers: BTreeMap::new(),
            broken: None,
            crashing: false,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), stop: Notify::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time runs by `clock` from here on. Inside the runtime whose clock it is.
    pub(super) fn run(&self, clock: Clock) {
        let mut state = self.lock();
        let before = state.time.elapsed();
        state.time = Time::Runs { clock, since: clock::instant(), before };
        state.crashing = false;
    }

    /// Time stands still: the runtime ends. Inside that runtime.
    ///
    /// The next process takes over a step of the wall clock that this one did not notice.
    pub(super) fn stand(&self) {
        let mut state = self.lock();
        if let Time::Runs { clock, .. } = &state.time {
            state.time = Time::Stands { at: state.time.elapsed(), time: clock.shown() };
        }
    }

    /// Since the world's beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.lock().time.elapsed()
    }

    /// What the engine's clock shows.
    pub(super) fn now(&self) -> Timestamp {
        self.lock().time.now()
    }

    pub(super) fn see(&self, seen: Seen) {
        let mut state = self.lock();
        if state.see(seen) {
            self.inner.stop.notify_one();
        }
    }

    pub(super) fn connecting(&self, target: &Target) -> u64 {
        let mut state = self.lock();
        state.next_connection += 1;
        let connection = state.next_connection;
        let seen = Seen::Connecting {
            connection,
            peer: target.peer,
            local: target.local,
            host: target.host.clone(),
            queue: target.queue.clone(),
            source: target.source.clone(),
            tls: target.tls,
        };
        if state.see(seen) {
            self.inner.stop.notify_one();
        }
        connection
    }

    /// A connection is no more.
    pub(super) fn closed(&self, connection: u64) {
        let mut state = self.lock();
        if state.open.contains_key(&connection) && state.see(Seen::Closed { connection }) {
            self.inner.stop.notify_one();
        }
    }

    /// All connections end with their process, in order: a runtime that ends drops its tasks in none.
    pub(super) fn close_all(&self) {
        let open: Vec<u64> = self.lock().open.keys().copied().collect();
        open.into_iter().for_each(|connection| self.closed(connection));
    }

    /// The process is to die now.
    pub(super) fn crash(&self) {
        self.lock().crashing = true;
        self.inner.stop.notify_one();
    }

    pub(super) fn is_crashing(&self) -> bool {
        self.lock().crashing
    }

    /// Waits until there is a reason to stop.
    pub(super) async fn stopped(&self) {
        self.reached(|state| state.crashing || state.broken.is_some()).await;
    }

    /// Waits until the process is to die.
    pub(super) async fn crashed(&self) {
        self.reached(|state| state.crashing).await;
    }

    async fn reached(&self, is_reached: fn(&State) -> bool) {
        loop {
            let notified = self.inner.stop.notified();
            if is_reached(&self.lock()) {
                return;
            }
            notified.await;
        }
    }

    /// Takes the first broken invariant, with the end of the trace.
    pub(super) fn take_broken(&self) -> Option<(Broken, Duration, Vec<String>)> {
        let mut state = self.lock();
        let broken = state.broken.take()?;
        let from = state.trace.len().saturating_sub(QUOTED);
        let recent = state.trace.iter().skip(from).map(ToString::to_string).collect();
        Some((broken, state.time.elapsed(), recent))
    }

    /// Returns what is broken, which may be so for a moment only.
    pub(super) fn check(&self, snapshot: &Snapshot) -> Result<(), Broken> {
        let (seen, found) = {
            let state = &mut *self.lock();
            state.seen_since_look = 0;
            let oracle = &mut state.oracle;
            (oracle.settle_pending(snapshot.at()), oracle.check(snapshot))
        };
        // What was seen stays so, whatever a second look finds.
        if let Err(broken) = seen {
            self.broke(broken);
        }
        found
    }

    /// At least as much was seen since store and engine were looked at as there are messages to go through.
    pub(super) fn is_worth_a_look(&self) -> bool {
        let state = self.lock();
        state.seen_since_look >= state.oracle.messages()
    }

    /// The engine says that nothing is queued: whether nothing is left in the store.
    pub(super) fn is_idle(&self, snapshot: &Snapshot) -> bool {
        let judged = self.lock().oracle.is_idle(snapshot);
        judged.unwrap_or_else(|broken| {
            self.broke(broken);
            false
        })
    }

    /// Nothing follows any more: what is pending is certain.
    pub(super) fn settle_all(&self) {
        self.settle_until(Duration::MAX);
    }

    /// What is pending from before is certain.
    pub(super) fn settle_until(&self, now: Duration) {
        let judged = self.lock().oracle.settle_pending(now);
        if let Err(broken) = judged {
            self.broke(broken);
        }
    }

    /// The trace is not all that was seen.
    pub(super) fn is_cut_off(&self) -> bool {
        self.lock().trace.len() >= KEPT
    }

    /// The store is asked. Nobody asks so often at one moment but who does it without end.
    pub(super) fn asked(&self, call: StoreCall) {
        let mut state = self.lock();
        let now = state.time.elapsed();
        if state.is_endless(now, || format!("{call:?} of the store")) {
            self.inner.stop.notify_one();
        }
    }

    /// A message is submitted, or was accepted, with this content.
    pub(super) fn submitted(&self, message: MessageId, content: u64) {
        let mut state = self.lock();
        let contents = state.contents.entry(message).or_default();
        if !contents.contains(&content) {
            contents.push(content);
        }
    }

    /// A message is being sent with this content.
    pub(super) fn sent(&self, message: MessageId, content: u64) {
        let is_other =
            self.lock().contents.get(&message).is_some_and(|submitted| !submitted.contains(&content));
        if is_other {
            let what =
                format!("{message} is sent with another content or reverse path than it was submitted with");
            self.broke(Broken { invariant: "content", what, message: Some(message), queue: None });
        }
    }

    pub(super) fn unanswered(&self, time: Duration) {
        let what = format!("the engine did not answer within {time:?}");
        self.broke(Broken { invariant: "unanswered", what, message: None, queue: None });
    }

    pub(super) fn broke(&self, broken: Broken) {
        self.lock().broken.get_or_insert(broken);
        self.inner.stop.notify_one();
    }

    /// Something for the oracle alone.
    pub(super) fn tell<T>(&self, told: impl FnOnce(&mut Oracle) -> T) -> T {
        told(&mut self.lock().oracle)
    }

    /// The store handed these out.
    pub(super) fn claimed(&self, items: &[Item]) {
        if let Err(broken) = self.tell(|oracle| oracle.claimed(items)) {
            self.broke(broken);
        }
    }

    /// A running engine has another policy from here on.
    pub(super) fn replace_policy(&self, policy: Policy) {
        self.tell(|oracle| oracle.set_policy(policy));
        self.see(Seen::PolicyReplaced);
    }

    pub(super) fn trace(&self) -> Vec<Observation> {
        self.lock().trace.clone()
    }

    pub(super) fn trace_text(&self) -> String {
        let state = self.lock();
        state.trace.iter().fold(String::new(), |mut text, observation| {
            text.push_str(&observation.to_string());
            text.push('\n');
            text
        })
    }

    pub(super) fn timeline(&self, message: MessageId) -> Vec<Observation> {
        let state = self.lock();
        let indices = state.of_message.get(&message).map(Vec::as_slice).unwrap_or_default();
        indices.iter().filter_map(|&index| state.trace.get(index).cloned()).collect()
    }

    /// Whether this message was accepted, and not for this recipient.
    pub(super) fn is_nobodys(&self, message: MessageId, recipient: &Address) -> bool {
        self.lock().oracle.is_nobodys(message, recipient)
    }

    pub(super) fn final_event(&self, message: MessageId, recipient: &Address) -> Option<DeliveryEvent> {
        self.lock().finals.get(&(message, recipient.clone())).cloned()
    }

    pub(super) fn outcomes(&self) -> BTreeMap<Outcome, u64> {
        let mut outcomes = BTreeMap::new();
        for event in self.lock().finals.values() {
            *outcomes.entry(Outcome::of(event)).or_default() += 1;
        }
        outcomes
    }

    pub(super) fn peak(&self, key: &Key) -> u64 {
        let key = match key {
            Key::Address(address) => &Key::Address(address.to_canonical()),
            Key::Host(host) => &Key::Host(host.trim_end_matches('.').to_ascii_lowercase()),
            key => key,
        };
        self.lock().peaks.get(key).map_or(0, |&(_, peak)| peak)
    }

    pub(super) fn server(&self, address: SocketAddr) -> ServerReport {
        self.lock().servers.get(&address).cloned().unwrap_or_default()
    }

    pub(super) fn servers(&self) -> BTreeMap<SocketAddr, ServerReport> {
        self.lock().servers.clone()
    }
}

impl State {
    /// Returns whether there is a reason to stop now.
    fn see(&mut self, seen: Seen) -> bool {
        let observation = Observation { at: self.time.elapsed(), time: self.time.now(), seen };
        self.seen_since_look += 1;
        self.count(&observation.seen);
        let connects = matches!(observation.seen, Seen::Connecting { .. });
        let is_endless = connects && self.is_endless(observation.at, || observation.seen.to_string());
        let judged = self.oracle.see(&observation);
        if self.trace.len() < KEPT {
            if let Some(message) = observation.seen.message() {
                self.of_message.entry(message).or_default().push(self.trace.len());
            }
            self.trace.push(observation);
        }
        match judged {
            Err(broken) if self.broken.is_none() => {
                self.broken = Some(broken);
                true
            }
            _ => is_endless,
        }
    }

    /// Something happens at this moment. Nothing happens so often at one but what has no end.
    fn is_endless(&mut self, at: Duration, last: impl FnOnce() -> String) -> bool {
        if self.seen_at_once.0 != at {
            self.seen_at_once = (at, 0);
        }
        self.seen_at_once.1 = self.seen_at_once.1.saturating_add(1);
        let is_endless = self.seen_at_once.1 >= ENDLESS;
        if is_endless {
            let what =
                format!("{ENDLESS} calls of the store and connections at one moment, at last {}", last());
            self.broken.get_or_insert(Broken { invariant: "endless", what, message: None, queue: None });
        }
        is_endless
    }

    fn count(&mut self, seen: &Seen) {
        match seen {
            Seen::Connecting { connection, peer, host, queue, source, .. } => {
                let keys = vec![
                    Key::Total,
                    Key::Address(peer.ip()),
                    Key::Host(host.to_string()),
                    Key::Queue(queue.to_string()),
                    Key::Source(source.to_string()),
                ];
                for key in &keys {
                    let (open, peak) = self.peaks.entry(key.clone()).or_default();
                    *open += 1;
                    *peak = (*peak).max(*open);
                }
                self.open.insert(*connection, Opened { peer: *peer, keys });
                let server = self.servers.entry(*peer).or_default();
                server.attempts += 1;
            }
            Seen::Connected { connection } => {
                if let Some(server) = self.server_of(*connection) {
                    server.sessions += 1;
                }
            }
            Seen::NotConnected { connection, reply: Some(reply), .. } => {
                let code = reply.code();
                if let Some(server) = self.server_of(*connection) {
                    *server.refusals.entry(code).or_default() += 1;
                }
            }
            Seen::Offered { connection, recipients, .. } => {
                let offered = recipients.len() as u64;
                if let Some(server) = self.server_of(*connection) {
                    server.transactions += 1;
                    server.offered += offered;
                }
            }
            Seen::Answered { connection, taken, reply, .. } => {
                let (taken, code) = (taken.len() as u64, reply.as_ref().map(crate::reply::Reply::code));
                if let Some(server) = self.server_of(*connection) {
                    server.taken += taken;
                    if let Some(code) = code.filter(|&code| code >= 400) {
                        *server.refusals.entry(code).or_default() += 1;
                    }
                }
            }
            Seen::Closed { connection } => {
                let keys = self.open.remove(connection).map(|opened| opened.keys).unwrap_or_default();
                for key in keys {
                    if let Some((open, _)) = self.peaks.get_mut(&key) {
                        *open = open.saturating_sub(1);
                    }
                }
            }
            Seen::Event(event) if event.is_final() => {
                if let Some(record) = record(event) {
                    let key = (record.id, record.recipient.clone());
                    self.finals.entry(key).or_insert_with(|| (**event).clone());
                }
            }
            _ => {}
        }
    }

    fn server_of(&mut self, connection: u64) -> Option<&mut ServerReport> {
        let peer = self.open.get(&connection)?.peer;
        Some(self.servers.entry(peer).or_default())
    }
}

impl EventSink for Book {
    fn on_event(&self, event: &DeliveryEvent) {
        self.see(Seen::Event(Box::new(event.clone())));
    }

    fn flush_blocks(&self) -> bool {
        false
    }
}
