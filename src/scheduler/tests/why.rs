//! What mail waits for is told as it is.

use std::time::Duration;

use futures::FutureExt;

use super::harness::*;
use crate::control::Selector;
use crate::dns::{DnsErrorKind, RouteFailureKind};
use crate::event::Failure;
use crate::message::{Domain, Message, MessageId};
use crate::scheduler::{Bounds, Control, Event};
use crate::storage::{Filter, Room, Storage, StorageError, StorageErrorKind};
use crate::transport::EndCause;
use crate::why::{LimitOf, MessageWaits, QueueWaits, Wait};

impl Rig {
    pub(crate) fn why(&self, id: MessageId) -> MessageWaits {
        let items = self.store.list(Filter::Message(id), None, usize::MAX).now_or_never().unwrap().unwrap();
        self.scheduler.why(self.now, items)
    }

    fn why_queue(&self, name: &str) -> QueueWaits {
        let mut queues = self.scheduler.why_queue(self.now, &name.into());
        assert_eq!(queues.len(), 1, "{queues:?}");
        queues.remove(0)
    }

    /// What the message's only item waits for, with times of the day.
    fn waits(&self, id: MessageId) -> String {
        let told = self.why(id);
        let [item] = &told.items[..] else { panic!("{told:?}") };
        assert_eq!(item.message, id);
        let line = item.to_string();
        short(line.split_once(": ").unwrap().1)
    }

    /// The same, and before when there is no attempt for sure, in seconds since the start.
    fn waits_until(&self, id: MessageId) -> (String, Option<u64>) {
        let until = self.why(id).items[0].until;
        (self.waits(id), until.map(|until| until.saturating_since(start()).as_secs()))
    }

    /// The queue's line, and one for each destination.
    pub(super) fn queue_lines(&self, name: &str) -> Vec<String> {
        let queue = self.why_queue(name);
        let destinations = queue.destinations.iter().map(|destination| short(&destination.to_string()));
        std::iter::once(short(&queue.to_string())).chain(destinations).collect()
    }

    fn submit_tagged(&mut self, to: &str) -> MessageId {
        let message = Message::new("", [to], "x").unwrap().with_tag("job", "7");
        let token = self.submit_message(message);
        *self.submitted[&token].as_ref().unwrap()
    }
}

/// The day and the fractions are the same all over.
fn short(text: &str) -> String {
    text.replace("2027-01-15T", "").replace(".000Z", "")
}

/// Every domain at its own address.
const MX: &str = "mx.x.example at 198.19.65.205:25";

fn bounded(bounds: Bounds) -> Rig {
    Rig::with_policy("", bounds)
}

#[test]
fn nothing_is_said_of_what_is_not_queued() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.accept_all();
    assert_eq!(rig.why(id), MessageWaits::default());
    assert_eq!(rig.why(id).to_string(), "nothing of it is queued");
    assert_eq!(rig.why(MessageId::generate(start(), 7)), MessageWaits::default());
    assert!(rig.scheduler.why_queue(rig.now, &"z.example".into()).is_empty());
}

#[test]
fn an_item_says_whose_it_is() {
    let mut rig = Rig::new("");
    let token = rig.submit_to(&["a@x.example", "b@x.example", "c@y.example"]);
    let id = *rig.submitted[&token].as_ref().unwrap();
    let told = rig.why(id);
    let [x, y] = &told.items[..] else { panic!("{told:?}") };
    assert_eq!(
        (x.recipients.len(), x.domain.as_str(), &*x.queue, &*x.source),
        (2, "x.example", "x.example", "default")
    );
    assert_eq!(y.recipients[0].address.to_string(), "c@y.example");
    let lines: Vec<_> = told.to_string().lines().map(short).collect();
    assert_eq!(lines[0], format!("2 recipients at x.example in x.example/default: connecting to {MX}"));
    assert!(
        lines[1].starts_with("c@y.example in y.example/default: connecting to mx.y.example"),
        "{lines:?}"
    );
}

