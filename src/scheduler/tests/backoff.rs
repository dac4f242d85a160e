//! CONTROLS §3, of the queue: backoff, retry mode, disabled sources, temporary caps, bounce-queue and the fuse.

use std::time::Duration;

use super::harness::*;
use crate::event::{DeliveryEvent, Failure, QueueMode};
use crate::message::Message;
use crate::scheduler::Bounds;
use crate::transport::EndCause;

const MICRO: Duration = Duration::from_micros(1);
const SECOND: Duration = Duration::from_secs(1);

/// With these settings, and rules that match their name in brackets.
fn policy(settings: &str, rules: &[(&str, &str)]) -> String {
    let rule = |(name, rest): &(&str, &str)| {
        format!("[[reply-rule]]\nname = \"{name}\"\nmatch = '\\[{name}\\]'\nactions = {rest}\n")
    };
    let rules: String = rules.iter().map(rule).collect();
    format!("{rules}[domain.\"*\"]\n{settings}\n")
}

fn rig(settings: &str, rules: &[(&str, &str)]) -> Rig {
    Rig::with_policy(&policy(settings, rules), Bounds::default())
}

fn many(rig: &mut Rig, count: usize) {
    for n in 0..count {
        rig.submit(&format!("a{n}@x.example"));
    }
}

/// Lines that say this.
fn count(rig: &Rig, word: &str) -> usize {
    rig.timeline().iter().filter(|line| line.contains(word)).count()
}

fn mode(rig: &Rig) -> &QueueMode {
    let mode = rig.events.iter().rev().find_map(|event| match event {
        DeliveryEvent::QueueMode(mode) => Some(mode),
        _ => None,
    });
    mode.expect("a mode")
}

/// Connects all that is wanted.
fn connect_all(rig: &mut Rig) -> usize {
    let mut connected = 0;
    while !rig.connects.is_empty() {
        rig.connect();
        connected += 1;
    }
    connected
}

const UNPACED: &str = "backoff-max-msg-rate = \"unlimited\"\n";
const BACKOFF: (&str, &str) = ("slow", "\"mode=backoff\"");

#[test]
fn backoff_has_its_own_intervals_and_connections() {
    let settings = format!("{UNPACED}retry-after = [\"10m\"]\nbackoff-retry-after = [\"1h\", \"3h\"]");
    for restarts in [false, true] {
        let mut rig = rig(&settings, &[BACKOFF]);
        many(&mut rig, 1);
        rig.connect();
        rig.transact(all_rcpts("450 4.7.0 [slow] down"));
        assert_eq!(rig.timeline(), ["0 queue-mode x.example backoff", "0 deferred a0@x.example 4.7.0"]);
        let said = mode(&rig);
        assert_eq!((said.rule.as_deref(), said.until), (Some("slow"), None));
        assert_eq!(said.reply.as_ref().unwrap().to_string(), "450 4.7.0 [slow] down");
        assert_eq!(rig.deferred().next_attempt, start() + HOUR, "its own list from this attempt on");
        rig.pass(MINUTE);
        many(&mut rig, 5);
        if restarts {
            rig = rig.restarted(&policy(&settings, &[BACKOFF]));
        }
        assert_eq!(connect_all(&mut rig), 1, "one connection, restarted: {restarts}");
        rig.refuse_transactions("450 other");
        rig.pass(59 * MINUTE - MICRO);
        assert_eq!(rig.connects.len(), 0);
        rig.pass(MICRO);
        rig.refuse_all();
        let Some(DeliveryEvent::QueueDeferred(step)) = rig.events.last() else {
            panic!("{:?}", rig.timeline())
        };
        assert_eq!(step.next_attempt, rig.now + HOUR, "the destination's steps too");
    }
}

#[test]
fn entering_backoff_closes_what_is_over_its_limit() {
    let mut rig = rig(&format!("{UNPACED}max-smtp-out = 4"), &[BACKOFF]);
    many(&mut rig, 8);
    connect_all(&mut rig);
    assert_eq!((rig.scheduler.open_connections(), rig.transacts.len()), (4, 4));
    rig.transact(all_rcpts("450 [slow] down"));
    assert_eq!(rig.scheduler.open_connections(), 3, "nothing is cut, and nothing follows on it");
    rig.accept();
    rig.accept();
    assert_eq!(rig.scheduler.open_connections(), 1);
    rig.accept_all();
    assert_eq!(count(&rig, "delivered"), 7);
}

