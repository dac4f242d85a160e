//! One question, answered item by item or destination by destination.

use std::cell::OnceCell;
use std::collections::HashSet;

use super::connections::Connections;
use crate::clock::Timestamp;
use crate::scheduler::destination::{Destination, RouteState};
use crate::scheduler::limits::{Level, Place};
use crate::scheduler::outcome::{HELD_BY_FUSE, PAUSED};
use crate::scheduler::queue::Queue;
use crate::scheduler::window::WindowItem;
use crate::scheduler::{DestinationKey, LaneKey, QueueKey, Scheduler};
use crate::storage::{ItemId, ItemSummary, Recipient, Room};
use crate::why::{Bounce, DestinationWaits, ItemWaits, MOST_AHEAD, QueueWaits, Wait};

/// Destinations of a queue that are told.
const MOST_DESTINATIONS: usize = 20;
/// Lines that are told of those a destination stands in at a time.
const MOST_LINES: usize = 4;

/// One question, and what is found once for all of its parts.
pub(super) struct Question<'a> {
    scheduler: &'a Scheduler,
    now: Timestamp,
    connections: OnceCell<Connections<'a>>,
    written: OnceCell<HashSet<ItemId>>,
}

/// What something waits for.
#[derive(Default)]
struct Found {
    waits: Vec<Wait>,
    until: Option<Timestamp>,
}

impl Found {
    /// Nothing is tried before this is over.
    fn add(&mut self, wait: Wait) {
        self.until = self.until.max(wait.until());
        self.waits.push(wait);
    }

    fn hold(holds: Vec<Wait>) -> Self {
        let mut found = Self::default();
        holds.into_iter().for_each(|wait| found.add(wait));
        super::last_first(&mut found.waits);
        found
    }
}

impl<'a> Question<'a> {
    pub(super) fn new(scheduler: &'a Scheduler, now: Timestamp) -> Self {
        Self { scheduler, now, connections: OnceCell::new(), written: OnceCell::new() }
    }

    /// `None`: nothing of it is left.
    pub(super) fn item(&self, summary: ItemSummary) -> Option<ItemWaits> {
        let scheduler = self.scheduler;
        let lane = scheduler.lanes.find_ref(&summary.lane)?;
        let destination = scheduler.destinations.get(lane.destination)?;
        let queue = scheduler.queues.get(destination.queue)?;
        let at_hand = scheduler.window.get(summary.id);
        let mut found = self.of_item(&summary, at_hand, lane.destination, destination, queue);
        self.add_backoff(&mut found, queue);
        let expires_at = scheduler.expiry_of(lane, &summary.envelope);
        let bounces = self.bounce(lane.destination, destination, summary.envelope.age_from);
        Some(ItemWaits {
            message: summary.envelope.id,
            recipients: at_hand.map_or(summary.recipients, |item| item.item.recipients.clone()),
            domain: summary.lane.domain,
            queue: queue.name.clone(),
            source: queue.source.clone(),
            priority: summary.lane.priority,
            expires_at,
            bounces: bounces.filter(|bounce| bounce.at < expires_at),
            waits: found.waits,
            until: found.until,
        })
    }

    /// With what mail of this age bounces, and when, as DNS does not have its domain.
    fn bounce(&self, key: DestinationKey, destination: &Destination, age_from: Timestamp) -> Option<Bounce> {
        let at = age_from + self.scheduler.missing_after(key)?;
        let missing = destination.missing.as_ref()?;
        // Where DNS could not be asked again, it is then.
        let at = at.max(self.scheduler.fresh_from(key).unwrap_or(at));
        Some(Bounce { at, diagnosis: Box::new(missing.diagnosis.clone()) })
    }

    fn of_item(
        &self,
        summary: &ItemSummary,
        at_hand: Option<&WindowItem>,
        key: DestinationKey,
        destination: &Destination,
        queue: &Queue,
    ) -> Found {
        let mut found = Found::default();
        if at_hand.is_some_and(|item| item.busy)
            && let Some(wait) = self.connections().carrying.get(&summary.id)
        {
            found.add(wait.clone());
            return found;
        }
        if at_hand.is_none() && self.is_being_written(summary.id) {
            found.add(self.writing());
            return found;
        }
        let mut holds = self.scheduler.holds_queue(self.now, queue);
        holds.extend(self.holds_destination(destination));
        holds.extend(self.holds_item(summary, at_hand, destination));
        if holds.is_empty() {
            self.progress(&mut found, key, destination, at_hand.is_some());
            return found;
        }
        Found::hold(holds)
    }

