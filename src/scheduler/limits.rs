//! Limits: how much of each there may be at a time or in a time, who holds it, and who waits for it.
//!
//! A *slot* is one limit with what is taken of it. Counts (connections to an address, of a queue, of the engine)
//! are taken and given back; paces (rates) are taken and grow back with time. Who finds a slot full stands in its
//! line, in as many lines as there are slots that would do, and is called in turn when there is room again.
//! Nobody polls, and nobody holds one slot while standing in line for another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arena::{Arena, Key};
use super::fault::Fault;
use super::ids::NameMap;
use super::pace::Pace;
use super::timers::Timers;
use super::{ConnectionId, DestinationKey, Idle, QueueKey, TimerOwner};
use crate::clock::Timestamp;
use crate::message::QueueName;
use crate::policy::{Cidr, NamePattern, Rate};

pub(crate) type SlotKey = Key<Slot>;

/// What a slot limits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LimitKey {
    /// Connections of the engine (`max-connections`).
    Total,
    /// Connections of a queue (`max-smtp-out`, or less in backoff or under a temporary cap).
    Queue(QueueKey),
    /// Connections of a queue's name from one local address (`source-ip-max-smtp-out`).
    SourceIp(QueueName, Local),
    /// Connections to a host (`mx-connection-limit`).
    Mx(NamePattern, Arc<str>),
    /// Connections to an address, or to a range if it shares one limit (`ip-connection-limit`).
    Ip(Cidr, Option<IpAddr>, Option<Local>),
    /// Recipients offered by a queue of a source (`max-msg-rate`, or that of backoff).
    MessageRate(QueueName, Arc<str>),
    /// Recipients offered by a queue of a source under a temporary cap (`limit-rate`).
    CapRate(QueueName, Arc<str>),
    /// Connections opened by a queue of a source (`max-connect-rate`).
    ConnectRate(QueueName, Arc<str>),
    /// Recipients offered by a queue's name from one local address (`source-ip-max-msg-rate`).
    SourceIpMessageRate(QueueName, Local),
    /// Connections opened by a queue's name from one local address (`source-ip-max-connect-rate`).
    SourceIpConnectRate(QueueName, Local),
}

/// A local address; without one of its own a source uses the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Local {
    Address(IpAddr),
    System { ipv6: bool },
}

pub(crate) struct Slot {
    key: LimitKey,
    gauge: Gauge,
    line: Line,
    /// Idle connections that hold it, the longest idle first.
    idle: Idle,
    /// Connections that hold it and were told to close.
    closing: usize,
    /// It stands in the list of slots whose line may move.
    listed: bool,
    timer: Option<Timestamp>,
}

/// How much of a slot is taken.
pub(super) enum Level {
    Count { used: usize, limit: usize },
    Paced { rate: Rate, ready_at: Timestamp },
}

enum Gauge {
    Count { used: usize, limit: usize },
    Paced(Pace),
}

/// Who waits, first come, first served; but destinations with fresh mail and those without take turns: a flood of
/// retries after a restart does not bury new mail.
#[derive(Default)]
struct Line {
    fresh: BTreeMap<Ticket, Waiter>,
    again: BTreeMap<Ticket, Waiter>,
    again_next: bool,
}

/// Who has nothing yet of what the line is for comes before who wants more of it; then first come, first served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    wants_more: bool,
    number: u64,
}

#[derive(Clone, Copy)]
struct Waiter {
    destination: DestinationKey,
    /// How much of it is wanted.
    units: u32,
}

/// A place in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: SlotKey,
    ticket: Ticket,
    fresh: bool,
}

impl Place {
    /// It was given to one that had some already.
    pub(super) fn is_for_more(self) -> bool {
        self.ticket.wants_more
    }
}

impl Line {
    fn len(&self) -> usize {
        self.fresh.len() + self.again.len()
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty()
    }

    fn list(&mut self, fresh: bool) -> &mut BTreeMap<Ticket, Waiter> {
        if fresh { &mut self.fresh } else { &mut self.again }
    }