#[test]
fn held_back_by_the_host() {
    let mut rig = Rig::new("");
    let message = Message::new("", ["a@x.example"], "x").unwrap().hold_until(rig.now + HOUR);
    let token = rig.submit_message(message);
    let id = *rig.submitted[&token].as_ref().unwrap();
    assert_eq!(rig.waits_until(id), ("held back until 09:00:00".to_owned(), Some(3600)));
    assert_eq!(
        rig.queue_lines("x.example"),
        ["x.example/default: 0 open, 0 in transactions", "x.example, oldest 0s: not due before 09:00:00"]
    );
}

#[test]
fn the_later_of_two_clocks_decides() {
    let mut rig = Rig::new("connection-idle-timeout = \"1s\"");
    let id = rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 4.2.0 later"));
    let retry = "retry at 08:10:00, attempts so far: 1; the last met: 450 4.2.0 later";
    assert_eq!(rig.waits_until(id), (retry.to_owned(), Some(600)));
    rig.pass(5 * MINUTE);
    let second = rig.submit("b@x.example");
    rig.refuse();
    let step = "hosts not usable (step 1), next try at 08:15:00; the last met: connection refused";
    assert_eq!(rig.waits_until(id), (format!("{step}; {retry}"), Some(900)));
    assert_eq!(rig.waits_until(second), (step.to_owned(), Some(900)));
    assert_eq!(rig.queue_lines("x.example")[1], format!("x.example, oldest 5m: {step}"));
    assert_eq!(rig.why_queue("x.example").until, rig.why(id).items[0].until);
    rig.pass(10 * MINUTE);
    assert_eq!(rig.waits(second), format!("connecting to {MX}, to find out whether the hosts work again"));
}

#[test]
fn on_its_way() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    assert_eq!(rig.waits_until(id), (format!("connecting to {MX}"), None));
    rig.pass(Duration::from_secs(2));
    rig.connect();
    rig.pass(Duration::from_secs(2));
    let under_way = format!("in a transaction with {MX} since 08:00:02");
    assert_eq!(rig.waits_until(id), (under_way.clone(), None));
    assert_eq!(
        rig.queue_lines("x.example"),
        ["x.example/default: 1 open, 1 in transactions".to_owned(), format!("x.example: {under_way}")]
    );
    rig.by_hand.commit = true;
    rig.transact(all_rcpts("450 4.2.0 later"));
    assert_eq!(rig.waits(id), "what was decided about it is being written");
    assert!(rig.queue_lines("x.example")[1].ends_with(": what was decided about it is being written"));
}

#[test]
fn a_destination_has_as_many_connections_as_it_may() {
    let mut rig = Rig::new("");
    let ids: Vec<_> = (0..8).map(|n| rig.submit(&format!("u{n}@x.example"))).collect();
    (0..5).for_each(|_| {
        rig.connect();
    });
    let turn = "its turn among 8 items at hand";
    let full = format!("5 of 5 connections that the destination may have now are open; {turn}");
    assert_eq!(rig.waits_until(ids[7]), (full, None));

    let mut rig = Rig::new("");
    let ids: Vec<_> = (0..3).map(|n| rig.submit(&format!("u{n}@x.example"))).collect();
    rig.connect();
    rig.refuse();
    rig.refuse();
    let held_off =
        "no new connection before 08:00:30 since one failed, 3 allowed; its turn among 3 items at hand";
    assert_eq!(
        rig.waits_until(ids[2]),
        (held_off.to_owned(), None),
        "the session that is open may take it sooner"
    );
}

