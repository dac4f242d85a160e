//! Random worlds: whatever happens, limits hold, and every recipient gets exactly one final event.

use std::collections::BTreeMap;
use std::time::Duration;

use super::harness::*;
use super::worlds::{has_controls, policy_of, shared_route};
use crate::event::DeliveryEvent;
use crate::message::{Message, MessageId, Priority};
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event};
use crate::storage::StorageErrorKind;
use crate::transport::{EndCause, RecipientReport, SessionEnd, TransactionReport};

const SEEDS: u64 = 200;
const STEPS: usize = 200;
struct World {
    rig: Rig,
    random: fastrand::Rng,
    next: usize,
    expected: BTreeMap<MessageId, usize>,
    controls: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let bounds = Bounds {
            window: random.usize(4..60),
            window_per_destination: random.usize(2..20),
            held_octets: random.usize(0..200),
            transit_octets: if random.bool() { random.usize(1..100) } else { random.usize(1..20_000) },
            unsettled: random.usize(1..30),
            look_ups: random.usize(1..3),
            claims: 4,
            submissions: 10,
            submission_octets: 10_000,
        };
        let mut rig = Rig::with_policy(policy_of(seed), bounds);
        rig.check_every = if seed < 20 { 1 } else { 15 };
        Self { rig, random, next: 0, expected: BTreeMap::new(), controls: has_controls(seed) }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.u32(..100) < percent
    }

    fn step(&mut self) {
        match self.random.u32(..100) {
            0..20 => self.submit(),
            20..24 => self.cancel(),
            24..34 => self.store(),
            34..50 => self.connect(),
            50..72 => self.transact(),
            72..76 => self.end_session(),
            76..80 => self.close(),
            80..84 => self.resolve(),
            84..86 => {
                self.rig.tell(Event::ReportsBlocked(true));
            }
            86..90 => {
                self.rig.tell(Event::ReportsBlocked(false));
            }
            90..94 => self.by_hand(),
            _ => {
                let micros = [1, 1_000_000, 40_000_000, 400_000_000, 1_500_000_000];
                let most = micros[self.random.usize(..micros.len())];
                let time = Duration::from_micros(self.random.u64(..=most));
                self.rig.pass(time);
            }
        }
    }

    fn by_hand(&mut self) {
        let flags = self.random.u8(..);
        let by_hand = &mut self.rig.by_hand;
        let bit = |n: u8| flags & (1 << n) != 0;
        by_hand.insert = bit(0);
        by_hand.commit = bit(1);
        by_hand.claim = bit(2);
        by_hand.resolve = bit(3);
        by_hand.close = bit(4);
        by_hand.list = bit(5);
    }

    fn submit(&mut self) {
        if !self.rig.scheduler.takes_submissions() {
            return;
        }
        let count = self.random.usize(1..8);
        let to: Vec<_> = (0..count)
            .map(|_| {
                self.next += 1;
                format!("r{}@d{}.example", self.next, self.random.u32(..4))
            })
            .collect();
        // Some ids come twice: the second is a duplicate.
        let number = self.random.u128(..300) << 48;
        let id = MessageId::generate(start(), number);
        let mut message = Message::new("", to, vec![b'x'; self.random.usize(..60)]).unwrap().with_id(id);
        message =
            message.with_priority([Priority::High, Priority::Normal, Priority::Low][self.random.usize(..3)]);
        if self.chance(15) {
            message = message.hold_until(self.rig.now + Duration::from_secs(self.random.u64(..3_000)));
        }
        if self.chance(15) {
            message = message.expires_after(Duration::from_secs(self.random.u64(..3_000)));
        }
        if self.controls {
            message = message.with_source(["a", "b", "ab", "ab"][self.random.usize(..4)]);
        }
        // A duplicate under way is answered like the first; the first is what counts.
        let recipients = message.recipients().len();
        self.expected.entry(id).or_insert(recipients);
        self.rig.submit_message(message);
    }

    fn cancel(&mut self) {
        let ids: Vec<_> = self.expected.keys().copied().collect();
        if !ids.is_empty() {
            let id = ids[self.random.usize(..ids.len())];
            self.rig.cancel(id);
        }
    }

    fn store(&mut self) {
        let kind = if self.random.bool() { StorageErrorKind::Full } else { StorageErrorKind::Temporary };
        let fails = self.chance(20);
        let rig = &mut self.rig;
        if !rig.commits.is_empty() {
            if fails {
                rig.fail_commit(kind)
            } else {
                rig.commit()
            };
        }
        if !rig.inserts.is_empty() {
            rig.insert();
        }
        if !rig.claims.is_empty() {
            if fails {
                rig.fail_claim(kind)
            } else {
                rig.claim()
            };
        }
        if !rig.lists.is_empty() {
            rig.list();
        }
    }

    fn resolve(&mut self) {
        let name = format!("d{}.example", self.random.u32(..4));
        let kinds =
            [SERVFAIL, crate::dns::RouteFailureKind::NxDomain, crate::dns::RouteFailureKind::NoAddress];
        let result = match self.random.usize(..6) {
            n @ 0..3 => no_route(kinds[n]),
            _ if self.controls => Ok(shared_route(&mut self.random, &name)),
            _ => Ok(route(&[&[("mx1", &["192.0.2.1:25", "192.0.2.2:25"])], &[("mx2", &["192.0.2.3:25"])]])),
        };
        self.rig.routes.insert(name, result);
        if !self.rig.resolves.is_empty() {
            self.rig.resolve();
        }
    }

    fn close(&mut self) {
        if !self.rig.closes.is_empty() {
            self.rig.close();
        }
    }

    fn cause(&mut self) -> EndCause {
        match self.random.u32(..8) {
            0 => EndCause::Local("x".to_owned()),
            1 => EndCause::Timeout(MINUTE),
            2 => EndCause::Reply(reply("421 4.3.2 bye")),
            3 => EndCause::Reply(reply("521 no")),
            4 => EndCause::Protocol("x".to_owned()),
            5 => EndCause::Broken("x".to_owned()),
            _ => EndCause::Closed,
        }
    }

    fn connect(&mut self) {
        if self.rig.connects.is_empty() {
            return;
        }
        let turn = self.random.usize(..self.rig.connects.len());
        self.rig.connects.rotate_left(turn);
        if self.chance(65) {
            self.rig.connect();
        } else {
            let cause = self.cause();
            self.rig.fail_connect(cause);
        }
    }

    fn transact(&mut self) {
        if self.rig.transacts.is_empty() {
            return;
        }
        let turn = self.random.usize(..self.rig.transacts.len());
        self.rig.transacts.rotate_left(turn);
        if self.chance(4) {
            let (connection, _) = self.rig.transacts.pop_front().unwrap();
            let kinds = [StorageErrorKind::NotFound, StorageErrorKind::Temporary];
            let error = crate::storage::StorageError::new(kinds[self.random.usize(..2)], "x");
            self.rig.tell(Event::BodyFailed { connection, error });
            return;
        }
        if self.chance(4) {
            let (connection, _) = self.rig.transacts.pop_front().unwrap();
            self.rig.tell(Event::AgainstPolicy { connection });
            return;
        }
        let cause = self.cause();
        let kind = self.random.u32(..10);
        let replies: Vec<_> = (0..8).map(|_| self.random.usize(..5)).collect();
        let more = if self.controls { "452 4.2.2 mailbox full" } else { "452 4.5.3 too many" };
        let texts = ["250 ok", "250 ok", "450 4.2.0 later", "550 5.1.1 no", more];
        self.rig.transact(|recipients| match kind {
            0 => sent_away(recipients),
            1 => cut(cause)(recipients),
            2 => TransactionReport {
                dot_sent: true,
                dot: None,
                end: Some(SessionEnd { stage: Stage::Dot, cause }),
                ..accepted(recipients)
            },
            3 => rcpts(vec!["250 ok"; recipients], "451 later"),
            4 => TransactionReport {
                recipients: vec![RecipientReport::None; recipients],
                ..TransactionReport::default()
            },
            5 => all_rcpts("450 4.2.0 later")(recipients),
            _ => rcpts(replies.iter().cycle().take(recipients).map(|&n| texts[n]).collect(), "250 ok"),
        });
    }

    /// A session ends by itself: idle, or under an order.
    fn end_session(&mut self) {
        let cause = self.cause();
        let connection = if !self.rig.transacts.is_empty() && self.random.bool() {
            self.rig.transacts.pop_front().map(|(connection, _)| connection)
        } else {
            self.rig.scheduler.idle_at.values().flatten().min().map(|&(_, connection)| connection)
        };
        if let Some(connection) = connection {
            self.rig.tell(Event::SessionEnded { connection, end: SessionEnd { stage: Stage::Mail, cause } });
        }
    }

    /// All is well from now on: everything goes out.
    fn heal(&mut self) {
        self.rig.routes.clear();
        self.rig.by_hand = ByHand::default();
        self.rig.tell(Event::ReportsBlocked(false));
        for _ in 0..150 {
            self.rig.carry_out();
            self.rig.accept_all();
            if self.rig.scheduler.lanes.len() + self.rig.scheduler.destinations.len() == 0 {
                // What queues and rates remember lapses.
                self.rig.pass(2 * HOUR);
                return;
            }
            self.rig.pass(4 * MINUTE);
        }
    }

    fn check_outcomes(&self, seed: u64) {
        let mut finals: BTreeMap<(MessageId, String), usize> = BTreeMap::new();
        for event in &self.rig.events {
            let record = match event {
                DeliveryEvent::Delivered(e) => &e.record,
                DeliveryEvent::Bounced(e) => &e.record,
                DeliveryEvent::Cancelled(e) => &e.record,
                _ => continue,
            };
            *finals.entry((record.id, record.recipient.to_string())).or_default() += 1;
        }
        assert!(finals.values().all(|&count| count == 1), "seed {seed}: a recipient ended twice");
        let received = self.rig.events.iter().filter_map(|event| match event {
            DeliveryEvent::Received(e) => Some((e.id, e.recipients as usize)),
            _ => None,
        });
        for (id, recipients) in received {
            let ended = finals.keys().filter(|(of, _)| *of == id).count();
            assert_eq!(ended, recipients, "seed {seed}: message {id}");
        }
    }
}