    fn next(&self) -> Option<(bool, Ticket, Waiter)> {
        let (fresh, again) = (self.fresh.first_key_value(), self.again.first_key_value());
        let fresh_first = fresh_first(fresh.map(|(t, _)| t), again.map(|(t, _)| t), self.again_next);
        let (&ticket, &waiter) = if fresh_first { fresh } else { again }?;
        Some((fresh_first, ticket, waiter))
    }

    /// How many are called before this place; counted up to `most`.
    fn ahead_of(&self, place: Place, most: u64) -> u64 {
        let (mut fresh, mut again) = (self.fresh.keys().peekable(), self.again.keys().peekable());
        let mut again_next = self.again_next;
        for ahead in 0..most {
            let fresh_first = fresh_first(fresh.peek().copied(), again.peek().copied(), again_next);
            let next = if fresh_first { fresh.next() } else { again.next() };
            if next.is_none_or(|&ticket| ticket == place.ticket) {
                return ahead;
            }
            again_next = fresh_first;
        }
        most
    }
}

/// Which of the two lists goes first, by who stands at their fronts.
fn fresh_first(fresh: Option<&Ticket>, again: Option<&Ticket>, again_next: bool) -> bool {
    match (fresh, again) {
        (Some(fresh), Some(again)) if fresh.wants_more != again.wants_more => again.wants_more,
        (Some(_), Some(_)) => !again_next,
        (fresh, _) => fresh.is_some(),
    }
}

/// All slots.
#[derive(Default)]
pub(super) struct Limits {
    slots: Arena<Slot>,
    /// Of all but queues, each of which knows its own.
    keys: NameMap<LimitKey, SlotKey>,
    /// Slots whose line may move.
    moving: VecDeque<SlotKey>,
    /// Slots with a connection that has just become idle: the first in line may use it, or have it closed.
    nudged: VecDeque<SlotKey>,
    next_ticket: u64,
    /// Paces made since the last look: those of which nothing was taken are forgotten.
    new_paces: Vec<SlotKey>,
    /// Slow paces whose state is to be kept, and those at rest again.
    to_keep: BTreeSet<SlotKey>,
    to_forget: Vec<LimitKey>,
}

/// A call to one that stands in line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) destination: DestinationKey,
    /// Not since there is room, but since a session has become idle.
    pub(super) nudged: bool,
    /// The place it is called from, which it keeps if what it needs is gone again.
    pub(super) place: Place,
}

impl Limits {
    /// The slot of a count, made if need be. The limit is the one given last.
    pub(super) fn count(&mut self, key: LimitKey, limit: usize) -> SlotKey {
        let limit = limit.saturating_add(usize::from(Fault::LimitOffByOne.is_there()));
        let slot = self.slot(key, || Gauge::Count { used: 0, limit });
        self.set_limit(slot, limit);
        slot
    }

    /// The slot of a rate, made if need be. The rate is the one given last.
    pub(super) fn pace(&mut self, now: Timestamp, key: LimitKey, rate: Rate) -> SlotKey {
        let known = self.slots.len();
        let slot = self.slot(key, || Gauge::Paced(Pace::new(rate)));
        if self.slots.len() > known {
            self.new_paces.push(slot);
        }
        if let Some(Slot { gauge: Gauge::Paced(pace), .. }) = self.slots.get_mut(slot)
            && pace.rate() != rate
        {
            *pace = pace.with_rate(rate, now);
            self.list(slot);
        }
        slot
    }

    /// The slot of a queue's connections: the one it had last, if that is still in use.
    pub(super) fn of_queue(&mut self, last: SlotKey, queue: QueueKey, limit: usize) -> SlotKey {
        if self.slots.get(last).is_some() {
            return last;
        }
        let limit = limit.saturating_add(usize::from(Fault::LimitOffByOne.is_there()));
        self.insert(LimitKey::Queue(queue), Gauge::Count { used: 0, limit })
    }

    fn slot(&mut self, key: LimitKey, gauge: impl FnOnce() -> Gauge) -> SlotKey {
        if let Some(&slot) = self.keys.get(&key) {
            return slot;
        }
        let slot = self.insert(key.clone(), gauge());
        self.keys.insert(key, slot);
        slot
    }