#[test]
fn connections_to_an_address() {
    let mut rig =
        Rig::with_policy("[[ip-connection-limit]]\ncidr = \"192.0.2.0/24\"\nlimit = 3\n", Bounds::default());
    let mut last = None;
    for (n, domain) in ["x", "x", "y", "z", "w"].iter().enumerate() {
        rig.lead_to(&format!("{domain}.example"), "mx", &["192.0.2.1:25"]);
        last = Some(rig.submit(&format!("u{n}@{domain}.example")));
        if n < 3 {
            rig.connect();
        }
    }
    let limit =
        "limit ip-connection-limit of 192.0.2.1: 3 of 3 taken (x.example/default 2, y.example/default 1)";
    assert_eq!(rig.waits_until(last.unwrap()), (format!("{limit}, 1 ahead in line"), None));
    assert_eq!(rig.queue_lines("z.example")[1], format!("z.example, oldest 0s: {limit}, 0 ahead in line"));
    let Wait::ConnectionLimit { of, .. } = &rig.why_queue("z.example").destinations[0].waits[0] else {
        panic!()
    };
    assert_eq!(*of, LimitOf::Address { address: "192.0.2.1".parse().unwrap(), from: None });
}

#[test]
fn a_full_address_beside_another() {
    let policy = "[[ip-connection-limit]]\ncidr = \"192.0.2.0/24\"\nlimit = 1\n";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    rig.lead_to("x.example", "mx", &["192.0.2.1:25"]);
    rig.lead_to("y.example", "mx", &["192.0.2.2:25"]);
    rig.lead_to("z.example", "mx", &["192.0.2.1:25", "192.0.2.2:25"]);
    rig.submit("a@x.example");
    rig.submit("a@y.example");
    rig.connect();
    rig.connect();
    let id = rig.submit("a@z.example");
    let mut told: Vec<_> = rig.why(id).items[0].waits.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(
        told,
        [
            "limit ip-connection-limit of 192.0.2.1: 1 of 1 taken (x.example/default 1), 0 ahead in line",
            "limit ip-connection-limit of 192.0.2.2: 1 of 1 taken (y.example/default 1), 0 ahead in line",
        ]
    );
}

#[test]
fn mail_that_expires_untried_says_what_held_it() {
    let pause = |selector| Control::Pause(selector);
    for (control, why) in [
        (Some(pause(Selector::tag("job", "7"))), "paused: tag job=7"),
        (Some(pause(Selector::queue("x.example"))), "paused: queue x.example"),
        (Some(pause(Domain::parse("x.example").unwrap().into())), "paused: domain x.example"),
        (None, "it waited for max-smtp-out"),
    ] {
        let mut rig = Rig::new("bounce-after = \"1h\"\nmax-smtp-out = 1");
        rig.submit("first@x.example");
        rig.connect();
        if let Some(control) = control {
            rig.control(control);
        }
        rig.submit_tagged("a@x.example");
        rig.pass(HOUR);
        let Failure::Engine(words) = &rig.bounced().diagnosis.failure else { panic!() };
        assert_eq!(*words, format!("expired before an attempt; {why}"));
    }
}

/// Fresh mail and retries take turns; who has a connection already comes last.
#[test]
fn a_line_moves_as_was_told() {
    let policy =
        "[engine]\nmax-connections = 1\n[domain.\"*\"]\nretry-after = \"1m\"\nmax-msg-per-connection = 1\n";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    let mut waiting: Vec<_> = ["a", "b", "c"].map(|name| rig.submit(&format!("u@{name}.example"))).into();
    for _ in 0..3 {
        rig.connect();
        rig.transact(all_rcpts("450 4.2.0 later"));
    }
    rig.submit("u@f.example");
    rig.connect();
    waiting.push(rig.submit("v@f.example"));
    rig.pass(MINUTE);
    waiting.extend(["d", "e"].map(|name| rig.submit(&format!("u@{name}.example"))));
    let mut told: Vec<(u64, String)> = waiting
        .iter()
        .map(|&id| {
            let item = &rig.why(id).items[0];
            let Wait::ConnectionLimit { ahead, .. } = item.waits[0] else { panic!("{item}") };
            (ahead, item.domain.to_string())
        })
        .collect();
    told.sort();
    let places: Vec<_> = told.iter().map(|&(ahead, _)| ahead).collect();
    assert_eq!(places, [0, 1, 2, 3, 4, 5], "{told:?}");
    assert_eq!(told[5].1, "f.example");
    for (_, domain) in told {
        rig.accept();
        rig.connect();
        assert_eq!(rig.transacts[0].1.recipients[0].domain().as_str(), domain);
    }
}