    fn holds_item(
        &self,
        summary: &ItemSummary,
        at_hand: Option<&WindowItem>,
        destination: &Destination,
    ) -> Option<Wait> {
        let selector = self.scheduler.pauses.of_message(&summary.envelope);
        let due = at_hand.map_or(summary.due, |item| item.item.due);
        if selector.is_some() || due == PAUSED {
            return Some(Wait::Paused { selector });
        }
        if due == HELD_BY_FUSE {
            return Some(Wait::FuseBlown);
        }
        if due > self.now && self.scheduler.unread.until(summary.id) == Some(due) {
            return Some(Wait::BodyRefused { until: due });
        }
        // An item over which a session ended is put off with its destination.
        if due <= self.now || destination.retry.until == Some(due) {
            return None;
        }
        let attempts = |recipient: &Recipient| recipient.attempts;
        let attempts = summary.recipients.iter().map(attempts).max().unwrap_or(0);
        if attempts == 0 {
            return Some(Wait::HeldBack { until: due });
        }
        let last = summary.recipients.iter().filter_map(|recipient| recipient.last.as_ref());
        let last = last.max_by_key(|last| last.at).map(|last| Box::new(last.diagnosis.clone()));
        Some(Wait::RecipientRetry { until: due, attempts, last })
    }

    fn holds_destination(&self, destination: &Destination) -> Vec<Wait> {
        let selector = self.scheduler.pause_of_home(destination);
        let paused = selector.map(|selector| Wait::Paused { selector: Some(selector) });
        let clock = &destination.retry;
        let retry = clock.until.filter(|&until| until > self.now).map(|until| Wait::DestinationRetry {
            until,
            step: clock.step,
            last: clock.last.clone(),
        });
        paused.into_iter().chain(retry).collect()
    }

    /// It is no reason to wait, but the reason for many.
    fn add_backoff(&self, found: &mut Found, queue: &Queue) {
        if let Some(backoff) = &queue.mode.backoff {
            found.waits.push(Wait::Backoff { since: backoff.since, until: backoff.until });
        }
    }

    pub(super) fn queue(&self, key: QueueKey) -> Option<QueueWaits> {
        let scheduler = self.scheduler;
        let queue = scheduler.queues.get(key)?;
        let mut found = Found::hold(scheduler.holds_queue(self.now, queue));
        let is_held = !found.waits.is_empty();
        let with_mail = queue.destinations.iter().filter_map(|&key| {
            let destination = scheduler.destinations.get(key)?;
            let lanes = destination.lanes.iter().filter_map(|&lane| scheduler.lanes.get(lane));
            let oldest = lanes.filter_map(|lane| scheduler.oldest_of(lane)).min();
            (!destination.lanes.is_empty()).then_some((oldest.unwrap_or(PAUSED), key, destination))
        });
        let mut with_mail: Vec<_> = with_mail.collect();
        with_mail.sort_unstable_by_key(|&(oldest, key, _)| (oldest, key));
        let told = with_mail.iter().take(MOST_DESTINATIONS);
        let destinations: Vec<_> = told
            .map(|&(oldest, key, destination)| self.destination(key, destination, oldest, is_held))
            .collect();
        let more_destinations = (with_mail.len() - destinations.len()) as u64;
        if more_destinations == 0
            && let Some(until) = destinations.iter().map(|destination| destination.until).min()
        {
            found.until = found.until.max(until);
        }
        self.add_backoff(&mut found, queue);
        let lanes = with_mail.iter().flat_map(|(_, _, destination)| &destination.lanes);
        let lanes = lanes.filter_map(|&lane| scheduler.lanes.get(lane));
        Some(QueueWaits {
            name: queue.name.clone(),
            source: queue.source.clone(),
            connections: scheduler.limits.used(queue.slot) as u64,
            in_flight: lanes.map(|lane| scheduler.busy_of(lane) as u64).sum(),
            waits: found.waits,
            until: found.until,
            destinations,
            more_destinations,
        })
    }