    fn insert(&mut self, key: LimitKey, gauge: Gauge) -> SlotKey {
        self.slots.insert(Slot {
            key,
            gauge,
            line: Line::default(),
            idle: Idle::default(),
            closing: 0,
            listed: false,
            timer: None,
        })
    }

    pub(super) fn find(&self, key: &LimitKey) -> Option<SlotKey> {
        self.keys.get(key).copied()
    }

    /// A count's limit changes. What is held is not taken back.
    pub(super) fn set_limit(&mut self, slot: SlotKey, new: usize) {
        if let Some(Slot { gauge: Gauge::Count { limit, .. }, .. }) = self.slots.get_mut(slot)
            && *limit != new
        {
            *limit = new;
            self.list(slot);
        }
    }

    /// The slot may have room: its line is looked at.
    pub(super) fn list(&mut self, slot: SlotKey) {
        if let Some(state) = self.slots.get_mut(slot)
            && !state.listed
            && !state.line.is_empty()
        {
            state.listed = true;
            self.moving.push_back(slot);
        }
    }

    pub(super) fn key(&self, slot: SlotKey) -> Option<&LimitKey> {
        self.slots.get(slot).map(|slot| &slot.key)
    }

    /// What of a slot is taken, as one sees it who stands at this place.
    pub(super) fn level(&self, place: Place) -> Option<Level> {
        let state = self.slots.get(place.slot)?;
        Some(match &state.gauge {
            Gauge::Count { used, limit } => Level::Count { used: *used, limit: *limit },
            Gauge::Paced(pace) => {
                let list = if place.fresh { &state.line.fresh } else { &state.line.again };
                let units = list.get(&place.ticket).map_or(1, |waiter| waiter.units);
                Level::Paced { rate: pace.rate(), ready_at: pace.ready_at(units) }
            }
        })
    }

    /// How many are called before this place; counted up to `most`.
    pub(super) fn ahead_of(&self, place: Place, most: u64) -> u64 {
        self.slots.get(place.slot).map_or(0, |slot| slot.line.ahead_of(place, most))
    }

    /// How much of a count is taken.
    pub(super) fn used(&self, slot: SlotKey) -> usize {
        match self.slots.get(slot).map(|slot| &slot.gauge) {
            Some(Gauge::Count { used, .. }) => *used,
            _ => 0,
        }
    }

    /// Whether so much may be taken now. Lines are another matter.
    pub(super) fn has_room(&self, slot: SlotKey, now: Timestamp, units: u32) -> bool {
        match self.slots.get(slot).map(|slot| &slot.gauge) {
            Some(Gauge::Count { used, limit }) => used.saturating_add(units as usize) <= *limit,
            Some(Gauge::Paced(pace)) => pace.ready_at(units) <= now,
            None => true,
        }
    }

    pub(super) fn has_line(&self, slot: SlotKey) -> bool {
        self.slots.get(slot).is_some_and(|slot| !slot.line.is_empty())
    }

    /// How many units of a pace may be taken at a time.
    pub(super) fn burst(&self, slot: SlotKey) -> u32 {
        match self.slots.get(slot).map(|slot| &slot.gauge) {
            Some(Gauge::Paced(pace)) => pace.burst(),
            _ => u32::MAX,
        }
    }

    pub(super) fn take(
        &mut self,
        slot: SlotKey,
        now: Timestamp,
        units: u32,
        timers: &mut Timers<TimerOwner>,
    ) {
        let Some(state) = self.slots.get_mut(slot) else { return };
        match &mut state.gauge {
            Gauge::Count { used, limit } => {
                *used = used.saturating_add(units as usize);
                debug_assert!(used <= limit, "{:?}: {used} of {limit}", state.key);
            }
            Gauge::Paced(pace) => {
                let units = if Fault::RateNotTaken.is_there() { 0 } else { units };
                pace.take(now, units);
                if pace.is_long() {
                    self.to_keep.insert(slot);
                }
                if state.timer.is_none() {
                    timers.arm(&mut state.timer, Some(pace.rests_at()), TimerOwner::Slot(slot));
                }
            }
        }
    }