#[test]
fn limits_are_named_by_their_setting() {
    const SOURCE: &str = "[[source]]\nname = \"default\"\naddress = \"192.0.2.101\"\n";
    let held = "1 of 1 taken (x.example/default 1), 0 ahead in line; its turn among 2 items at hand";
    let all = |settings: &str| format!("[domain.\"*\"]\n{settings}");
    for (policy, limit) in [
        ("[engine]\nmax-connections = 1".to_owned(), "max-connections of the engine"),
        (all("max-smtp-out = 1"), "max-smtp-out of x.example/default"),
        (
            format!("{SOURCE}{}", all("source-ip-max-smtp-out = 1")),
            "source-ip-max-smtp-out of x.example from 192.0.2.101",
        ),
        (all("source-ip-max-smtp-out = 1"), "source-ip-max-smtp-out of x.example from 0.0.0.0"),
        (
            "[[mx-connection-limit]]\nmx = \"*.x.example\"\nlimit = 1".to_owned(),
            "mx-connection-limit of mx.x.example",
        ),
        (
            "[[ip-connection-limit]]\ncidr = \"198.0.0.0/8\"\nlimit = 1\nshared = true".to_owned(),
            "ip-connection-limit of 198.0.0.0/8",
        ),
        (
            format!("{SOURCE}[[ip-connection-limit]]\ncidr = \"198.0.0.0/8\"\nlimit = 1\nper-source = true"),
            "ip-connection-limit of 198.19.65.205 from 192.0.2.101",
        ),
    ] {
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        rig.submit("a@x.example");
        rig.connect();
        let id = rig.submit("b@x.example");
        assert_eq!(rig.waits(id), format!("limit {limit}: {held}"));
    }
}

#[test]
fn rates_say_when_they_have_room() {
    let all = |settings: &str| format!("[domain.\"*\"]\n{settings}\nconnection-idle-timeout = \"0s\"");
    for (policy, rate) in [
        (all("max-msg-rate = \"1/m\""), "max-msg-rate of x.example/default"),
        (all("source-ip-max-msg-rate = \"1/m\""), "source-ip-max-msg-rate of x.example from 0.0.0.0"),
        (all("max-connect-rate = \"1/m\""), "max-connect-rate of x.example/default"),
        (all("source-ip-max-connect-rate = \"1/m\""), "source-ip-max-connect-rate of x.example from 0.0.0.0"),
    ] {
        let mut rig = Rig::with_policy(&policy, Bounds::default());
        rig.submit("a@x.example");
        rig.accept_all();
        rig.pass(Duration::from_secs(1));
        let id = rig.submit("b@x.example");
        // A rate by address is met once there is a session.
        while !rig.connects.is_empty() {
            rig.connect();
        }
        let waits = rig.waits_until(id);
        let told = format!("rate {rate}: 1/m, room at 08:01:00, 0 ahead in line");
        assert_eq!(waits, (told, Some(60)));
        rig.pass(Duration::from_secs(58));
        assert!(rig.transacts.is_empty() && rig.connects.is_empty());
        rig.pass(Duration::from_secs(1));
        assert_eq!(rig.accept_all(), 1);
    }
}

