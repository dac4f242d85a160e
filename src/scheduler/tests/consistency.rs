//! Every counter, recomputed from scratch.

use std::collections::{BTreeMap, BTreeSet};

use crate::scheduler::claims::Purpose;
use crate::scheduler::limits::LimitKey;
use crate::scheduler::session::State;
use crate::scheduler::{DestinationKey, LaneKey, Scheduler};

#[derive(Debug, Default, PartialEq, Eq)]
struct OfDestination {
    connections: usize,
    opening: usize,
    working: usize,
    idle: usize,
    claimed: usize,
    ready: usize,
}

impl Scheduler {
    /// Panics unless all counters and indices agree with what they count.
    pub(crate) fn assert_consistent(&self) {
        let mut of: BTreeMap<DestinationKey, OfDestination> = BTreeMap::new();
        let (mut busy, mut octets, mut listed) = (0, 0, 0);
        let mut held: BTreeMap<_, usize> = BTreeMap::new();
        for (id, connection) in self.connections.iter() {
            let of = of.entry(connection.destination).or_default();
            of.connections += 1;
            connection.holds.iter().for_each(|&slot| *held.entry(slot).or_default() += 1);
            listed += usize::from(connection.listed);
            match &connection.state {
                State::Opening => of.opening += 1,
                State::Idle { .. } => {
                    (of.working, of.idle) = (of.working + 1, of.idle + 1);
                    assert!(connection.listed, "{id:?} is idle and not listed");
                }
                State::Busy(transaction) => {
                    of.working += 1;
                    busy += 1;
                    octets += transaction.octets;
                    let item = self.window.get(transaction.item).expect("what is sent is in the window");
                    assert!(item.busy && !item.ready);
                }
                State::Between => panic!("undecided"),
                State::Closing => assert!(!connection.listed),
            }
        }
        assert_eq!((self.open, self.busy), (self.connections.len(), busy), "open, busy");
        // Whether a limit is kept is checked where it is taken: one may be lowered later.
        for (key, slot, used, idle) in self.limits.all() {
            assert_eq!(used, held.remove(&slot).unwrap_or(0), "{key:?}");
            assert!(idle <= used, "{key:?}: {idle} idle of {used}");
        }
        assert!(held.is_empty(), "held of no limit");
        assert!(
            self.policy_doubts.keys().all(|&key| self.domains.get(key).is_some()),
            "doubts of domains gone"
        );
        assert_eq!(self.idle_at.values().map(|idle| idle.len()).sum::<usize>(), listed, "listed by address");
        assert_eq!(self.transit.octets(), octets, "octets in transit");

        let mut reserved = 0;
        let mut deadlines: BTreeMap<LaneKey, BTreeSet<_>> = BTreeMap::new();
        let mut in_transaction: BTreeMap<LaneKey, usize> = BTreeMap::new();
        let mut in_window: BTreeMap<LaneKey, usize> = BTreeMap::new();
        for claim in self.claims.values() {
            reserved += claim.promised();
            if let Purpose::Deliver(key) = claim.purpose {
                of.entry(key).or_default().claimed += claim.promised();
            }
        }
        for (lane, promised) in self.writes.promised() {
            let key = self.lanes.get(lane).expect("a lane that mail is being stored in").destination;
            reserved += promised;
            *in_window.entry(lane).or_default() += promised;
            of.entry(key).or_default().claimed += promised;
        }
        assert_eq!(self.window.reserved, reserved, "places promised");
        for item in self.window.all() {
            let lane = self.lanes.get(item.lane).expect("the lane of an item");
            let of = of.entry(lane.destination).or_default();
            of.claimed += 1;
            of.ready += usize::from(item.ready);
            *in_window.entry(item.lane).or_default() += 1;
            if item.busy {
                *in_transaction.entry(item.lane).or_default() += 1;
            } else {
                deadlines.entry(item.lane).or_default().insert((item.deadline, item.item.id));
            }
        }
        let pending = self.writes.pending();
        for (key, state) in self.lanes.iter() {
            let lane = &state.key;
            assert_eq!(self.lanes.find(lane), Some(key), "{lane}");
            let of_lane: BTreeSet<_> = state.work.deadlines.iter().copied().collect();
            assert_eq!(of_lane, deadlines.remove(&key).unwrap_or_default(), "deadlines of {lane}");
            let expected =
                pending.get(&key).copied().unwrap_or(0) + in_transaction.get(&key).copied().unwrap_or(0);
            assert_eq!(state.work.pending, expected, "pending of {lane}");
            assert_eq!(
                state.work.claimed,
                in_window.get(&key).copied().unwrap_or(0),
                "in the window of {lane}"
            );
            let domain = self.domains.get(state.domain).expect("the domain of a lane");
            let destination = self.destinations.get(state.destination).expect("the destination of a lane");
            assert_eq!(state.queue, destination.queue, "queue of {lane}");
            assert!(
                domain.lanes.iter().any(|&lane| lane == key) && domain.destination == state.destination,
                "{lane}"
            );
            let earliest = state.work.deadlines.first().map(|&(deadline, _)| deadline);
            if let Some(earliest) = earliest {
                let has_timer = state.timer.is_some_and(|at| at <= earliest);
                assert!(has_timer, "{lane} has a deadline and no timer for it");
            }
        }
        for (key, queue) in self.queues.iter() {
            assert_eq!(self.queues.find((&queue.name, &queue.source)), Some(key), "{}", queue.name);
        }
        for (key, state) in self.destinations.iter() {
            assert_eq!(self.destinations.find((&state.site, state.queue)), Some(key), "{:?}", state.site);
            let domain = format!("{:?}", state.site);
            let got = OfDestination {
                connections: state.work.connections,
                opening: state.work.opening,
                working: state.work.working.len(),
                idle: state.work.idle.len(),
                claimed: state.work.claimed,
                ready: state.work.ready,
            };
            assert_eq!(got, of.remove(&key).unwrap_or_default(), "{domain}");
            let listed: usize = state
                .lanes
                .iter()
                .filter_map(|&lane| self.lanes.get(lane))
                .map(|l| l.work.fresh.len() + l.work.again.len())
                .sum();
            assert_eq!(
                listed + state.work.doubts.suspects.len(),
                state.work.ready,
                "listed in lanes of {domain}"
            );
            // Mail that moved here, from a rollup or a source that is disabled, comes with its places.
            let of_domains: BTreeSet<_> =
                state.lanes.iter().filter_map(|&lane| Some(self.lanes.get(lane)?.domain)).collect();
            let is_alone = !state.site.is_shared() && of_domains.len() == 1;
            assert!(
                !is_alone || state.work.claimed <= self.bounds.window_per_destination,
                "window of {domain}"
            );
        }
        assert!(of.is_empty(), "of destinations that are gone: {of:?}");
    }

    /// Nothing is left of anything.
    pub(crate) fn assert_empty(&self) {
        self.assert_consistent();
        let lens = (self.lanes.len(), self.destinations.len(), self.queues.len(), self.connections.len());
        assert_eq!(lens, (0, 0, 0, 0), "lanes, destinations, queues, connections");
        assert_eq!((self.domains.len(), self.purges.len()), (0, 0));
        assert_eq!((self.window.len(), self.window.held_octets(), self.looking_up), (0, 0, 0));
        assert_eq!(self.claims.len(), 0);
        assert!(self.is_idle());
        let slots: Vec<_> = self.limits.all().map(|(key, ..)| key).collect();
        assert_eq!(slots, [&LimitKey::Total], "limits that nothing is held of");
        assert_eq!(self.poll_timeout(), None, "a timer is left");
    }
}