    /// Takes of a count what is held already, though a new limit may not allow it.
    pub(super) fn take_regardless(&mut self, slot: SlotKey) {
        if let Some(Slot { gauge: Gauge::Count { used, .. }, .. }) = self.slots.get_mut(slot) {
            *used = used.saturating_add(1);
        }
    }

    /// A count that was only looked at is forgotten.
    pub(super) fn forget_unused(&mut self, slot: SlotKey) {
        let Some(state) = self.slots.get(slot) else { return };
        let unused = matches!(state.gauge, Gauge::Count { used: 0, .. });
        if unused && !matches!(state.key, LimitKey::Total) && state.line.is_empty() {
            self.remove(slot);
        }
    }

    /// Paces that were only looked at are forgotten; the others are once they rest.
    pub(super) fn forget_new_paces(&mut self) {
        while let Some(slot) = self.new_paces.pop() {
            if self.slots.get(slot).is_some_and(|state| state.timer.is_none() && state.line.is_empty()) {
                self.remove(slot);
            }
        }
    }

    /// One of a count is free again. A slot of which nothing is held and for which nobody waits is forgotten, save
    /// that of the engine.
    pub(super) fn give_back(&mut self, slot: SlotKey) {
        let Some(state) = self.slots.get_mut(slot) else { return };
        let Gauge::Count { used, .. } = &mut state.gauge else { return };
        *used = used.saturating_sub(1);
        if !Fault::LostWakeUp.is_there() {
            self.list(slot);
        }
        self.forget_unused(slot);
    }

    /// What [`Pace::paid_off`] is of a pace.
    pub(super) fn paid_off(&self, slot: SlotKey) -> u128 {
        match self.slots.get(slot).map(|slot| &slot.gauge) {
            Some(Gauge::Paced(pace)) => pace.paid_off(),
            _ => 0,
        }
    }