#[test]
fn backoff_ends_by_timer_by_rule_and_by_delivery() {
    for (setting, rule, reply, ends) in [
        ("backoff-to-normal-after = \"1h\"", "", "250 ok", 3600),
        ("backoff-to-normal-after-delivery = true", "", "250 ok", 600),
        ("", "normal", "250 2.0.0 [normal] thanks", 600),
        ("", "normal", "450 4.2.0 [normal] later", 600),
        ("", "", "250 ok", u64::MAX),
        ("backoff-to-normal-after-delivery = true", "", "450 later", u64::MAX),
    ] {
        for restarts in [false, true] {
            let settings =
                format!("{UNPACED}{setting}\nbackoff-retry-after = [\"10m\"]\nbounce-after = \"30d\"");
            let mut rules = vec![BACKOFF];
            if !rule.is_empty() {
                rules.push((rule, "\"mode=normal\""));
            }
            let mut rig = rig(&settings, &rules);
            many(&mut rig, 1);
            rig.connect();
            rig.transact(all_rcpts("450 [slow] down"));
            let until = mode(&rig).until;
            assert_eq!(until, setting.contains("after = ").then(|| start() + HOUR), "{setting}");
            rig.pass(MINUTE);
            if restarts {
                rig = rig.restarted(&policy(&settings, &rules));
            }
            rig.pass(9 * MINUTE);
            rig.connect();
            rig.transact(|n| {
                if reply.starts_with('2') { rcpts(vec!["250 ok"; n], reply) } else { all_rcpts(reply)(n) }
            });
            rig.submit("b@x.example");
            rig.pass(2 * HOUR);
            let normal: Vec<_> = rig.timeline().into_iter().filter(|line| line.ends_with("normal")).collect();
            let expected: Vec<_> = (ends < u64::MAX)
                .then(|| format!("{ends} queue-mode x.example normal"))
                .into_iter()
                .collect();
            assert_eq!(normal, expected, "{setting} {rule} {restarts}");
        }
    }
}

#[test]
fn in_backoff_recipients_are_paced_and_afterwards_not() {
    let mut rig = rig("backoff-to-normal-after = \"10m\"", &[BACKOFF]);
    many(&mut rig, 1);
    rig.connect();
    rig.transact(all_rcpts("450 [slow] down"));
    for n in 0..20 {
        rig.submit(&format!("b{n}@x.example"));
    }
    rig.accept_all();
    let soon = count(&rig, "delivered");
    assert!(soon <= 1, "{soon}");
    for _ in 0..9 {
        rig.pass(MINUTE);
        rig.accept_all();
    }
    let paced = count(&rig, "delivered");
    assert!((9..=10).contains(&paced), "one a minute: {paced}");
    rig.pass(MINUTE);
    rig.accept_all();
    assert_eq!(count(&rig, "delivered"), 20, "at once when it is over: {:?}", rig.timeline());
    rig.pass(HOUR);
    rig.accept_all();
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn defer_queue_holds_all_of_it_and_its_steps_end_with_a_delivery() {
    const DEFER: (&str, &str) = ("later", "\"defer-queue\"");
    let settings = "retry-after = [\"10m\", \"30m\"]";
    for restarts in [false, true] {
        let mut rig = rig(settings, &[DEFER]);
        many(&mut rig, 6);
        connect_all(&mut rig);
        rig.transact(all_rcpts("450 [later] please"));
        assert_eq!(mode(&rig).until, Some(start() + 10 * MINUTE));
        assert_eq!(count(&rig, "queue-mode x.example deferred"), 1);
        while !rig.transacts.is_empty() {
            rig.accept();
        }
        let delivered = count(&rig, "delivered");
        rig.submit("new@x.example");
        if restarts {
            rig = rig.restarted(&policy(settings, &[DEFER]));
        }
        rig.pass(10 * MINUTE - MICRO);
        assert_eq!((rig.connects.len(), rig.transacts.len()), (0, 0), "{delivered} were under way");
        rig.pass(MICRO);
        connect_all(&mut rig);
        rig.transact(all_rcpts("450 [later] please"));
        assert_eq!(mode(&rig).until, Some(rig.now + 30 * MINUTE), "the second step, restarted: {restarts}");
        while !rig.transacts.is_empty() {
            rig.accept();
        }
        rig.pass(30 * MINUTE);
        rig.accept_all();
        rig.pass(HOUR);
        rig.accept_all();
        rig.pass(HOUR);
        rig.submit("again@x.example");
        rig.connect();
        rig.transact(all_rcpts("450 [later] please"));
        assert_eq!(mode(&rig).until, Some(rig.now + 10 * MINUTE), "the first step again");
        rig.pass(10 * MINUTE);
        rig.accept_all();
        rig.pass(HOUR);
        rig.scheduler.assert_empty();
        assert_eq!(rig.state_rows(), 0);
    }
}

#[test]
fn a_queue_without_mail_forgets_that_it_was_deferred() {
    let mut rig = rig("retry-after = [\"10m\"]", &[("later", "\"defer-queue\"")]);
    let id = rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply("421 [later]")));
    rig.cancel(id);
    rig.pass(2 * HOUR);
    rig.scheduler.assert_empty();
    assert_eq!(rig.state_rows(), 0);
}