    /// `is_held`: all of its queue is.
    fn destination(
        &self,
        key: DestinationKey,
        destination: &Destination,
        oldest: Timestamp,
        is_held: bool,
    ) -> DestinationWaits {
        let mut found = Found::hold(self.holds_destination(destination));
        if found.waits.is_empty() && !is_held {
            self.first_of(&mut found, key, destination);
        }
        let domain = |&lane: &LaneKey| Some(self.scheduler.lanes.get(lane)?.domain);
        let domains: HashSet<_> = destination.lanes.iter().filter_map(domain).collect();
        DestinationWaits {
            domain: destination.domain.clone(),
            domains: domains.len() as u64,
            oldest: (oldest != PAUSED).then(|| self.now.saturating_since(oldest)),
            bounces: self.bounce(key, destination, oldest).filter(|_| oldest != PAUSED),
            ready: destination.work.ready as u64,
            connections: destination.work.connections as u64,
            waits: found.waits,
            until: found.until,
        }
    }

    /// What that of a destination's mail waits for which comes first.
    fn first_of(&self, found: &mut Found, key: DestinationKey, destination: &Destination) {
        let lanes = destination.lanes.iter().filter_map(|&lane| self.scheduler.lanes.get(lane));
        let due = lanes.filter_map(|lane| lane.head.next_due).min();
        if destination.work.ready > 0 {
            self.progress(found, key, destination, true);
        } else if destination.work.claiming || due.is_some_and(|due| due <= self.now) {
            self.progress(found, key, destination, false);
        } else if let Some((_, wait)) = self.connections().longest.get(&key) {
            found.add(wait.clone());
        } else {
            found.add(match due {
                Some(HELD_BY_FUSE) => Wait::FuseBlown,
                Some(PAUSED) => Wait::Paused { selector: None },
                Some(until) if self.is_unread(key, until) => Wait::BodyRefused { until },
                Some(until) => Wait::NotDue { until },
                None => self.writing(),
            });
        }
    }

    /// The store refused the content of what is due then.
    fn is_unread(&self, key: DestinationKey, due: Timestamp) -> bool {
        let leads_here = |lane| self.scheduler.lanes.get(lane).is_some_and(|lane| lane.destination == key);
        due > self.now && self.scheduler.unread.lanes(due).any(leads_here)
    }

    /// What mail that may be sent now waits for, in the order in which the pump asks. `at_hand`: it is in the window.
    fn progress(&self, found: &mut Found, key: DestinationKey, destination: &Destination, at_hand: bool) {
        if !at_hand && let Some(wait) = self.before_claim(destination) {
            return found.add(wait);
        }
        let scheduler = self.scheduler;
        if let Some(size) = destination.work.waits.body {
            let (octets, limit, in_line) = scheduler.transit.told(size, scheduler.bounds.transit_octets);
            found.add(Wait::BodyMemory {
                octets: octets as u64,
                limit: limit as u64,
                in_line: in_line as u64,
            });
        }
        destination
            .work
            .waits
            .rate
            .iter()
            .filter_map(|&place| self.line(place))
            .for_each(|wait| found.add(wait));
        if destination.work.waits.settle {
            found.add(self.settling());
        }
        if !found.waits.is_empty() {
            return;
        }
        found.waits = self.before_session(key, destination);
        let is_only_way = destination.work.working.is_empty();
        if is_only_way {
            // Of several lines one is enough.
            found.until = found.waits.iter().map(Wait::until).min().flatten();
        }
        // A session that has nothing to do any more may take it too.
        if !is_only_way || found.waits.is_empty() {
            found.add(Wait::Turn { at_hand: destination.work.claimed as u64 });
        }
    }

    /// What was decided is being written, or will be once the store is better.
    fn writing(&self) -> Wait {
        let scheduler = self.scheduler;
        let until = scheduler.storage_timer.filter(|_| scheduler.writes.is_paused());
        until.map_or(Wait::Writing, |until| Wait::StorePaused { until })
    }