const RULES: &str = "[[reply-rule]]\nname = \"slow\"\nmatch = 'slow'\nactions = [\"mode=backoff\"]\n\
    [[reply-rule]]\nname = \"cap\"\nmatch = 'cap'\nactions = [\"limit-connections=1 for=10m\", \"limit-rate=1/m for=10m\"]\n\
    [[reply-rule]]\nname = \"defer\"\nmatch = 'defer'\nactions = [\"defer-queue\"]\n\
    [[reply-rule]]\nname = \"block\"\nmatch = 'block'\nactions = [\"disable-source-ip reenable-after=1h\"]\n\
    [[reply-rule]]\nname = \"forever\"\nmatch = 'forever'\nactions = [\"disable-source-ip\"]\n\
    [[reply-rule]]\nname = \"full\"\nmatch = 'full'\nactions = [\"bounce-rcpt\"]\n\
    [domain.\"*\"]\nretry-after = \"10m\"\nbounce-fuse = \"1/10m\"\nbackoff-to-normal-after = \"2h\"\n\
    backoff-retry-after = \"5m\"\nconnection-idle-timeout = \"0s\"\n";

/// A message that met this, and one submitted after it.
fn after_reply(text: &str) -> (Rig, MessageId, MessageId) {
    let mut rig = Rig::with_policy(RULES, Bounds::default());
    let first = rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts(text));
    // The session ends.
    rig.pass(Duration::ZERO);
    let second = rig.submit("b@x.example");
    (rig, first, second)
}

#[test]
fn backoff_is_told_beside_what_it_waits_for() {
    let (mut rig, first, second) = after_reply("450 slow");
    let backoff = "queue in backoff since 08:00:00 until 10:00:00";
    let retry = format!("retry at 08:05:00, attempts so far: 1; the last met: 450 slow; {backoff}");
    assert_eq!(rig.waits_until(first), (retry, Some(300)));
    rig.connect();
    let third = rig.submit("c@x.example");
    let rate = "rate backoff-max-msg-rate of x.example/default: 1/m, room at 08:01:00, 0 ahead in line";
    assert_eq!(rig.waits_until(third), (format!("{rate}; {backoff}"), Some(60)));
    let limit = "limit backoff-max-smtp-out of x.example/default: 1 of 1 taken (x.example/default 1), 0 ahead in line";
    rig.pass(2 * MINUTE);
    assert_eq!(rig.waits(third), format!("{limit}; its turn among 2 items at hand; {backoff}"));
    assert_eq!(
        rig.queue_lines("x.example")[0],
        format!("x.example/default: 1 open, 1 in transactions; {backoff}")
    );
    rig.accept();
    assert!(rig.why(second).items.is_empty());
}

#[test]
fn caps_are_told_by_their_own_names() {
    let (mut rig, _, second) = after_reply("450 cap");
    rig.connect();
    let third = rig.submit("c@x.example");
    rig.accept();
    assert!(rig.why(second).items.is_empty());
    assert_eq!(
        rig.waits(third),
        "rate limit-rate of x.example/default: 1/m, room at 08:01:00, 0 ahead in line"
    );
    rig.pass(MINUTE);
    rig.connect();
    rig.pass(MINUTE);
    let fourth = rig.submit("d@x.example");
    let waits = rig.waits(fourth);
    assert!(waits.starts_with("limit limit-connections of x.example/default: 1 of 1 taken"), "{waits}");
}

#[test]
fn what_holds_a_whole_queue() {
    for (text, told, until) in [
        ("450 defer", "a reply rule deferred its queue (step 1) until 08:10:00", Some(600)),
        ("450 block", "source default is disabled for its queue until 09:00:00", Some(3600)),
        ("450 forever", "source default is disabled for its queue", None),
    ] {
        let (rig, first, second) = after_reply(text);
        assert_eq!(rig.waits_until(second), (told.to_owned(), until));
        let both = rig.waits_until(first);
        assert!(both.0.starts_with(told) && both.0.contains("retry at 08:10:00"), "{both:?}");
        assert_eq!(both.1, until.or(Some(600)), "it is not due before in any case");
        let lines = rig.queue_lines("x.example");
        assert_eq!(lines[0], format!("x.example/default: 0 open, 0 in transactions; {told}"));
        assert_eq!(lines[1], "x.example, oldest 0s: waits with its queue");
    }
}