#[test]
fn a_disabled_source_waits_uncharged_and_says_so() {
    for (reenable, restarts) in [(true, false), (true, true), (false, false), (false, true)] {
        let actions =
            if reenable { "[\"disable-source-ip\", \"reenable-after=2h\"]" } else { "\"disable-source-ip\"" };
        let rules = [("off", actions)];
        let mut rig = rig("bounce-after = \"5h\"", &rules);
        many(&mut rig, 3);
        connect_all(&mut rig);
        rig.transact(all_rcpts("450 [off] you"));
        assert_eq!(count(&rig, "queue-mode x.example source-disabled"), 1);
        assert_eq!(count(&rig, "queue-mode x.example all-sources-disabled"), 1);
        while !rig.transacts.is_empty() {
            rig.accept();
        }
        rig.submit("new@x.example");
        rig.submit("a@y.example");
        assert_eq!(&*rig.connects[0].1.host, "mx.y.example", "for this queue alone");
        rig.accept_all();
        if restarts {
            rig = rig.restarted(&policy("bounce-after = \"5h\"", &rules));
        }
        rig.pass(2 * HOUR - MICRO);
        assert!(rig.connects.is_empty());
        rig.pass(MICRO);
        if reenable {
            assert_eq!(rig.last_line(), "7200 queue-mode x.example source-enabled");
            assert_eq!(rig.accept_all(), 2);
            rig.pass(MINUTE);
            rig.scheduler.assert_empty();
        } else {
            rig.pass(4 * HOUR);
            assert!(rig.connects.is_empty());
            assert_eq!(rig.last_line(), "18000 bounced new@x.example 4.4.7 never-attempted");
            let Failure::Engine(words) = &rig.bounced().diagnosis.failure else { panic!() };
            assert!(words.contains("disabled"), "what held it: {words}");
        }
    }
}

const SOURCES: &str = "[[source]]\nname = \"s1\"\naddress = \"192.0.2.101\"\n[[source]]\nname = \"s2\"\n\
                       address = \"192.0.2.102\"\n[[pool]]\nname = \"p\"\nsources = [\"s1\", \"s2\"]\n";

