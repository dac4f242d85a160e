//! What a [`ServerModel`] promises.

use super::*;

#[test]
fn a_greylist_is_by_sender_and_recipient() {
    let mut world = world(ServerModel::new().with_greylist(4 * MINUTE));
    let first = world.submit(message(BOB)).unwrap();
    world.run_for(HOUR);
    assert_eq!(offered_at(&world, first), [Duration::ZERO, 5 * MINUTE]);
    assert_eq!(refusals(&world, first), ["451 4.7.1 greylisted, try again later"]);
    let again = world.submit(message(BOB)).unwrap();
    let other_recipient = world.submit(message("ann@example.net")).unwrap();
    let other_sender = Message::new("else@sender.example", [BOB], "hi\r\n").unwrap();
    let other_sender = world.submit(other_sender).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(offered_at(&world, again).len(), 1);
    assert_eq!(offered_at(&world, other_recipient).len(), 2);
    assert_eq!(offered_at(&world, other_sender).len(), 2);
}

#[test]
fn a_greylist_and_limits_are_by_client_address() {
    let sources =
        "[[source]]\nname = 'a'\naddress = '203.0.113.1'\n[[source]]\nname = 'b'\naddress = '203.0.113.2'";
    let model = ServerModel::new().with_greylist(4 * MINUTE).with_message_rate(1, HOUR);
    let mut world =
        World::builder().policy(policy(sources)).zone(ZONE).server(SERVER, model).build().unwrap();
    for source in ["a", "b"] {
        let id = world.submit(message(BOB).with_source(source)).unwrap();
        world.run_for(15 * MINUTE);
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered);
        assert_eq!(offered_at(&world, id).len(), 2, "{source} is new to it, and has a rate of its own");
    }
}

#[test]
fn a_message_rate_holds_in_any_stretch_of_time() {
    let model = ServerModel::new().with_message_rate(10, HOUR).with_reply_latency(SECOND);
    let mut world = world(model);
    let ids = submit(&mut world, 40);
    assert!(world.run_until_idle(2 * DAY));
    assert_eq!(world.count(Outcome::Delivered), 40);
    let mut taken: Vec<_> = ids.iter().filter_map(|id| offered_at(&world, *id).last().copied()).collect();
    taken.sort_unstable();
    // Those that were on their way at the same time count as well.
    assert!(taken.windows(11).all(|eleven| eleven[10] - eleven[0] >= HOUR - 2 * SECOND), "{taken:?}");
    let refused = ids.iter().flat_map(|id| refusals(&world, *id));
    assert!(refused.into_iter().all(|reply| reply.starts_with("421 4.7.28")));
    assert!(world.server(SERVER).refusals[&421] > 0);
}

#[test]
fn a_connection_limit_greets_with_421() {
    let mut world = world(ServerModel::new().with_connection_limit(2).with_reply_latency(10 * SECOND));
    submit(&mut world, 40);
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.count(Outcome::Delivered), 40);
    let (mut open, mut most, mut refused) = (std::collections::BTreeSet::new(), 0, 0);
    for observation in world.trace() {
        match observation.seen {
            Seen::Connected { connection } => drop(open.insert(connection)),
            Seen::Closed { connection } => drop(open.remove(&connection)),
            Seen::NotConnected { reply: Some(reply), .. } => {
                assert!(reply.to_string().starts_with("421 4.7.0"), "{reply}");
                refused += 1;
            }
            _ => {}
        }
        most = most.max(open.len());
    }
    assert_eq!(most, 2);
    assert!(refused > 0);
    assert_eq!(world.server(SERVER).refusals[&421], refused);
}

#[test]
fn a_connection_takes_so_many_messages() {
    let text = "[domain.'*']\nmax-smtp-out = 1";
    let model = ServerModel::new().with_messages_per_connection(3);
    let mut world = World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap();
    submit(&mut world, 7);
    assert!(world.run_until_idle(DAY));
    let server = world.server(SERVER);
    assert_eq!((server.taken, server.sessions), (7, 3));
    assert_eq!(server.refusals[&421], 2, "the fourth of two of them");
}

