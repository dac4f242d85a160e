//! A destination: one set of hosts, its retry clock, and the mail that goes there.

use std::sync::Arc;
use std::time::Duration;

use super::directory::Named;
use super::few::{FewDeque, FewSet};
use super::limits::{Place, SlotKey};
use super::no_mx::Missing;
use super::placement::Site;
use super::rare::{AtRest, Rare};
use super::session::Attempt;
use super::{ConnectionId, Idle, LaneKey, QueueKey};
use crate::clock::Timestamp;
use crate::dns::{Freshness, Route};
use crate::event::Diagnosis;
use crate::message::{Domain, MessageId, Priority};
use crate::storage::ItemId;

pub(crate) struct Destination {
    pub(super) queue: QueueKey,
    /// The queue does not have the domain's name.
    pub(super) is_rolled_up: bool,
    pub(super) site: Site,
    /// The domain whose home it is; of a shared one, the first that came.
    pub(super) domain: Domain,
    pub(super) route: RouteState,
    pub(super) retry: RetryClock,
    /// The hosts of its last route, if an MTA-STS policy demands TLS there and bars others.
    pub(super) enforced: Option<Box<str>>,
    /// Its last look-up said that none of its hosts may be used.
    pub(super) is_barred: bool,
    pub(super) cohort: Cohort,
    /// DNS or the hosts said that no mail is taken: what is due bounces with this until then.
    pub(super) refusal: Option<Box<Refusal>>,
    /// DNS does not have an MX, a host or the domain, and mail bounces for it at an age.
    pub(super) missing: Option<Box<Missing>>,
    /// Looked up past any cache, DNS did not answer: not again before this.
    pub(super) no_fresh_before: Option<Timestamp>,
    /// Of many domains, and restored: kept until then though none of them is known to lie here.
    pub(super) kept_until: Option<Timestamp>,
    pub(super) lanes: FewSet<LaneKey>,
    pub(super) timer: Option<Timestamp>,
    pub(super) work: Rare<Work>,
    pub(super) dirty: bool,
    /// A state row of it is in the store.
    pub(super) stored_state: bool,
}

/// What a destination has to do, and what does it.
pub(crate) struct Work {
    /// It is to be looked up past any cache, and at once.
    pub(super) wants_fresh: bool,
    /// How it is being looked up.
    pub(super) asked: Freshness,
    /// The policy was replaced meanwhile: what is being found was asked for by the one before.
    pub(super) outdated: bool,
    pub(super) ring: Ring,
    pub(super) doubts: Rare<Doubts>,
    /// An attempt failed and others are still opening: they decide whether the destination works.
    pub(super) in_doubt: bool,
    /// Lanes with due mail in the store.
    pub(super) hungry: FewDeque<LaneKey>,
    /// Lanes with mail in the store that is too old.
    pub(super) expiring: FewDeque<LaneKey>,
    /// A claim is under way.
    pub(super) claiming: bool,
    /// An attempt that failed somewhere and waits for a permit to go on.
    pub(super) suspended: Option<Box<Attempt>>,
    /// Recipients it may offer, taken from its queue's rates in advance.
    pub(super) grant: Option<Box<Grant>>,
    pub(super) idle: Idle,
    /// Connections that are open, their EHLO done, not closing.
    pub(super) working: FewSet<ConnectionId>,
    pub(super) opening: usize,
    /// The one that was opened last for mail that some hosts can not take.
    pub(super) opening_for_seekers: Option<ConnectionId>,
    /// Connections that hold a permit, closing ones included.
    pub(super) connections: usize,
    /// Items of it in the window, and places promised to messages being stored and to its claim.
    pub(super) claimed: usize,
    /// Items of it that may be tried now.
    pub(super) ready: usize,
    pub(super) waits: Waits,
}