#[test]
fn what_a_blown_fuse_holds() {
    let (mut rig, _, second) = after_reply("450 full");
    rig.connect();
    rig.transact(all_rcpts("450 full"));
    let told = "held by the queue's blown fuse until somebody decides";
    assert_eq!(rig.waits_until(second), (told.to_owned(), None));
    assert_eq!(rig.queue_lines("x.example")[1], format!("x.example, oldest 0s: {told}"));
}

#[test]
fn paused_by_what() {
    let own = |id: MessageId| Selector::Message(id);
    for (selector, told) in [
        (Some(Selector::queue("x.example")), "paused: queue x.example"),
        (Some(Selector::source("default")), "paused: source default"),
        (Some(Domain::parse("x.example").unwrap().into()), "paused: domain x.example"),
        (Some(Selector::tag("job", "7")), "paused: tag job=7"),
        (None, "paused: message "),
    ] {
        let mut rig = Rig::new("");
        let id = rig.submit_tagged("a@x.example");
        let is_own = selector.is_none();
        rig.control(Control::Pause(selector.unwrap_or_else(|| own(id))));
        let wanted = if is_own { format!("{told}{id}") } else { told.to_owned() };
        // The connection being opened when it was paused comes to nothing.
        assert_eq!(rig.waits_until(id), (wanted, None));
    }
}

#[test]
fn what_expires_before_it_is_tried() {
    let mut rig = Rig::new("retry-after = \"10m\"");
    let message = Message::new("", ["a@x.example"], "x").unwrap().expires_after(12 * MINUTE);
    let token = rig.submit_message(message);
    let id = *rig.submitted[&token].as_ref().unwrap();
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    assert_eq!(rig.why(id).items[0].expires_at, start() + 12 * MINUTE);
    assert_eq!(rig.waits(id), "retry at 08:10:00, attempts so far: 1; the last met: 450 later");
    rig.pass(10 * MINUTE);
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    let told = "retry at 08:20:00, attempts so far: 2; the last met: 450 later; expires before, at 08:12:00";
    assert_eq!(rig.waits(id), told);
}

#[test]
fn what_bounces_by_dns_before_it_is_tried() {
    let mut rig = Rig::new("bounce-upon-no-mx = \"1h\"\nretry-after = [\"2h\"]");
    rig.answer_with("x.example", implicit("x.example"));
    let id = rig.submit("a@x.example");
    rig.refuse();
    let step = "hosts not usable (step 1), next try at 10:00:00; the last met: connection refused";
    let bounces = "bounces before, at 09:00:00: x.example has no MX record (bounce-upon-no-mx = 1h)";
    assert_eq!(rig.waits_until(id), (format!("{step}; {bounces}"), Some(7_200)));
    let oldest = format!("x.example, oldest 0s: {step}; its oldest {bounces}");
    assert_eq!(rig.queue_lines("x.example")[1], oldest);
    rig.pass(30 * MINUTE);
    let second = rig.submit("b@x.example");
    assert_eq!(rig.waits(second), format!("{step}; {}", bounces.replace("09:00", "09:30")), "by its own age");
    assert!(rig.queue_lines("x.example")[1].ends_with(bounces));
}

