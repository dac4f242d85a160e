//! What a world is asked afterwards.

use super::*;

#[test]
fn a_typo_does_not_pass_for_nothing() {
    let ask = |ask: fn(&World)| {
        let world = world(ServerModel::new());
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&world)));
        asked.unwrap_err().downcast_ref::<String>().unwrap().clone()
    };
    let server = ask(|world| drop(world.server("192.0.2.l")));
    let offered = ask(|world| drop(world.most_offered_in("192.0.2.l", HOUR).to_string()));
    assert!(server.contains("192.0.2.l") && offered.contains("192.0.2.l"), "{server} {offered}");
    let mailbox = ask(|world| drop(world.final_event(MessageId::generate(world.now(), 1), "bob")));
    assert!(mailbox.contains("`bob`"), "{mailbox}");
    let mut world = world(ServerModel::new());
    let id = world.submit(message(BOB)).unwrap();
    let asked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.outcome(id, "bbo@example.net")));
    let said = asked.unwrap_err().downcast_ref::<String>().unwrap().clone();
    assert!(said.contains("bbo@example.net"), "{said}");
}

/// Nothing is stored twice as long as the id is remembered, and later it is a message like any other.
#[test]
fn an_id_may_come_again() {
    let mut world = builder(ServerModel::new().with_greylist(HOUR)).build().unwrap();
    let id = MessageId::generate(world.now(), 7);
    let to = |recipients: &[&str]| Message::new("", recipients.iter().copied(), "x").unwrap().with_id(id);
    world.submit(to(&[BOB])).unwrap();
    world.run_for(MINUTE);
    assert_eq!(world.submit(to(&["ann@example.net"])).unwrap(), id, "it is queued already");
    assert!(world.run_until_idle(DAY));
    assert_eq!((world.outcome(id, BOB), world.count(Outcome::Delivered)), (Outcome::Delivered, 1));
    let attempts = world.attempts(id, BOB);
    world.submit(to(&[BOB])).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.attempts(id, BOB), attempts, "it is remembered");
    world.run_for(3 * DAY);
    world.submit(to(&[BOB, "ann@example.net"])).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.attempts(id, BOB), attempts + 1, "it is a new one");
    assert_eq!(world.outcome(id, "ann@example.net"), Outcome::Delivered);
}

#[test]
fn a_timeline_is_of_one_message() {
    let mut world = world(ServerModel::new().with_greylist(4 * MINUTE).with_reply_latency(SECOND));
    let ids = submit(&mut world, 2);
    assert!(world.run_until_idle(HOUR));
    let lines: Vec<_> = world.timeline(ids[1]).iter().map(|seen| seen.seen.to_string()).collect();
    let verbs = ["accepted", "received", "offered", "answered", "deferred", "delivered"];
    let verb = |line: &String| verbs.into_iter().find(|verb| line.split(' ').any(|word| word == *verb));
    let mut found: Vec<_> = lines.iter().filter_map(verb).collect();
    // Who hears of it first, the host or the sink, does not matter.
    found[..2].sort_unstable();
    let expected = ["offered", "answered", "deferred", "offered", "answered", "delivered"];
    assert_eq!((&found[..2], &found[2..]), (&["accepted", "received"][..], &expected[..]), "{lines:?}");
    assert!(world.timeline(ids[1]).iter().all(|seen| seen.seen.message() == Some(ids[1])));
    assert!(world.trace().is_sorted_by_key(|seen| seen.at));
}

#[test]
fn recipients_are_asked_for_by_address() {
    let mut world =
        world(ServerModel::new().with_mailbox("gone@example.net", "550 5.1.1 no").with_reply_latency(SECOND));
    let to = ["Bob@EXAMPLE.net", "gone@example.net"];
    let id = world.submit(Message::new("news@sender.example", to, "hi\r\n").unwrap()).unwrap();
    assert_eq!(world.outcome(id, to[0]), Outcome::Queued);
    assert!(world.final_event(id, to[0]).is_none());
    assert!(world.run_until_idle(HOUR));
    for name in ["Bob@EXAMPLE.net", "Bob@example.net"] {
        assert_eq!(world.outcome(id, name), Outcome::Delivered);
        assert_eq!(world.attempts(id, name), 1);
    }
    assert!(matches!(world.final_event(id, to[1]), Some(DeliveryEvent::Bounced(_))));
    assert_eq!((world.count(Outcome::Delivered), world.count(Outcome::Bounced)), (1, 1));
}