    /// What was taken of a pace and not used; see [`Pace::refund`].
    pub(super) fn refund(&mut self, slot: SlotKey, now: Timestamp, units: u32, paid_off: u128) {
        if let Some(Slot { gauge: Gauge::Paced(pace), .. }) = self.slots.get_mut(slot) {
            pace.refund(now, units, paid_off);
            if pace.is_long() {
                self.to_keep.insert(slot);
            }
            self.list(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: SlotKey) {
        if let Some(state) = self.slots.remove(slot)
            && !matches!(state.key, LimitKey::Queue(_))
        {
            self.keys.remove(&state.key);
        }
    }

    /// Slow paces that changed: their state rows are to be written.
    pub(super) fn take_changes(&mut self) -> Vec<(LimitKey, Option<(Rate, Timestamp)>)> {
        let changed = std::mem::take(&mut self.to_keep);
        let kept = changed.into_iter().filter_map(|slot| match self.slots.get(slot)? {
            Slot { key, gauge: Gauge::Paced(pace), .. } => {
                Some((key.clone(), Some((pace.rate(), pace.rests_at()))))
            }
            Slot { .. } => None,
        });
        kept.chain(std::mem::take(&mut self.to_forget).into_iter().map(|key| (key, None))).collect()
    }

    pub(super) fn has_to_keep(&self) -> bool {
        !self.to_keep.is_empty() || !self.to_forget.is_empty()
    }

    /// The clock was set back by so much: paces rest as soon as they would have.
    pub(super) fn set_back(&mut self, by: Duration, timers: &mut Timers<TimerOwner>) {
        let slots: Vec<SlotKey> = self.slots.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let Some(state) = self.slots.get_mut(slot) else { continue };
            let Gauge::Paced(pace) = &mut state.gauge else { continue };
            pace.set_back(by);
            if pace.is_long() {
                self.to_keep.insert(slot);
            }
            timers.arm(&mut state.timer, Some(pace.rests_at()), TimerOwner::Slot(slot));
            if !state.line.is_empty() {
                self.list(slot);
            }
        }
    }

    /// A pace goes on where it stood when it was kept.
    pub(super) fn resume(
        &mut self,
        now: Timestamp,
        key: LimitKey,
        rate: Rate,
        rests_at: Timestamp,
        timers: &mut Timers<TimerOwner>,
    ) {
        if Fault::SlowRateForgotten.is_there() {
            return;
        }
        let slot = self.pace(now, key, rate);
        if let Some(state) = self.slots.get_mut(slot)
            && let Gauge::Paced(pace) = &mut state.gauge
        {
            pace.set_rest(rests_at);
            timers.arm(&mut state.timer, Some(pace.rests_at()), TimerOwner::Slot(slot));
        }
    }

    /// Stands in line for `units` of a slot. `old`: the place it was called from, kept if it is in this line.
    pub(super) fn stand_in_line(
        &mut self,
        slot: SlotKey,
        destination: DestinationKey,
        units: u32,
        (fresh, wants_more): (bool, bool),
        old: Option<Place>,
    ) -> Option<Place> {
        let (ticket, fresh) = match old.filter(|old| old.slot == slot) {
            Some(old) => (old.ticket, old.fresh),
            None => {
                self.next_ticket += 1;
                (Ticket { wants_more, number: self.next_ticket }, fresh)
            }
        };
        let state = self.slots.get_mut(slot)?;
        state.line.list(fresh).insert(ticket, Waiter { destination, units });
        Some(Place { slot, ticket, fresh })
    }

    pub(super) fn leave_line(&mut self, place: Place) {
        let Some(state) = self.slots.get_mut(place.slot) else { return };
        state.line.list(place.fresh).remove(&place.ticket);
        self.forget_unused(place.slot);
    }

    /// A connection that holds these has become idle.
    /// Addresses first: who waits there can use the session itself.
    pub(super) fn now_idle(&mut self, slots: &[SlotKey], since: Timestamp, id: ConnectionId) {
        for &slot in slots.iter().rev() {
            if let Some(state) = self.slots.get_mut(slot) {
                state.idle.insert((since, id));
                if !state.line.is_empty() {
                    self.nudged.push_back(slot);
                }
            }
        }
    }

    pub(super) fn not_idle(&mut self, slots: &[SlotKey], since: Timestamp, id: ConnectionId) {
        for &slot in slots {
            if let Some(state) = self.slots.get_mut(slot) {
                state.idle.remove(&(since, id));
            }
        }
    }

    pub(super) fn now_closing(&mut self, slots: &[SlotKey]) {
        for &slot in slots {
            if let Some(state) = self.slots.get_mut(slot) {
                state.closing += 1;
            }
        }
    }

    /// Who was nudged does not want the idle session: the next in line may.
    pub(super) fn pass_nudge_on(&mut self, slot: SlotKey) {
        if self.slots.get(slot).is_some_and(|slot| !slot.idle.is_empty() && !slot.line.is_empty()) {
            self.nudged.push_back(slot);
        }
    }

    pub(super) fn not_closing(&mut self, slots: &[SlotKey]) {
        for &slot in slots {
            if let Some(state) = self.slots.get_mut(slot) {
                state.closing = state.closing.saturating_sub(1);
            }
        }
    }

    /// More is held of a count than its limit allows now, and it is not being given back already.
    pub(super) fn is_over(&self, slot: SlotKey) -> bool {
        self.slots.get(slot).is_some_and(|state| match &state.gauge {
            Gauge::Count { used, limit } => used.saturating_sub(state.closing) > *limit,
            Gauge::Paced(_) => false,
        })
    }

    /// The longest idle of the connections that are too many since a limit was lowered.
    pub(super) fn over_limit(&self, slot: SlotKey) -> Option<ConnectionId> {
        let state = self.slots.get(slot)?;
        let Gauge::Count { used, limit } = &state.gauge else { return None };
        (used.saturating_sub(state.closing) > *limit).then_some(())?;
        state.idle.first().map(|&(_, id)| id)
    }

    /// A queue's rates of recipients are others now. Who waits for one that is gone is called.
    pub(super) fn rates_changed(
        &mut self,
        now: Timestamp,
        name: &QueueName,
        source: &Arc<str>,
        message: Option<Rate>,
        cap: Option<Rate>,
    ) {
        let message_key = LimitKey::MessageRate(name.clone(), source.clone());
        let cap_key = LimitKey::CapRate(name.clone(), source.clone());
        for (key, rate) in [(message_key, message), (cap_key, cap)] {
            let Some(slot) = self.find(&key) else { continue };
            if let Some(Slot { gauge: Gauge::Paced(pace), .. }) = self.slots.get_mut(slot)
                && rate != Some(pace.rate())
            {
                match rate {
                    Some(rate) => *pace = pace.with_rate(rate, now),
                    None => pace.reset(),
                }
                self.list(slot);
            }
        }
    }

    /// The longest idle of a full slot's connections, if more wait in its line than are being closed for it.
    pub(super) fn to_close(&self, slot: SlotKey) -> Option<ConnectionId> {
        let state = self.slots.get(slot)?;
        let Gauge::Count { used, limit } = &state.gauge else { return None };
        (used >= limit && state.closing < state.line.len()).then_some(())?;
        state.idle.first().map(|&(_, id)| id)
    }

    /// No line may move.
    pub(super) fn nobody_moves(&self) -> bool {
        self.nudged.is_empty() && self.moving.is_empty()
    }

    /// The next to be called: where there is room, or where a connection has become idle. It leaves this line.
    pub(super) fn call(&mut self, now: Timestamp, timers: &mut Timers<TimerOwner>) -> Option<Call> {
        while let Some(slot) = self.nudged.pop_front() {
            if let Some(call) = self.call_from(slot, true) {
                return Some(call);
            }
        }
        while let Some(&slot) = self.moving.front() {
            let next = self.slots.get(slot).and_then(|state| state.line.next());
            if let Some((_, _, waiter)) = next
                && self.has_room(slot, now, waiter.units)
            {
                return self.call_from(slot, false);
            }
            self.moving.pop_front();
            if let Some(state) = self.slots.get_mut(slot) {
                state.listed = false;
                let at = match (&state.gauge, next) {
                    (Gauge::Paced(pace), Some((_, _, waiter))) => Some(pace.ready_at(waiter.units)),
                    (Gauge::Paced(pace), None) => Some(pace.rests_at()),
                    _ => None,
                };
                timers.arm(&mut state.timer, at, TimerOwner::Slot(slot));
            }
        }
        None
    }

    fn call_from(&mut self, slot: SlotKey, nudged: bool) -> Option<Call> {
        let state = self.slots.get_mut(slot)?;
        let (fresh, ticket, waiter) = state.line.next()?;
        state.line.list(fresh).remove(&ticket);
        state.line.again_next = fresh;
        Some(Call { destination: waiter.destination, nudged, place: Place { slot, ticket, fresh } })
    }

    /// A pace has room again, or rests and is forgotten.
    pub(super) fn on_timer(&mut self, slot: SlotKey, now: Timestamp, timers: &mut Timers<TimerOwner>) {
        let Some(state) = self.slots.get_mut(slot) else { return };
        state.timer = None;
        if !state.line.is_empty() {
            return self.list(slot);
        }
        let Gauge::Paced(pace) = &state.gauge else { return };
        if pace.rests_at() > now {
            timers.arm(&mut state.timer, Some(pace.rests_at()), TimerOwner::Slot(slot));
        } else {
            if pace.is_long() {
                self.to_forget.push(state.key.clone());
            }
            self.remove(slot);
        }
    }

    /// What is taken of all counts.
    #[cfg(feature = "testing")]
    pub(super) fn taken(&self) -> usize {
        self.slots.iter().map(|(slot, _)| self.used(slot)).sum()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = (&LimitKey, SlotKey, usize, usize)> {
        self.slots.iter().map(|(slot, state)| {
            let used = match &state.gauge {
                Gauge::Count { used, .. } => *used,
                Gauge::Paced(_) => 0,
            };
            (&state.key, slot, used, state.idle.len())
        })
    }
}