#[test]
fn what_bounces_since_its_domain_does_not_exist() {
    let mut rig = Rig::new("bounce-upon-nxdomain = \"1h\"\nretry-after = [\"2h\"]");
    rig.answer_with("x.example", no_route(RouteFailureKind::NxDomain));
    let id = rig.submit("a@x.example");
    let told = rig.waits(id);
    assert!(told.starts_with("hosts not usable (step 1), next try at 10:00:00; the last met: "), "{told}");
    assert!(told.contains("; bounces before, at 09:00:00: ") && told.ends_with("made up"), "{told}");

    // No sooner than it expires.
    let message = Message::new("", ["b@x.example"], "x").unwrap().expires_after(30 * MINUTE);
    let token = rig.submit_message(message);
    let told = rig.waits(*rig.submitted[&token].as_ref().unwrap());
    assert!(told.ends_with("; expires before, at 08:30:00"), "{told}");
}

#[test]
fn the_store_refuses_a_body() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.connect();
    let (connection, _) = rig.transacts.pop_front().unwrap();
    let error = StorageError::new(StorageErrorKind::Temporary, "made up");
    rig.tell(Event::BodyFailed { connection, error });
    rig.pass(Duration::from_secs(2));
    let told = "the store refused its content for the moment, next try at 08:00:30";
    assert_eq!(rig.waits_until(id), (told.to_owned(), Some(30)));
    assert!(rig.queue_lines("x.example")[1].ends_with(told), "{:?}", rig.queue_lines("x.example"));
    // Tried before that, it waits for what it then met.
    rig.pass(Duration::from_secs(29));
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    assert!(rig.waits(id).starts_with("retry at 08:10:"), "{}", rig.waits(id));
}

#[test]
fn waiting_for_dns() {
    let mut rig = bounded(Bounds { look_ups: 1, ..Bounds::default() });
    rig.by_hand.resolve = true;
    let (first, second) = (rig.submit("a@x.example"), rig.submit("a@y.example"));
    assert_eq!(rig.waits_until(first), ("DNS is asked about x.example".to_owned(), None));
    assert_eq!(rig.waits_until(second), ("in line to ask DNS about y.example".to_owned(), None));
    rig.answer_with("x.example", no_route(RouteFailureKind::LookUp(DnsErrorKind::Unreachable)));
    rig.resolve();
    let told = "no name server could be reached, next try at 08:00:30";
    assert_eq!(rig.waits_until(first), (told.to_owned(), Some(30)));
}

#[test]
fn this_machine_could_not_send() {
    let mut rig = Rig::new("");
    let id = rig.submit("a@x.example");
    rig.fail_connect(EndCause::Local("no sockets".to_owned()));
    let told = "this machine could not send from source default, next try at 08:00:30";
    assert_eq!(rig.waits_until(id), (told.to_owned(), Some(30)));
}

#[test]
fn waiting_for_the_store() {
    let mut rig = bounded(Bounds { claims: 1, ..Bounds::default() });
    rig.by_hand.claim = true;
    let ids = ["a@x.example", "a@y.example"].map(|to| {
        let message = Message::new("", [to], "x").unwrap().hold_until(rig.now + MINUTE);
        let token = rig.submit_message(message);
        *rig.submitted[&token].as_ref().unwrap()
    });
    rig.pass(MINUTE);
    assert_eq!(rig.waits(ids[0]), "being taken out of the store");
    assert_eq!(rig.waits(ids[1]), "in line to be taken out of the store");
    rig.fail_claim(StorageErrorKind::Full);
    let told = "the store refused for the moment, next try at 08:01:01";
    assert_eq!(rig.waits_until(ids[0]), (told.to_owned(), Some(61)));
    rig.pass(MINUTE);
    rig.fail_claim(StorageErrorKind::Poisoned);
    let told = "the store has failed: nothing is sent until it is opened anew";
    assert_eq!(rig.waits_until(ids[1]), (told.to_owned(), None));
    assert!(rig.queue_lines("x.example")[0].ends_with(told));
}

