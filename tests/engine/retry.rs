//! CONTROLS §2: two clocks, durable, and expiry.

use std::time::Duration;

use postrider::event::{DeliveryEvent, Failure};
use postrider::message::Message;
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer};

use crate::support::{MX, MX2, World, idle, message};

const SCHEDULE: &str = r#"
[domain."*"]
retry-after = ["5m", "10m", "15m", "30m", "1h"]
bounce-after = "5h"
"#;

#[tokio::test(start_paused = true)]
async fn a_recipient_waits_5_10_15_30_60_60_minutes() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 busy");
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), SCHEDULE).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    let minutes: Vec<u64> = world
        .seen
        .events()
        .iter()
        .filter_map(|event| match event {
            DeliveryEvent::Deferred(e) => Some(e.next_attempt.saturating_since(e.record.time).as_secs() / 60),
            _ => None,
        })
        .collect();
    assert_eq!(minutes, [5, 10, 15, 30, 60, 60, 60, 60]);
    assert_eq!(world.seen.timeline().last().unwrap(), "18000 bounced b@example.net 4.4.7");
    let Some(DeliveryEvent::Bounced(bounced)) = world.seen.events().pop() else { panic!() };
    let Failure::Reply(reply) = &bounced.diagnosis.failure else { panic!("{:?}", bounced.diagnosis) };
    assert_eq!(reply.to_string(), "450 4.2.0 busy");
    assert_eq!(bounced.record.attempts, 8);
}

#[tokio::test(start_paused = true)]
async fn a_dead_host_costs_one_connection_per_interval_and_charges_nobody() {
    let world = World::new();
    let peer = MX.parse().unwrap();
    world.network.refuse(peer);
    let engine = world.engine(MemoryStorage::new(), SCHEDULE).await;
    for _ in 0..500 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    idle(&engine).await;
    // At 0, 5, 15, 30, 60, 120, 180 and 240 minutes.
    assert_eq!(world.network.attempts(peer), 8);
    let events = world.seen.events();
    let bounced = events.iter().filter_map(|event| match event {
        DeliveryEvent::Bounced(e) => Some(e),
        _ => None,
    });
    let mut count = 0;
    for bounce in bounced {
        assert_eq!(bounce.record.attempts, 0);
        assert_eq!(bounce.diagnosis.reason.as_str(), "never-attempted");
        assert_eq!(bounce.record.queued, Duration::from_secs(5 * 3600));
        count += 1;
    }
    assert_eq!(count, 500);
}

#[tokio::test(start_paused = true)]
async fn a_restart_forgets_no_interval() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 busy").times(2);
    world.server(MX, &server);
    let peer2 = MX2.parse().unwrap();
    world.network.refuse(peer2);
    let store = MemoryStorage::new();
    let mut engine = world.engine(store.clone(), SCHEDULE).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    engine.submit(message(&["d@other.example"])).await.unwrap();
    // Restarted every 100 seconds.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(100)).await;
        engine.shutdown(Duration::from_secs(1)).await;
        engine = world.engine(store.reopened(), SCHEDULE).await;
    }
    tokio::time::timeout(Duration::from_secs(86_400), engine.wait_idle()).await.unwrap().unwrap();
    let timeline = world.seen.timeline();
    let of = |word: &str| -> Vec<&String> { timeline.iter().filter(|line| line.contains(word)).collect() };
    assert_eq!(
        of("b@example.net"),
        ["0 deferred b@example.net 4.2.0", "300 deferred b@example.net 4.2.0", "900 delivered b@example.net"]
    );
    let times: Vec<&str> = of("queue-deferred").iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(times, ["0", "300", "900", "1800", "3600", "7200", "10800", "14400"]);
    assert_eq!(world.network.attempts(peer2), 8);
}