impl AtRest for Work {
    const NEW: Self = Self {
        wants_fresh: false,
        asked: Freshness::Cached,
        outdated: false,
        ring: Ring { levels: [const { Level { lanes: FewDeque::new(), credit: 0 } }; 3] },
        doubts: Rare::new(),
        in_doubt: false,
        hungry: FewDeque::new(),
        expiring: FewDeque::new(),
        claiming: false,
        suspended: None,
        grant: None,
        idle: Idle::new(),
        working: FewSet::new(),
        opening: 0,
        opening_for_seekers: None,
        connections: 0,
        claimed: 0,
        ready: 0,
        waits: Waits {
            connect: Vec::new(),
            turn: None,
            rate: Vec::new(),
            look_up: false,
            body: None,
            settle: false,
            claim: false,
            window: false,
        },
    };
    const AT_REST: &'static Self = &Self::NEW;

    fn is_at_rest(&self) -> bool {
        let Self {
            wants_fresh,
            asked,
            outdated,
            ring,
            doubts,
            in_doubt,
            hungry,
            expiring,
            claiming,
            suspended,
            grant,
            idle,
            working,
            opening,
            opening_for_seekers: _,
            connections,
            claimed,
            ready,
            waits,
        } = self;
        (*opening, *connections, *claimed, *ready) == (0, 0, 0, 0)
            && !(*wants_fresh || *in_doubt || *claiming || *outdated || *asked == Freshness::Fresh)
            && ring.is_empty()
            && [hungry.is_empty(), expiring.is_empty(), idle.is_empty(), working.is_empty()] == [true; 4]
            && (doubts.is_at_rest() && suspended.is_none() && grant.is_none())
            && waits.is_for_nothing()
    }
}

/// What a destination has met of late that most never meet.
pub(crate) struct Doubts {
    /// The interval that a reply rule put in place of the next one.
    pub(super) next_interval: Option<(Duration, Arc<str>)>,
    /// Items to try when the ring is empty: a session ended over each before anything was charged. And items that some hosts can
    /// not take (`unfit.rs`): they go first over a session with another.
    pub(super) suspects: FewDeque<ItemId>,
    /// The messages of those met of late: after a failed step another message goes first.
    pub(super) suspected: FewDeque<MessageId>,
    /// Hosts passed over by a reply rule until then.
    pub(super) skipped: Vec<(Arc<str>, Timestamp)>,
}

impl AtRest for Doubts {
    const NEW: Self = Self {
        next_interval: None,
        suspects: FewDeque::new(),
        suspected: FewDeque::new(),
        skipped: Vec::new(),
    };
    const AT_REST: &'static Self = &Self::NEW;

    fn is_at_rest(&self) -> bool {
        let Self { next_interval, suspects, suspected, skipped } = self;
        next_interval.is_none() && suspects.is_empty() && suspected.is_empty() && skipped.is_empty()
    }
}

/// Recipients that may be offered.
pub(super) struct Grant {
    /// What they are charged to, and when that was paid off right after.
    pub(super) slots: Vec<(SlotKey, u128)>,
    pub(super) units: u32,
    /// The place it was called from for them: who comes late to use them gets it back.
    pub(super) place: Option<Place>,
}

/// What it stands in line for.
pub(super) struct Waits {
    /// For permits of a connection.
    pub(super) connect: Vec<Place>,
    /// The place it was called from last: it keeps that while a route is found, or outcomes become durable.
    pub(super) turn: Option<Place>,
    /// For a rate to allow recipients.
    pub(super) rate: Vec<Place>,
    pub(super) look_up: bool,
    pub(super) body: Option<super::transit::Size>,
    pub(super) settle: bool,
    pub(super) claim: bool,
    pub(super) window: bool,
}

impl Waits {
    fn is_for_nothing(&self) -> bool {
        let Self { connect, turn, rate, look_up, body, settle, claim, window } = self;
        connect.is_empty()
            && turn.is_none()
            && rate.is_empty()
            && !(*look_up || body.is_some() || *settle || *claim || *window)
    }
}

/// Why what is due bounces.
#[derive(Clone)]
pub(super) struct Refusal {
    pub(super) diagnosis: Diagnosis,
    /// Believed until then.
    pub(super) until: Timestamp,
    /// The bounces count for the queue's fuse.
    pub(super) counts: bool,
}