#[test]
fn waiting_for_outcomes_to_be_durable() {
    let mut rig = bounded(Bounds { unsettled: 1, ..Bounds::default() });
    rig.by_hand.commit = true;
    rig.submit("a@x.example");
    rig.connect();
    let id = rig.submit("b@x.example");
    rig.accept();
    let settling = "1 outcomes are not durable yet: with 1 or more no transaction starts".to_owned();
    assert_eq!(rig.waits_until(id), (settling, None));
    rig.tell(Event::ReportsBlocked(true));
    assert_eq!(rig.waits(id), "the sink or a live stream has not taken what there is to report");
    rig.tell(Event::StoreRoom(Room::Scarce));
    let scarce = "the store has little room: what is next waits until all outcomes are stored and reported";
    assert_eq!(rig.waits(id), scarce);
}

#[test]
fn waiting_for_room_in_memory() {
    let mut rig = bounded(Bounds { window: 1, ..Bounds::default() });
    rig.submit("a@x.example");
    let id = rig.submit("a@y.example");
    assert_eq!(rig.waits(id), "1 items are in hand, no more are taken out of the store");

    let mut rig = bounded(Bounds { transit_octets: 26, ..Bounds::default() });
    rig.submit("a@x.example");
    rig.connect();
    let id = rig.submit("a@y.example");
    rig.connect();
    assert_eq!(rig.waits(id), "content in transactions takes 18 of 20 octets, 1 in line");
}

#[test]
fn a_queue_tells_some_of_its_destinations_those_with_the_oldest_mail_first() {
    let policy =
        "[[rollup]]\nqueue = \"p.rollup\"\nmx = [\"*.p.example\"]\n[domain.\"*\"]\nmax-smtp-out = 1\n";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    for n in (0..25).rev() {
        let domain = format!("d{n}.example");
        rig.lead_to(&domain, &format!("{domain}.p.example"), &[&address_of(&domain)]);
        rig.submit(&format!("u@{domain}"));
        rig.pass(Duration::from_secs(1));
    }
    let told = rig.why_queue("p.rollup");
    assert_eq!((told.destinations.len(), told.more_destinations), (20, 5));
    assert_eq!(told.destinations[0].domain.as_str(), "d24.example");
    assert_eq!(told.destinations[0].oldest, Some(Duration::from_secs(25)));
    let Wait::ConnectionLimit { used: 1, limit: 1, ahead: 18, .. } = told.destinations[19].waits[0] else {
        panic!("{told:?}")
    };
    assert!(rig.scheduler.why_queue(rig.now, &"d3.example".into()).is_empty(), "its mail lies in the rollup");
}

#[test]
fn of_many_holders_and_items_some_are_told() {
    let policy = "[[ip-connection-limit]]\ncidr = \"192.0.2.0/24\"\nlimit = 8\n";
    let mut rig = Rig::with_policy(policy, Bounds::default());
    for n in 0..9 {
        rig.lead_to(&format!("d{n}.example"), "mx", &["192.0.2.1:25"]);
    }
    for n in [0, 1, 2, 3, 4, 5, 6, 6, 8] {
        rig.submit(&format!("u@d{n}.example"));
        if n < 8 {
            rig.connect();
        }
    }
    let told = &rig.queue_lines("d8.example")[1];
    let holders = "(d6.example/default 2, d0.example/default 1, d1.example/default 1, d2.example/default 1, \
                   d3.example/default 1, and 2 more queues)";
    assert!(told.contains(holders), "{told}");

    let mut rig = Rig::with_policy("[engine]\nmax-connections = 1\n", Bounds::default());
    rig.check_every = 1_000;
    let to: Vec<_> = (0..1_003).map(|n| format!("u@d{n}.example")).collect();
    let to: Vec<_> = to.iter().map(String::as_str).collect();
    let token = rig.submit_to(&to);
    let told = rig.why(*rig.submitted[&token].as_ref().unwrap());
    assert_eq!((told.items.len(), told.more_items), (1_000, 3));
    // In the order of their names this is the last.
    let told = &rig.queue_lines("d999.example")[1];
    assert!(told.ends_with("(d0.example/default 1), 1000 or more ahead in line"), "{told}");
}
