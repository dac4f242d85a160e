//! CONTROLS table 0, through the whole engine: what a failure means.

use std::time::Duration;

use postrider::dns::DnsErrorKind;
use postrider::event::DeliveryEvent;
use postrider::storage::MemoryStorage;
use postrider::testing::{Behaviour, Command, SmtpServer};

use crate::support::{MX, MX2, World, idle, message};

const TWO_HOSTS: &str = "
example.net. MX 10 mx1.example.net.
example.net. MX 20 mx2.example.net.
mx1.example.net. A 192.0.2.1
mx2.example.net. A 192.0.2.2
";

async fn one_message(world: &World, policy: &str) -> Vec<String> {
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    world.seen.timeline()
}

#[tokio::test(start_paused = true)]
async fn dns_failures_wait_and_charge_nobody() {
    for kind in
        [DnsErrorKind::ServFail, DnsErrorKind::Timeout, DnsErrorKind::Refused, DnsErrorKind::Malformed]
    {
        let world = World::new();
        let server = SmtpServer::new();
        world.server(MX, &server);
        world.zone.fail("example.net", kind);
        let engine = world.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        world.zone.recover("example.net");
        idle(&engine).await;
        assert_eq!(
            world.seen.timeline(),
            ["0 queue-deferred example.net 4.4.3", "600 delivered b@example.net"]
        );
        let Some(DeliveryEvent::Delivered(delivered)) = world.seen.events().pop() else { panic!() };
        assert_eq!(delivered.record.attempts, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_name_server_is_this_machine_s_trouble() {
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    world.zone.fail("example.net", DnsErrorKind::Unreachable);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.zone.recover("example.net");
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 local-trouble", "30 delivered b@example.net"]);
}

#[tokio::test(start_paused = true)]
async fn domains_that_do_not_exist_or_take_no_mail_bounce_at_once() {
    for (zone, status) in [
        ("else.example. A 192.0.2.9", "5.1.2"),
        ("example.net. MX 0 .", "5.1.10"),
        ("www.example.net. A 192.0.2.9", "5.4.4"),
    ] {
        let world = World::new();
        world.zone.set_zone(zone).unwrap();
        assert_eq!(one_message(&world, "").await, [format!("0 bounced b@example.net {status}")], "{zone}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_domain_without_mx_is_its_own_host() {
    let world = World::new();
    world.zone.set_zone("example.net. A 192.0.2.1").unwrap();
    world.server(MX, &SmtpServer::new());
    assert_eq!(one_message(&world, "").await, ["0 delivered b@example.net"]);
}

#[tokio::test(start_paused = true)]
async fn the_next_host_is_tried_within_the_same_attempt() {
    for greeting in ["421 4.3.2 not now", "554 5.3.2 go away", "450 busy"] {
        let world = World::new();
        world.zone.set_zone(TWO_HOSTS).unwrap();
        let (first, second) = (SmtpServer::new().reply(Command::Connect, greeting), SmtpServer::new());
        world.server(MX, &first).server(MX2, &second);
        assert_eq!(one_message(&world, "").await, ["0 delivered b@example.net"], "{greeting}");
        assert_eq!(second.message_count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_421_to_mail_on_a_new_session_counts_as_a_refused_greeting() {
    let world = World::new();
    world.zone.set_zone(TWO_HOSTS).unwrap();
    let (first, second) = (SmtpServer::new().reply(Command::Mail, "421 4.3.2 bye"), SmtpServer::new());
    world.server(MX, &first).server(MX2, &second);
    assert_eq!(one_message(&world, "").await, ["0 delivered b@example.net"]);
    let Some(DeliveryEvent::Delivered(delivered)) = world.seen.events().pop() else { panic!() };
    assert_eq!(delivered.record.attempts, 1);
    assert_eq!(delivered.record.mx.as_deref(), Some("mx2.example.net"));
}

#[tokio::test(start_paused = true)]
async fn a_session_lost_before_the_dot_charges_and_tries_no_other_host() {
    for (command, behaviour) in [
        (Command::Mail, Behaviour::Close),
        (Command::Rcpt, Behaviour::Reset),
        (Command::Data, Behaviour::Close),
        (Command::Mail, Behaviour::Silence),
        (Command::Rcpt, Behaviour::Raw("hello?\r\n".into())),
    ] {
        let world = World::new();
        world.zone.set_zone(TWO_HOSTS).unwrap();
        let first = SmtpServer::new().ehlo(["8BITMIME"]).reply(command, behaviour.clone()).times(1);
        let second = SmtpServer::new();
        world.server(MX, &first).server(MX2, &second);
        let timeline = one_message(&world, "").await;
        assert_eq!(timeline.len(), 2, "{command:?} {behaviour:?} {timeline:?}");
        assert!(timeline[0].contains(" deferred b@example.net"), "{timeline:?}");
        assert!(timeline[1].contains(" delivered b@example.net"), "{timeline:?}");
        let Some(DeliveryEvent::Delivered(delivered)) = world.seen.events().pop() else { panic!() };
        assert_eq!(delivered.record.attempts, 2);
        assert_eq!(first.message_count() + second.message_count(), 1);
    }
}

/// Its sessions open each time, so it is never found dead by that.
#[tokio::test(start_paused = true)]
async fn a_host_that_breaks_each_transaction_is_passed_over_in_a_later_attempt() {
    for (command, behaviour) in [
        (Command::Mail, Behaviour::Close),
        (Command::Rcpt, Behaviour::Reset),
        (Command::Data, Behaviour::Silence),
        (Command::Dot, Behaviour::Close),
    ] {
        let world = World::new();
        world.zone.set_zone(TWO_HOSTS).unwrap();
        let (first, second) = (SmtpServer::new().reply(command, behaviour), SmtpServer::new());
        world.server(MX, &first).server(MX2, &second);
        one_message(&world, "").await;
        let Some(DeliveryEvent::Delivered(delivered)) = world.seen.events().pop() else { panic!() };
        assert_eq!(delivered.record.mx.as_deref(), Some("mx2.example.net"), "{command:?}");
        // Five minutes, ten, and then longer than the interval of ten.
        assert_eq!((delivered.record.attempts, second.message_count()), (4, 1), "{command:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_after_the_dot_is_possibly_delivered_and_waits() {
    let world = World::new();
    world.zone.set_zone(TWO_HOSTS).unwrap();
    let first = SmtpServer::new().reply(Command::Dot, Behaviour::LoseReply).times(1);
    let second = SmtpServer::new();
    world.server(MX, &first).server(MX2, &second);
    let timeline = one_message(&world, "").await;
    assert_eq!(timeline, ["0 deferred b@example.net 4.4.2", "600 delivered b@example.net"]);
    let events = world.seen.events();
    let reasons: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            DeliveryEvent::Deferred(e) => Some(e.diagnosis.reason.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, ["possibly-delivered"]);
}

#[tokio::test(start_paused = true)]
async fn one_recipient_too_many_goes_at_once_in_another_transaction() {
    let world = World::new();
    let server = SmtpServer::new().on(|exchange| {
        (exchange.command == Command::Rcpt && exchange.recipients.len() >= 2)
            .then(|| "452 4.5.3 too many".into())
    });
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "").await;
    let to: Vec<String> = (0..5).map(|n| format!("r{n}@example.net")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    engine.submit(message(&to)).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline().iter().filter(|line| line.starts_with("0 delivered")).count(), 5);
    assert_eq!(server.message_count(), 3);
    for event in world.seen.events() {
        if let DeliveryEvent::Delivered(e) = event {
            assert_eq!(e.record.attempts, 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_local_address_rests_the_source_and_charges_nobody() {
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    world.network.local_trouble(None, "too many open files");
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.network.local_trouble_over();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 local-trouble", "30 delivered b@example.net"]);
}

#[tokio::test(start_paused = true)]
async fn a_5xx_greeting_waits_by_default_and_bounces_if_asked() {
    for (policy, first) in
        [("", "0 queue-deferred"), ("[domain.\"*\"]\nbounce-upon-5xx-greeting = true", "0 bounced")]
    {
        let world = World::new();
        world.server(MX, &SmtpServer::new().reply(Command::Connect, "554 5.7.1 no").times(1));
        let timeline = one_message(&world, policy).await;
        assert!(timeline[0].starts_with(first), "{timeline:?}");
    }
    // RFC 7504: a host that takes no mail at all.
    let world = World::new();
    world.server(MX, &SmtpServer::new().reply(Command::Connect, "521 5.3.2 no mail here"));
    assert_eq!(one_message(&world, "").await, ["0 bounced b@example.net 5.3.2"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_delays_nobody_else() {
    let world = World::new();
    world.network.blackhole(MX.parse().unwrap());
    let fast = SmtpServer::new();
    world.server(MX2, &fast);
    let engine = world.engine(MemoryStorage::new(), "").await;
    for _ in 0..300 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    for _ in 0..50 {
        engine.submit(message(&["d@other.example"])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fast.message_count(), 50);
}