    /// Why due mail lies in the store. `None`: behind what is at hand.
    fn before_claim(&self, destination: &Destination) -> Option<Wait> {
        let scheduler = self.scheduler;
        if destination.is_asking() {
            Some(self.look_up(destination))
        } else if destination.work.claiming {
            (destination.work.ready == 0).then_some(Wait::Claim { under_way: true })
        } else if let Some(until) = scheduler.storage_timer.filter(|_| scheduler.writes.is_paused()) {
            Some(Wait::StorePaused { until })
        } else if destination.work.waits.claim {
            Some(Wait::Claim { under_way: false })
        } else if destination.work.waits.window {
            Some(Wait::WindowFull { limit: scheduler.bounds.window as u64 })
        } else if destination.work.waits.settle && destination.work.ready == 0 {
            Some(self.settling())
        } else {
            (destination.work.claimed == 0).then_some(Wait::Claim { under_way: true })
        }
    }

    /// Why mail at hand has no session: one wait, or the lines it stands in at a time.
    fn before_session(&self, key: DestinationKey, destination: &Destination) -> Vec<Wait> {
        let scheduler = self.scheduler;
        let opening = self.connections().opening.get(&key).map(|(_, connection)| Wait::Connecting {
            host: connection.current.host.clone(),
            peer: connection.current.peer,
            probing: destination.retry.until.is_some(),
        });
        let later = |until: Option<Timestamp>| until.filter(|&until| until > self.now);
        let source = scheduler.queues.get(destination.queue).map(|queue| &queue.source);
        let resting =
            source.and_then(|source| Some((source, later(scheduler.resting.get(source).copied())?)));
        let is_known = destination.route_now(self.now).is_some();
        let allowed = if destination.retry.until.is_some() { 1 } else { destination.cohort.allowed() };
        if matches!(destination.route, RouteState::LookingUp) || destination.work.waits.look_up {
            vec![self.look_up(destination)]
        } else if let Some(opening) = opening.clone().filter(|_| destination.work.working.is_empty()) {
            vec![opening]
        } else if let Some((source, until)) = resting {
            vec![Wait::SourceResting { source: source.clone(), until }]
        } else if !destination.work.waits.connect.is_empty() {
            let lines = destination.work.waits.connect.iter().take(MOST_LINES);
            lines.filter_map(|&place| self.line(place)).collect()
        } else if let Some(opening) = opening {
            vec![opening]
        } else if destination.work.connections >= allowed {
            vec![Wait::Concurrency { open: destination.work.connections as u64, allowed: allowed as u64 }]
        } else if let Some(until) = later(destination.cohort.hold_until) {
            vec![Wait::HoldOff { until, allowed: allowed as u64 }]
        } else if let Some(until) = later(scheduler.resolver_rests).filter(|_| !is_known) {
            vec![Wait::ResolverUnreachable { until }]
        } else {
            Vec::new()
        }
    }

    fn look_up(&self, destination: &Destination) -> Wait {
        let under_way = matches!(destination.route, RouteState::LookingUp);
        Wait::LookUp { domain: destination.domain.clone(), under_way }
    }

    fn settling(&self) -> Wait {
        if self.scheduler.store_room == Room::Scarce {
            return Wait::StoreScarce;
        }
        if self.scheduler.reports_blocked {
            return Wait::ReportsBlocked;
        }
        let (unsettled, limit) = (self.scheduler.writes.unsettled_items(), self.scheduler.most_unsettled());
        Wait::Settling { unsettled: unsettled as u64, limit: limit as u64 }
    }

    /// What one waits for who stands there.
    fn line(&self, place: Place) -> Option<Wait> {
        let limits = &self.scheduler.limits;
        let key = limits.key(place.slot)?;
        let (setting, of) = (self.scheduler.setting(key)?, self.scheduler.limit_of(key)?);
        let ahead = limits.ahead_of(place, MOST_AHEAD);
        Some(match limits.level(place)? {
            Level::Paced { rate, ready_at } => Wait::Rate { setting, of, rate, until: ready_at, ahead },
            Level::Count { used, limit } => {
                let (holders, more_holders) = self.connections().holders(place.slot);
                let (used, limit) = (used as u64, limit as u64);
                Wait::ConnectionLimit { setting, of, used, limit, holders, more_holders, ahead }
            }
        })
    }

    fn is_being_written(&self, item: ItemId) -> bool {
        self.written.get_or_init(|| self.scheduler.writes.items().collect()).contains(&item)
    }

    fn connections(&self) -> &Connections<'a> {
        self.connections.get_or_init(|| Connections::of(self.scheduler))
    }
}