#[tokio::test(start_paused = true)]
async fn the_message_s_own_expiry_holds_even_while_the_destination_waits() {
    let world = World::new();
    world.network.refuse(MX.parse().unwrap());
    let engine = world.engine(MemoryStorage::new(), "").await;
    let short = message(&["short@example.net"]).expires_after(Duration::from_secs(90));
    let long = message(&["long@example.net"]).expires_after(Duration::from_secs(6 * 86_400));
    engine.submit(long).await.unwrap();
    engine.submit(short).await.unwrap();
    engine.submit(message(&["usual@example.net"])).await.unwrap();
    idle(&engine).await;
    let bounces: Vec<String> =
        world.seen.timeline().into_iter().filter(|line| line.contains("bounced")).collect();
    assert_eq!(
        bounces,
        [
            "90 bounced short@example.net 4.4.7",
            "388800 bounced usual@example.net 4.4.7",
            "518400 bounced long@example.net 4.4.7",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn held_mail_waits_and_its_age_counts_from_then() {
    let world = World::new();
    world.network.refuse(MX.parse().unwrap());
    let server = SmtpServer::new();
    world.server(MX2, &server);
    let engine = world.engine(MemoryStorage::new(), "[domain.\"*\"]\nbounce-after = \"1h\"").await;
    let until = crate::support::start() + Duration::from_secs(7200);
    engine.submit(message(&["d@other.example"]).hold_until(until)).await.unwrap();
    engine.submit(message(&["b@example.net"]).hold_until(until)).await.unwrap();
    idle(&engine).await;
    let timeline = world.seen.timeline();
    assert!(timeline.contains(&"7200 delivered d@other.example".to_owned()), "{timeline:?}");
    assert_eq!(timeline.last().unwrap(), "10800 bounced b@example.net 4.4.7");
}

#[tokio::test(start_paused = true)]
async fn max_attempts_expires_by_count() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Mail, "451 4.3.0 later");
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "[domain.\"*\"]\nmax-attempts = 2").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 deferred b@example.net 4.3.0", "600 bounced b@example.net 4.4.7"]);
    let Some(DeliveryEvent::Bounced(bounced)) = world.seen.events().pop() else { panic!() };
    assert_eq!(bounced.diagnosis.reason.as_str(), "too-many-attempts");
}

#[tokio::test(start_paused = true)]
async fn new_mail_waits_with_its_destination_unless_told_otherwise() {
    for (policy, at) in [("", 600), ("[domain.\"*\"]\nretry-upon-new-mail = true", 100)] {
        let world = World::new();
        let engine = world.engine(MemoryStorage::new(), policy).await;
        world.network.refuse(MX.parse().unwrap());
        engine.submit(message(&["b@example.net"])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.server(MX, &SmtpServer::new());
        engine.submit(message(&["c@example.net"])).await.unwrap();
        idle(&engine).await;
        assert_eq!(world.elapsed(), at, "{policy}");
    }
}

#[tokio::test(start_paused = true)]
async fn recipients_of_one_message_part_when_their_outcomes_differ() {
    let world = World::new();
    let server = SmtpServer::new()
        .reply_to_rcpt("later@example.net", "450 4.2.1 later")
        .times(1)
        .reply_to_rcpt("never@example.net", "550 5.1.1 unknown");
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "").await;
    let to = ["now@example.net", "later@example.net", "never@example.net"];
    let body = "Subject: x\r\n\r\n.dots\r\n..\r\nno end";
    engine.submit(Message::new("", to, body).unwrap()).await.unwrap();
    idle(&engine).await;
    let mut timeline = world.seen.timeline();
    timeline.sort();
    assert_eq!(
        timeline,
        [
            "0 bounced never@example.net 5.1.1",
            "0 deferred later@example.net 4.2.1",
            "0 delivered now@example.net",
            "600 delivered later@example.net",
        ]
    );
    let received = server.messages();
    assert_eq!(received.len(), 2);
    for message in received {
        assert_eq!(message.content, [body.as_bytes(), b"\r\n"].concat());
    }
}