impl Refusal {
    /// By a reply rule.
    pub(super) fn for_a_while(now: Timestamp, diagnosis: Diagnosis) -> Self {
        Self { diagnosis, until: now + REFUSAL_HOLDS, counts: true }
    }

    /// By the hosts themselves.
    pub(super) fn by_hosts(now: Timestamp, diagnosis: Diagnosis) -> Self {
        Self { diagnosis, until: now + REFUSAL_HOLDS, counts: false }
    }
}

/// How long the word that no mail is taken is believed before it is asked for again.
const REFUSAL_HOLDS: Duration = Duration::from_secs(10);

pub(super) enum RouteState {
    Unknown,
    /// Being looked up. Open sessions go on meanwhile.
    LookingUp,
    Known {
        route: Arc<Route>,
        until: Timestamp,
    },
}

/// The destination's retry clock (CONTROLS §2).
#[derive(Default)]
pub(super) struct RetryClock {
    /// Failed steps since the last message was delivered.
    pub(super) step: u32,
    /// In retry mode: no connection before this; then one, until an EHLO succeeds.
    pub(super) until: Option<Timestamp>,
    /// What the last step met.
    pub(super) last: Option<Box<Diagnosis>>,
}

/// Concurrency that adapts: grows by one for each full round of successes, shrinks by one for each failure to
/// connect, and holds off new connections after one.
pub(super) struct Cohort {
    allowed: u32,
    successes: u32,
    hold_off: Duration,
    pub(super) hold_until: Option<Timestamp>,
}

/// A new destination starts with so many connections.
const INITIAL_CONCURRENCY: u32 = 5;
/// The first wait after a failed connection while others work; doubles up to the limit.
const FIRST_HOLD_OFF: Duration = Duration::from_secs(30);
const LONGEST_HOLD_OFF: Duration = Duration::from_secs(600);

impl Default for Cohort {
    fn default() -> Self {
        Self { allowed: INITIAL_CONCURRENCY, successes: 0, hold_off: FIRST_HOLD_OFF, hold_until: None }
    }
}

impl Cohort {
    pub(super) fn allowed(&self) -> usize {
        self.allowed as usize
    }

    pub(super) fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= self.allowed {
            self.successes = 0;
            self.allowed = self.allowed.saturating_add(1);
        }
        self.hold_off = FIRST_HOLD_OFF;
    }

    /// A connection failed while others work. Several that were opened together hold off once, and for no longer
    /// than a failed step would: `retry`.
    pub(super) fn failed(&mut self, now: Timestamp, retry: Duration) {
        self.successes = 0;
        self.allowed = self.allowed.saturating_sub(1).max(1);
        if self.hold_until.is_some_and(|until| until > now) {
            return;
        }
        self.hold_until = Some(now + self.hold_off.min(retry));
        self.hold_off = self.hold_off.saturating_mul(2).min(LONGEST_HOLD_OFF);
    }

    /// The destination was given up for a while: start small again.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Lanes with ready mail, drawn 16 : 4 : 1 by priority and in turns within one.
///
/// Smooth weighted round robin: of the priorities that have mail, each gains its weight and the one drawn loses
/// the sum, so that two of them keep their ratio when the third has none.
#[derive(Default)]
pub(super) struct Ring {
    levels: [Level; 3],
}

#[derive(Default)]
struct Level {
    /// With the stamp each had when it came; another stamp, and it has left.
    lanes: FewDeque<(LaneKey, u32)>,
    credit: i32,
}

const WEIGHTS: [i32; 3] = [16, 4, 1];

impl Ring {
    pub(super) fn push(&mut self, priority: Priority, lane: LaneKey, stamp: u32) {
        let [high, normal, low] = &mut self.levels;
        let level = match priority {
            Priority::High => high,
            Priority::Normal => normal,
            Priority::Low => low,
        };
        level.lanes.push_back((lane, stamp));
    }

    fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.lanes.is_empty())
    }

    /// The lane whose turn it is, taken out.
    pub(super) fn pop(&mut self) -> Option<(LaneKey, u32)> {
        let mut sum = 0;
        for (level, weight) in self.levels.iter_mut().zip(WEIGHTS) {
            if level.lanes.is_empty() {
                // What was saved up while there was mail does not count later.
                level.credit = 0;
            } else {
                level.credit += weight;
                sum += weight;
            }
        }
        let with_mail = self.levels.iter_mut().filter(|level| !level.lanes.is_empty());
        // Of equals the last: the more urgent one goes first.
        let drawn = with_mail.rev().max_by_key(|level| level.credit)?;
        drawn.credit -= sum;
        drawn.lanes.pop_front()
    }
}

/// Messages remembered because a session ended over them.
const MOST_SUSPECTED: usize = 16;

impl Named for Destination {
    type Name<'a> = (&'a Site, QueueKey);

    fn name(&self) -> Self::Name<'_> {
        (&self.site, self.queue)
    }
}

impl Destination {
    pub(super) fn new(queue: QueueKey, site: Site, domain: Domain) -> Self {
        Self {
            queue,
            is_rolled_up: false,
            site,
            domain,
            route: RouteState::Unknown,
            retry: RetryClock::default(),
            enforced: None,
            is_barred: false,
            cohort: Cohort::default(),
            refusal: None,
            missing: None,
            no_fresh_before: None,
            kept_until: None,
            lanes: FewSet::default(),
            timer: None,
            work: Rare::default(),
            dirty: false,
            stored_state: false,
        }
    }

    /// There is something to send, claim, ask or give back, or mail to be refused.
    pub(super) fn has_work(&self) -> bool {
        let work = &*self.work;
        work.ready > 0
            || !work.hungry.is_empty()
            || !work.expiring.is_empty()
            || work.wants_fresh
            || work.grant.is_some()
            || self.refusal.is_some()
    }

    /// Something stands apart from the other mail. Mostly nothing does.
    pub(super) fn has_suspects(&self) -> bool {
        !self.work.doubts.suspects.is_empty()
    }

    /// In retry mode, and its time has not come.
    pub(super) fn is_held(&self, now: Timestamp) -> bool {
        self.retry.until.is_some_and(|until| until > now)
    }

    /// A reply rule passes over this host.
    pub(super) fn skips(&self, now: Timestamp, host: &str) -> bool {
        self.work.doubts.skipped.iter().any(|(skipped, until)| **skipped == *host && *until > now)
    }

    /// A session is open. An EHLO that succeeds ends retry mode; the step stays until a message is taken.
    pub(super) fn session_opened(&mut self, id: ConnectionId) {
        self.work.working.insert(id);
        if !self.is_barred {
            self.retry.until = None;
        }
        self.work.in_doubt = false;
        self.work.suspended = None;
        self.work.doubts.change(|doubts| doubts.next_interval = None);
    }

    /// DNS said just now, past any cache, what it does not have.
    pub(super) fn is_confirmed_missing(&self, now: Timestamp) -> bool {
        let confirmed = self.missing.as_ref().and_then(|missing| missing.confirmed_until);
        confirmed.is_some_and(|until| until > now)
    }

    /// DNS is being asked past any cache, or will be at once.
    pub(super) fn is_asking(&self) -> bool {
        self.work.wants_fresh
            || self.work.asked == Freshness::Fresh && matches!(self.route, RouteState::LookingUp)
    }

    /// A session ended over this message before anything was charged.
    pub(super) fn suspect(&mut self, message: MessageId) {
        let suspected = &mut self.work.doubts.suspected;
        if suspected.contains(&message) {
            return;
        }
        if suspected.len() == MOST_SUSPECTED {
            suspected.pop_front();
        }
        suspected.push_back(message);
    }

    /// Drops all that holds for moments only.
    pub(super) fn forget_moments(&mut self) {
        self.cohort.hold_until = None;
        self.refusal = None;
        self.no_fresh_before = None;
        if let Some(missing) = &mut self.missing {
            missing.confirmed_until = None;
        }
        if !self.work.doubts.skipped.is_empty() {
            self.work.doubts.change(|doubts| doubts.skipped.clear());
        }
        if matches!(self.route, RouteState::Known { .. }) {
            self.route = RouteState::Unknown;
        }
    }