fn run(seed: u64, keeps_commands: bool) -> World {
    run_with(seed, keeps_commands, |_| {})
}

fn run_with(seed: u64, keeps_commands: bool, mut after_step: impl FnMut(&World)) -> World {
    let mut world = World::new(seed);
    world.rig.keeps_commands = keeps_commands;
    for _ in 0..STEPS {
        world.step();
        after_step(&world);
    }
    if seed.is_multiple_of(4) {
        // Ends with a shutdown, and goes on after it.
        world.rig.tell(Event::Shutdown);
        world.rig.by_hand = ByHand::default();
        for _ in 0..10 {
            world.rig.carry_out();
            world.rig.accept_all();
            world.rig.pass(MINUTE);
        }
        assert!(world.rig.drained, "seed {seed}: not drained");
        assert_eq!(world.rig.scheduler.open_connections(), 0);
        assert_eq!(world.rig.scheduler.window.len(), 0, "seed {seed}: leases are given back");
        let events = std::mem::take(&mut world.rig.events);
        world.rig = world.rig.restarted(policy_of(seed));
        world.rig.check_every = 15;
        world.rig.events.splice(0..0, events);
    }
    world.heal();
    world.check_outcomes(seed);
    world
}

#[test]
fn every_recipient_ends_once_and_nothing_is_left() {
    for seed in 0..SEEDS {
        let outcome = std::panic::catch_unwind(|| run(seed, false));
        let world = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        if world.rig.scheduler.lanes.len() > 0 {
            let (lines, left) = (world.rig.timeline(), world.rig.left());
            panic!("seed {seed}: mail is left: {:#?} {left:#?}", &lines[lines.len().saturating_sub(5)..]);
        }
        world.rig.scheduler.assert_empty();
    }
}