#[test]
fn latencies_add_up() {
    let model = ServerModel::new().with_connect_latency(3 * SECOND).with_reply_latency(2 * SECOND);
    let mut world = world(model);
    let id = world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(DAY));
    // Greeting, EHLO; then the envelope, the content.
    assert_eq!(offered_at(&world, id), [7 * SECOND]);
    assert_eq!(ended_at(&world, id), Some(11 * SECOND));
}

#[test]
fn a_latency_past_the_timeout_is_one() {
    for (model, words) in [
        (ServerModel::new().with_connect_latency(DAY), "no answer"),
        (ServerModel::new().with_reply_latency(DAY), "no answer"),
        (ServerModel::blackhole(), "no answer"),
    ] {
        let text = "[smtp]\nconnect-timeout = '20s'\ngreeting-timeout = '20s'";
        let mut world =
            World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap();
        world.submit(message(BOB)).unwrap();
        world.run_for(MINUTE);
        let failed = world.trace().into_iter().find_map(|observation| match observation.seen {
            Seen::NotConnected { error, .. } => Some((observation.at, error)),
            _ => None,
        });
        let (at, error) = failed.unwrap();
        assert_eq!(at, 20 * SECOND);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn mailboxes_answer_for_themselves() {
    let model = ServerModel::new()
        .with_mailbox("Gone@example.net", "550 5.1.1 no such user")
        .with_mailbox("full@example.net", "452 4.2.2 full")
        .with_mailbox(BOB, "250 2.1.5 welcome")
        .with_other_mailboxes("550 5.1.1 who?");
    let mut world = world(model);
    let to = ["gone@example.net", "full@example.net", BOB, "ann@example.net"];
    let id = world.submit(Message::new("news@sender.example", to, "hi\r\n").unwrap()).unwrap();
    world.run_for(MINUTE);
    let outcomes = to.map(|to| world.outcome(id, to));
    use Outcome::{Bounced, Delivered, Queued};
    assert_eq!(outcomes, [Bounced, Queued, Delivered, Bounced]);
}

#[test]
fn one_that_demands_tls_refuses_mail_without() {
    let text = "[domain.'*']\nuse-starttls = 'off'";
    let model = ServerModel::new().with_tls(ModelTls::Required);
    let mut world = World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap();
    let id = world.submit(message(BOB)).unwrap();
    world.run_for(MINUTE);
    assert!(refusals(&world, id)[0].starts_with("530 5.7.0"));
    assert_eq!(world.server(SERVER).taken, 0);
}

#[cfg(feature = "tls")]
#[test]
fn tls_is_as_the_queue_wishes() {
    use crate::event::DeliveryEvent;
    use ModelTls::{None, Offered, Required};
    for (level, offers, outcome) in [
        ("off", None, Some(false)),
        ("off", Offered, Some(false)),
        ("opportunistic", None, Some(false)),
        ("opportunistic", Offered, Some(true)),
        ("opportunistic", Required, Some(true)),
        ("required", None, Option::None),
        ("required", Offered, Some(true)),
        ("verify", None, Option::None),
        ("verify", Required, Some(true)),
    ] {
        let policy = policy(&format!("[domain.'*']\nuse-starttls = '{level}'"));
        let model = ServerModel::new().with_tls(offers);
        let mut world = World::builder().policy(policy).zone(ZONE).server(SERVER, model).build().unwrap();
        let id = world.submit(message(BOB)).unwrap();
        world.run_for(HOUR);
        let tls = world.trace().into_iter().find_map(|observation| match observation.seen {
            Seen::Event(event) => match *event {
                DeliveryEvent::Delivered(event) => Some(event.tls.is_some()),
                DeliveryEvent::QueueDeferred(event) => {
                    assert_eq!(event.diagnosis.status.to_string(), "4.7.4", "{level} at {offers:?}");
                    Option::None
                }
                _ => Option::None,
            },
            _ => Option::None,
        });
        assert_eq!(tls, outcome, "{level} at {offers:?}");
        let expected = if outcome.is_some() { Outcome::Delivered } else { Outcome::Queued };
        assert_eq!(world.outcome(id, BOB), expected);
    }
}

#[test]
fn idle_sessions_are_ended() {
    let text = "[domain.'*']\nconnection-idle-timeout = '1m'";
    let model = ServerModel::new().with_idle_timeout(20 * SECOND);
    let mut world = World::builder().policy(policy(text)).zone(ZONE).server(SERVER, model).build().unwrap();
    world.submit(message(BOB)).unwrap();
    world.run_for(2 * MINUTE);
    let closed = |observation: &Observation| matches!(observation.seen, Seen::Closed { .. });
    let closed = world.trace().into_iter().find(closed).unwrap();
    assert_eq!(closed.at, 20 * SECOND);
}

#[test]
fn failures_have_their_time() {
    let model = ServerModel::new().with_failure(MINUTE..HOUR, Failure::Refuse);
    let mut world = world(model);
    let before = world.submit(message(BOB)).unwrap();
    world.run_for(2 * MINUTE);
    let within = world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(offered_at(&world, before), [Duration::ZERO]);
    // 2, 7, 17, 32 and 62 minutes: only the last of these is past the hour.
    assert_eq!(offered_at(&world, within), [62 * MINUTE]);
    assert_eq!(world.server(SERVER).attempts, 6);
}

#[test]
fn failures_come_at_their_stage() {
    let reply = |stage| Failure::Reply(stage, "450 4.3.0 later".to_owned());
    let stages = [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];
    for failure in stages.into_iter().flat_map(|stage| [reply(stage), Failure::Close(stage)]) {
        let mut world = world(ServerModel::new().with_failure(Duration::ZERO..4 * MINUTE, failure.clone()));
        let id = world.submit(message(BOB)).unwrap();
        world.run_for(MINUTE);
        let server = world.server(SERVER);
        let connects = !matches!(
            failure,
            Failure::Reply(Stage::Connect | Stage::Ehlo, _) | Failure::Close(Stage::Connect | Stage::Ehlo)
        );
        assert_eq!(server.sessions > 0, connects, "{failure:?}");
        assert_eq!(world.outcome(id, BOB), Outcome::Queued, "{failure:?}");
        let lost = failure == Failure::Close(Stage::Dot) && server.taken == 1;
        assert_eq!(server.taken, u64::from(lost), "{failure:?}");
        assert!(world.run_until_idle(DAY), "{failure:?}");
        assert_eq!(world.outcome(id, BOB), Outcome::Delivered, "{failure:?}");
    }
}

#[test]
fn a_failure_by_chance_comes_that_often() {
    let busy = Failure::Reply(Stage::Rcpt, "450 4.2.1 busy".to_owned());
    let mut world = world(ServerModel::new().with_chance_of(0.25, busy));
    submit(&mut world, 400);
    world.run_for(MINUTE);
    let server = world.server(SERVER);
    assert_eq!(server.transactions, 400);
    assert!((70..130).contains(&server.refusals[&450]), "{server:?}");
}

#[test]
fn slowness_has_its_time_and_its_chance() {
    let slow = Failure::Slow(10 * SECOND);
    let by_time = ServerModel::new().with_failure(Duration::ZERO..HOUR, slow.clone());
    for model in [by_time, ServerModel::new().with_chance_of(1.0, slow.clone())] {
        let mut world = world(model);
        let id = world.submit(message(BOB)).unwrap();
        assert!(world.run_until_idle(DAY));
        assert_eq!(ended_at(&world, id), Some(40 * SECOND));
    }
    let mut world = world(ServerModel::new().with_chance_of(0.5, slow));
    let ids = submit(&mut world, 100);
    assert!(world.run_until_idle(DAY));
    let slow = ids.iter().filter(|id| {
        let end = ended_at(&world, **id).unwrap();
        offered_at(&world, **id)[0] < end
    });
    // One of two answers is enough.
    assert!((60..90).contains(&slow.count()));
}

#[test]
fn a_text_that_is_no_reply_is_refused() {
    for model in [
        ServerModel::new().with_mailbox(BOB, "no"),
        ServerModel::new().with_other_mailboxes("99 no"),
        ServerModel::new().with_chance_of(0.1, Failure::Reply(Stage::Mail, "hello".to_owned())),
        ServerModel::new().with_failure(Duration::ZERO..HOUR, Failure::Reply(Stage::Mail, String::new())),
    ] {
        assert!(matches!(builder(model.clone()).build(), Err(WorldError::Reply { .. })));
        let elsewhere = World::builder().servers_elsewhere(model.clone()).build();
        assert!(matches!(elsewhere, Err(WorldError::Reply { .. })));
        let mut world = world(ServerModel::new());
        assert!(matches!(world.set_server(SERVER, model), Err(WorldError::Reply { .. })));
    }
}

#[test]
fn what_no_model_can_do_is_refused() {
    let refused = |model: ServerModel| builder(model).build().unwrap_err();
    for wrong in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(
            refused(ServerModel::new().with_chance_of(wrong, Failure::Refuse)),
            WorldError::Chance(_)
        ));
        let fault = DnsFault::new(DnsLie::NxDomain).with_chance(wrong);
        let built = builder(ServerModel::new()).dns_fault(fault.clone()).build();
        assert!(matches!(built.unwrap_err(), WorldError::Chance(_)));
        assert!(matches!(world(ServerModel::new()).set_dns_faults([fault]), Err(WorldError::Chance(_))));
    }
    let turned = [Latency::Uniform(2 * SECOND, SECOND), Latency::Skewed { median: 2 * SECOND, p99: SECOND }];
    for latency in turned {
        assert_eq!(refused(ServerModel::new().with_reply_latency(latency)), WorldError::Latency(latency));
        assert_eq!(refused(ServerModel::new().with_connect_latency(latency)), WorldError::Latency(latency));
    }
    let reply = |stage, text: &str| Failure::Reply(stage, text.to_owned());
    for (model, wanted) in [
        (ServerModel::new().with_failure(HOUR..HOUR, Failure::Refuse), "must end after it begins"),
        (ServerModel::new().with_message_rate(10, Duration::ZERO), "10 in no time"),
        (ServerModel::new().with_mailbox("bob", "550 no"), "`bob` is no mailbox"),
        (ServerModel::new().with_mailbox("<bob@example.net>", "550 no"), "is no mailbox"),
        (ServerModel::new().with_chance_of(0.5, Failure::Close(Stage::Dns)), "at the stage dns"),
        (ServerModel::new().with_chance_of(0.5, reply(Stage::Queue, "450 no")), "at the stage queue"),
        (ServerModel::new().with_chance_of(0.5, reply(Stage::Connect, "220 hi")), "`220 hi` is no failure"),
    ] {
        let error = refused(model).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let never = DnsFault::new(DnsLie::NxDomain).during(2 * HOUR..HOUR);
    let of_nobody = DnsFault::new(DnsLie::NxDomain).about("exa mple..net");
    let literal = DnsFault::new(DnsLie::Exchanger("192.0.2.1".to_owned()));
    for (fault, wanted) in [(never, "DNS lies"), (of_nobody, "exa mple..net"), (literal, "192.0.2.1")] {
        let error = builder(ServerModel::new()).dns_fault(fault).build().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let twice = builder(ServerModel::new()).server(format!("::ffff:{SERVER}"), ServerModel::new());
    assert!(matches!(twice.build().unwrap_err(), WorldError::Twice(_)));
    let nameless = DnsFault::new(DnsLie::Exchanger("not a host".to_owned()));
    let built = builder(ServerModel::new()).dns_fault(nameless).build();
    assert_eq!(built.unwrap_err(), WorldError::Exchanger("not a host".to_owned()));
}

#[test]
fn a_server_is_asked_by_its_address_whatever_its_port() {
    let other = policy("[smtp]\nport = 2525\n[domain.'*']\nretry-after = ['5m']");
    let model = ServerModel::new();
    let mut world = builder(model.clone()).server("192.0.2.1:2525", model).build().unwrap();
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(HOUR));
    world.set_policy(other);
    world.submit(message(BOB)).unwrap();
    assert!(world.run_until_idle(3 * DAY));
    assert_eq!((world.server("192.0.2.1:25").taken, world.server("192.0.2.1:2525").taken), (1, 1));
    assert_eq!(world.server(SERVER).taken, 2);
}