    pub(super) fn known_route(&self) -> Option<&Arc<Route>> {
        match &self.route {
            RouteState::Known { route, .. } => Some(route),
            _ => None,
        }
    }

    /// Of a million destinations most rest, and each would keep a route that is of no use any more.
    pub(super) fn forget_old_route(&mut self, now: Timestamp) {
        let rests = self.work.connections == 0 && self.work.ready == 0 && self.work.waits.connect.is_empty();
        if rests && self.known_route().is_some() && self.route_now(now).is_none() {
            self.route = RouteState::Unknown;
        }
    }

    /// The route if it still holds.
    pub(super) fn route_now(&self, now: Timestamp) -> Option<&Arc<Route>> {
        match &self.route {
            RouteState::Known { route, until } if *until > now => Some(route),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::arena::Arena;

    #[test]
    fn priorities_are_drawn_16_to_4_to_1() {
        assert_eq!(drawn(&[Priority::High, Priority::Normal, Priority::Low], 210), [160, 40, 10]);
        assert_eq!(drawn(&[Priority::Normal, Priority::Low], 100), [80, 20]);
        assert_eq!(drawn(&[Priority::High, Priority::Low], 170), [160, 10]);
        assert_eq!(drawn(&[Priority::Low], 7), [7]);
    }

    /// How often lanes of these priorities are drawn in `turns`.
    fn drawn(priorities: &[Priority], turns: usize) -> Vec<usize> {
        let mut arena = Arena::default();
        let lanes: Vec<_> = priorities
            .iter()
            .map(|&priority| {
                let lane = crate::storage::Lane {
                    domain: Domain::parse("example.org").unwrap(),
                    source: "default".into(),
                    priority,
                };
                let queue = Arena::default().insert(crate::scheduler::queue::Queue::for_tests());
                let site = Site::Fixed;
                let destination = Arena::default().insert(Destination::new(queue, site, lane.domain.clone()));
                let domain = Arena::default().insert(crate::scheduler::placement::DomainState::for_tests(
                    lane.domain.clone(),
                    destination,
                ));
                (
                    priority,
                    arena.insert(crate::scheduler::lane::LaneState::new(lane, domain, destination, queue)),
                )
            })
            .collect();
        let mut ring = Ring::default();
        lanes.iter().for_each(|&(priority, lane)| ring.push(priority, lane, 0));
        let mut drawn = vec![0; priorities.len()];
        for _ in 0..turns {
            let (lane, _) = ring.pop().unwrap();
            let place = lanes.iter().position(|&(_, l)| l == lane).unwrap();
            drawn[place] += 1;
            ring.push(lanes[place].0, lane, 0);
        }
        drawn
    }

    #[test]
    fn concurrency_grows_by_rounds_and_shrinks_by_failures() {
        let now = Timestamp::from_unix_seconds(0);
        let mut cohort = Cohort::default();
        (0..5).for_each(|_| cohort.succeeded());
        assert_eq!(cohort.allowed, 6);
        cohort.failed(now, 2 * LONGEST_HOLD_OFF);
        assert_eq!((cohort.allowed, cohort.hold_until), (5, Some(now + FIRST_HOLD_OFF)));
        cohort.failed(now, 2 * LONGEST_HOLD_OFF);
        assert_eq!(cohort.hold_until, Some(now + FIRST_HOLD_OFF), "opened before the hold-off: one failure");
        let mut later = now + FIRST_HOLD_OFF;
        cohort.failed(later, 2 * LONGEST_HOLD_OFF);
        assert_eq!(cohort.hold_until, Some(later + 2 * FIRST_HOLD_OFF));
        for _ in 0..20 {
            later = later + LONGEST_HOLD_OFF;
            cohort.failed(later, 2 * LONGEST_HOLD_OFF);
        }
        assert_eq!((cohort.allowed, cohort.hold_until), (1, Some(later + LONGEST_HOLD_OFF)));
    }
}