#[test]
fn a_pools_mail_goes_by_another_source_meanwhile() {
    let rules = [("off", "[\"disable-source-ip\", \"reenable-after=2h\"]")];
    let policy = format!("{SOURCES}{}", policy("", &rules));
    let mut rig = Rig::with_policy(&policy, Bounds::default());
    let submit = |rig: &mut Rig, n: usize| {
        let mut message = Message::new("", [&*format!("a{n}@x.example")], "x").unwrap();
        message.source = Some("p".to_owned());
        rig.submit_message(message);
    };
    (0..10).for_each(|n| submit(&mut rig, n));
    let local = rig.connects[0].1.local;
    connect_all(&mut rig);
    rig.transact(all_rcpts("450 [off] you"));
    assert_eq!(count(&rig, "all-sources-disabled"), 0, "the pool has another");
    assert!(rig.connects.iter().all(|(_, target)| target.local != local));
    rig.accept_all();
    assert_eq!(count(&rig, "delivered"), 9, "all but the deferred one");
    rig.pass(MINUTE);
    (10..20).for_each(|n| submit(&mut rig, n));
    assert!(rig.connects.iter().all(|(_, target)| target.local != local));
    assert_eq!(rig.accept_all(), 10);
    submit(&mut rig, 20);
    rig.transact(all_rcpts("450 [off] you"));
    assert_eq!(count(&rig, "all-sources-disabled"), 1, "{:?}", rig.timeline());
    submit(&mut rig, 21);
    assert!(rig.connects.is_empty());
    rig.pass(HOUR);
    assert!(rig.connects.is_empty() && rig.transacts.is_empty());
    rig.pass(2 * HOUR);
    rig.accept_all();
    assert_eq!(count(&rig, "delivered"), 22);
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
    assert_eq!(rig.state_rows(), 0);
}

#[test]
fn at_connect_a_held_queue_does_not_go_on_to_the_next_host() {
    let hosts = route(&[&[("mx1.x.example", &["192.0.2.1:25"])], &[("mx2.x.example", &["192.0.2.3:25"])]]);
    for action in ["disable-source-ip", "defer-queue"] {
        let mut rig = rig("", &[("r", &format!("\"{action}\""))]);
        rig.answer_with("x.example", Ok(hosts.clone()));
        rig.submit("a@x.example");
        rig.fail_connect(EndCause::Reply(reply("554 5.7.1 [r] your address is listed")));
        assert!(rig.connects.is_empty(), "{action}");
        assert_eq!(rig.scheduler.open_connections(), 0, "{action}");
    }
}

#[test]
fn temporary_caps_end_by_themselves_and_survive_restarts() {
    for restarts in [false, true] {
        let rules = [("few", "\"limit-connections=1 for=30m\"")];
        let mut rig = rig("max-msg-per-connection = 1\nmax-smtp-out = 3", &rules);
        many(&mut rig, 9);
        connect_all(&mut rig);
        assert_eq!(rig.transacts.len(), 3);
        rig.transact(all_rcpts("450 [few] please"));
        rig.accept();
        rig.accept();
        assert_eq!(rig.scheduler.open_connections(), 1);
        if restarts {
            rig = rig.restarted(&policy("max-msg-per-connection = 1\nmax-smtp-out = 3", &rules));
        }
        assert_eq!((rig.connects.len(), rig.scheduler.open_connections()), (1, 1), "restarts: {restarts}");
        rig.pass(30 * MINUTE - MICRO);
        assert_eq!(rig.scheduler.open_connections(), 1);
        rig.connect();
        rig.pass(MICRO);
        assert_eq!(rig.scheduler.open_connections(), 3, "those who wait are called, restarts: {restarts}");
        rig.accept_all();
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
        assert_eq!(rig.state_rows(), 0);
    }
}

#[test]
fn a_temporary_rate_paces_recipients() {
    for restarts in [false, true] {
        let rules = [("slow", "\"limit-rate=60/h for=10m\"")];
        let mut rig = rig("max-smtp-out = 1", &rules);
        many(&mut rig, 30);
        rig.connect();
        rig.transact(all_rcpts("450 [slow] please"));
        if restarts {
            rig = rig.restarted(&policy("max-smtp-out = 1", &rules));
        }
        let mut offered = Vec::new();
        for _ in 0..600 {
            offered.push(rig.accept_all());
            rig.pass(SECOND);
        }
        let paced: usize = offered.iter().sum();
        assert!((9..=11).contains(&paced), "one a minute: {paced}, restarts: {restarts}");
        rig.accept_all();
        rig.pass(SECOND);
        rig.accept_all();
        assert_eq!(count(&rig, "delivered"), 30 - usize::from(false), "{:?}", rig.timeline().last());
        rig.pass(HOUR);
        rig.accept_all();
        rig.pass(MINUTE);
        rig.scheduler.assert_empty();
    }
}