#[test]
fn peaks_are_by_key() {
    let text = "[[source]]\nname = 'a'\n[[source]]\nname = 'b'\n\
        [[rollup]]\nqueue = 'r.rollup'\nmx = ['mx.r.example']\n[domain.'*']\nmax-smtp-out = 3";
    let zone = "one.example. MX 10 mx.r.example.\ntwo.example. MX 10 mx.r.example.\nmx.r.example. A 192.0.2.1\n\
        example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.2";
    let slow = ServerModel::new().with_reply_latency(20 * SECOND);
    let mut world = World::builder().policy(policy(text)).zone(zone).servers_elsewhere(slow).build().unwrap();
    for n in 0..30 {
        for (domain, source) in [("one.example", "a"), ("two.example", "b"), ("example.net", "a")] {
            world.submit(message(&format!("r{n}@{domain}")).with_source(source)).unwrap();
        }
    }
    assert!(world.run_until_idle(DAY));
    let peak = |key| world.peak_connections(key);
    assert_eq!(peak(Key::Total), 9);
    assert_eq!(peak(Key::Address([192, 0, 2, 1].into())), 6);
    assert_eq!(peak(Key::Host("mx.r.example".to_owned())), 6);
    assert_eq!(peak(Key::Queue("r.rollup".to_owned())), 6);
    assert_eq!(peak(Key::Queue("one.example".to_owned())), 0);
    assert_eq!(peak(Key::Queue("example.net".to_owned())), 3);
    assert_eq!((peak(Key::Source("a".to_owned())), peak(Key::Source("b".to_owned()))), (6, 3));
    assert_eq!(world.servers().map(|(_, server)| server.taken).sum::<u64>(), 90);
}

#[test]
fn the_most_offered_is_of_any_stretch() {
    let text = "[domain.'*']\nmax-msg-rate = '60/m'";
    let model = ServerModel::new();
    let mut world = World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap();
    submit(&mut world, 200);
    assert!(world.run_until_idle(HOUR));
    assert_eq!(world.most_offered_in(SERVER, 10 * SECOND), 10);
    assert_eq!(world.most_offered_in(SERVER, HOUR), 200);
    assert_eq!(world.most_offered_in("192.0.2.1:25", SECOND), 1);
    assert_eq!(world.most_offered_in("192.0.2.1:26", HOUR), 0);
    world.set_policy(policy("[smtp]\nport = 2525"));
    assert_eq!(world.most_offered_in("::ffff:192.0.2.1", HOUR), 200, "at any port");
    assert_eq!(world.server("::ffff:192.0.2.1").taken, 200);
    for key in [Key::Address("::ffff:192.0.2.1".parse().unwrap()), Key::Host("MX.example.net.".to_owned())] {
        assert!(world.peak_connections(key.clone()) > 0, "{key:?}");
    }
}

#[test]
fn a_server_reports() {
    let mut world = world(ServerModel::new().with_mailbox("gone@example.net", "550 5.1.1 no"));
    let to = [BOB, "gone@example.net"];
    world.submit(Message::new("news@sender.example", to, "hi\r\n").unwrap()).unwrap();
    world.submit(message("gone@example.net")).unwrap();
    assert!(world.run_until_idle(HOUR));
    let server = world.server(SERVER);
    assert_eq!((server.transactions, server.offered, server.taken), (2, 3, 1));
    assert_eq!(server.refusals, [(550, 1)].into());
    assert!(server.sessions >= 1 && server.attempts == server.sessions);
    assert_eq!(world.server("192.0.2.77"), ServerReport::default());
}

#[test]
fn the_engine_s_own_answers_are_there() {
    let mut world = world(ServerModel::new().with_greylist(HOUR));
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    assert_eq!(world.queues().len(), 1);
    assert_eq!(&*world.queues()[0].name, "example.net");
    assert!(world.why(id)[0].contains("greylisted"), "{:?}", world.why(id));
    assert!(!world.why_queue("example.net").is_empty());
    assert!(world.why_queue("nothing.example").is_empty());
    assert_eq!(world.verify().map_err(|violation| violation.to_string()), Ok(()));
}