#[test]
fn the_same_seed_and_events_give_the_same_commands() {
    for seed in [1, 2, 3, 5, 6, 7, 9] {
        let commands = run(seed, true).rig.commands;
        assert!(commands.len() > 50, "{}", commands.len());
        assert_eq!(commands, run(seed, true).rig.commands);
    }
}

/// What everything waits for is asked after each step: there is always an answer, and no attempt comes before it said.
#[test]
fn asking_why_changes_nothing_and_is_answered_right() {
    for seed in 0..24 {
        let (mut no_sooner, mut seen, mut asked) = (BTreeMap::new(), 0, 0);
        let world = run_with(seed, true, |world| {
            let rig = &world.rig;
            for offer in &rig.offered[seen..] {
                for recipient in &offer.recipients {
                    let Some((until, line)) = no_sooner.get(recipient) else { continue };
                    assert!(*until <= Some(offer.at), "seed {seed}: at {}: {line}", offer.at);
                }
            }
            seen = rig.offered.len();
            for &id in world.expected.keys() {
                for item in rig.why(id).items {
                    assert!(!item.waits.is_empty(), "seed {seed}: {item}");
                    asked += 1;
                    let line = item.to_string();
                    for recipient in item.recipients {
                        no_sooner.insert(recipient.address, (item.until, line.clone()));
                    }
                }
            }
            for queue in rig.scheduler.queues(rig.now) {
                for queue in rig.scheduler.why_queue(rig.now, &queue.info.name) {
                    assert!(
                        queue
                            .destinations
                            .iter()
                            .all(|destination| { !destination.waits.is_empty() || !queue.waits.is_empty() }),
                        "seed {seed}: {queue:?}"
                    );
                }
            }
        });
        assert!(asked > 100, "seed {seed}: {asked}");
        assert_eq!(world.rig.commands, run(seed, true).rig.commands, "seed {seed}");
    }
}
