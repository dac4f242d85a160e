//! The delivery controls and the verbs through the public interface.

use std::fmt::Write;
use std::time::Duration;

use postrider::control::{CancelAs, QueueSort, Selector};
use postrider::dns::StaticResolver;
use postrider::event::DeliveryEvent;
use postrider::message::Domain;
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer};
use postrider::{DeliveryEngine, Policy};

use crate::support::{MX, MX2, World, idle, message};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn world(zone: &str) -> World {
    World { zone: StaticResolver::parse(zone).unwrap(), ..World::new() }
}

async fn submit_each(engine: &DeliveryEngine, domains: usize) {
    let one = |n: usize| message(&[&format!("a@d{n}.example")]);
    for answer in engine.submit_batch((0..domains).map(one).collect()).await {
        answer.unwrap();
    }
}

/// 200 domains, each with an MX name of its own, all of them two addresses.
#[tokio::test(start_paused = true)]
async fn connections_to_an_address_are_limited_across_queues() {
    let mut zone = String::new();
    for n in 0..200 {
        writeln!(zone, "d{n}.example. MX 10 mx.d{n}.example.\nmx.d{n}.example. A 192.0.2.{}", 1 + n % 2)
            .unwrap();
    }
    let world = world(&zone);
    let (one, two) = (SmtpServer::new(), SmtpServer::new());
    world.server(MX, &one).server(MX2, &two);
    world.network.latency(Duration::from_millis(50));
    let policy = "[[ip-connection-limit]]\ncidr = \"192.0.2.0/24\"\nlimit = 3\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    submit_each(&engine, 200).await;
    idle(&engine).await;
    assert_eq!((one.message_count(), two.message_count()), (100, 100));
    assert_eq!((one.peak_connections(), two.peak_connections()), (3, 3));
    assert!(
        world.seen.timeline().iter().all(|line| line.contains("delivered")),
        "nothing was deferred for it"
    );
    assert!(world.elapsed() < 60, "{} s", world.elapsed());
}

/// One message each to 1,000 domains of one provider.
#[tokio::test(start_paused = true)]
async fn domains_of_a_provider_share_a_queue_and_its_sessions() {
    for own_names in [false, true] {
        let mut zone = String::from("mx.provider.example. A 192.0.2.1\n");
        for n in 0..1_000 {
            if own_names {
                writeln!(
                    zone,
                    "d{n}.example. MX 10 d{n}.provider.example.\nd{n}.provider.example. A 192.0.2.1"
                )
                .unwrap();
            } else {
                writeln!(zone, "d{n}.example. MX 10 mx.provider.example.").unwrap();
            }
        }
        let world = world(&zone);
        let server = SmtpServer::new().keep(2_000);
        world.server(MX, &server);
        world.network.latency(Duration::from_millis(20));
        let policy = "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n";
        let engine = world.engine(MemoryStorage::new(), policy).await;
        submit_each(&engine, 1_000).await;
        idle(&engine).await;
        assert_eq!(server.message_count(), 1_000);
        assert!(server.connections() <= 30, "{} connections, own names: {own_names}", server.connections());
        for event in world.seen.events() {
            let DeliveryEvent::Delivered(delivered) = event else { continue };
            assert_eq!(&*delivered.record.queue, "provider.rollup");
            assert_eq!(delivered.record.domain, *delivered.record.recipient.domain());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_host_costs_one_connection_an_interval_also_behind_a_rollup() {
    let mut zone = String::from(
        "mx.provider.example. A 192.0.2.1\nexample.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.2\n",
    );
    for n in 0..500 {
        writeln!(zone, "d{n}.example. MX 10 mx.provider.example.").unwrap();
    }
    let world = world(&zone);
    world.network.refuse(MX.parse().unwrap()).refuse(MX2.parse().unwrap());
    let policy = "[[rollup]]\nqueue = \"provider.rollup\"\nmx = [\"*.provider.example\"]\n\
                  [domain.\"*\"]\nretry-after = [\"10m\"]\nbounce-after = \"2h\"\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    submit_each(&engine, 500).await;
    let same: Vec<_> = (0..500).map(|_| message(&["a@example.net"])).collect();
    engine.submit_batch(same).await;
    idle(&engine).await;
    // At 0, 10, … 110 minutes.
    assert_eq!(world.network.attempts(MX.parse().unwrap()), 12);
    assert_eq!(world.network.attempts(MX2.parse().unwrap()), 12);
    assert_eq!(world.elapsed(), 7_200);
}

/// A typo: the domain has an address and no MX. One host is dead, the other takes mail.
#[tokio::test(start_paused = true)]
async fn domains_without_mx_bounce_after_a_grace_period() {
    let world = world("gmial.example. A 192.0.2.1\nhost.example. A 192.0.2.2\n");
    world.network.blackhole(MX.parse().unwrap());
    let host = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 later").times(2);
    world.server(MX2, &host);
    let policy = "[domain.\"*\"]\nbounce-upon-no-mx = \"1h\"\nretry-after = [\"25m\", \"3h\"]\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["a@gmial.example"])).await.unwrap();
    engine.submit(message(&["a@host.example"])).await.unwrap();
    idle(&engine).await;
    let bounced: Vec<_> = world.seen.timeline().into_iter().filter(|line| line.contains("bounced")).collect();
    assert_eq!(bounced, ["3600 bounced a@gmial.example 5.4.4", "3600 bounced a@host.example 5.4.4"]);
    host.clear();
    engine.submit(message(&["b@host.example"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(host.message_count(), 1, "delivered within it");
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_bounces_by_rule() {
    let world = world(
        "gmail.example. MX 5 gmail-smtp-in.l.google.example.\ngmail-smtp-in.l.google.example. A 192.0.2.1\n",
    );
    let quota = "452 4.2.2 The email account that you tried to reach is over quota";
    let server = SmtpServer::new().reply_to_rcpt("full@gmail.example", quota);
    let server = server
        .reply_to_rcpt("slow@gmail.example", "452 4.2.1 The user is receiving mail too quickly")
        .times(1);
    world.server(MX, &server);
    let policy = "[[reply-rule]]\nname = \"gmail-over-quota\"\n\
                  match = '^452 4\\.2\\.2 .*(over ?quota|out of storage)'\nactions = [\"bounce-rcpt\"]\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["full@gmail.example", "slow@gmail.example"])).await.unwrap();
    idle(&engine).await;
    let mut timeline = world.seen.timeline();
    timeline.sort();
    assert_eq!(
        timeline,
        [
            "0 bounced full@gmail.example 4.2.2",
            "0 deferred slow@gmail.example 4.2.1",
            "600 delivered slow@gmail.example"
        ]
    );
    let rule = world.seen.events().into_iter().find_map(|event| match event {
        DeliveryEvent::Bounced(bounced) => bounced.diagnosis.rule,
        _ => None,
    });
    assert_eq!(rule.as_deref(), Some("gmail-over-quota"));
}

#[tokio::test(start_paused = true)]
async fn queues_are_shown_paused_and_resumed() {
    let world = World::new();
    let (net, other) = (SmtpServer::new(), SmtpServer::new());
    world.server(MX, &net).server(MX2, &other);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.pause(Domain::parse("example.net").unwrap()).await.unwrap();
    for _ in 0..3 {
        engine.submit(message(&["a@example.net", "b@other.example"])).await.unwrap();
    }
    tokio::time::sleep(HOUR).await;
    assert_eq!((net.message_count(), other.message_count()), (0, 3));
    let queues = engine.queues(QueueSort::Items, 10).await.unwrap();
    let [queue] = &queues[..] else { panic!("{queues:?}") };
    assert_eq!((&*queue.name, queue.items, queue.paused), ("example.net", 3, true));
    assert_eq!(queue.oldest, Some(HOUR));
    assert!(engine.resume(Domain::parse("example.net").unwrap()).await.unwrap());
    assert!(!engine.resume(Domain::parse("example.net").unwrap()).await.unwrap());
    idle(&engine).await;
    assert_eq!(net.message_count(), 3);
}

#[tokio::test(start_paused = true)]
async fn mail_is_retried_now_and_cancelled_by_the_queue() {
    let world = World::new();
    let net = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 later").times(2);
    world.server(MX, &net);
    let engine = world.engine(MemoryStorage::new(), "[domain.\"*\"]\nretry-after = [\"5h\"]\n").await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(engine.retry_now(Selector::queue("example.net")).await.unwrap(), 1);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.seen.timeline().len(), 2);
    let report = engine.cancel_all(Selector::queue("example.net"), CancelAs::Bounced).await.unwrap();
    assert_eq!(report.cancelled, 1);
    idle(&engine).await;
    assert_eq!(world.seen.timeline().last().unwrap(), "120 bounced a@example.net 5.0.0");
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_replaced_while_mail_waits() {
    let world = World::new();
    let net = SmtpServer::new().reply(Command::Rcpt, "452 4.2.2 over quota");
    world.server(MX, &net);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let rule = "[[reply-rule]]\nname = \"quota\"\nmatch = 'over quota'\nactions = [\"bounce-rcpt\"]\n";
    engine.set_policy(Policy::from_toml(rule).unwrap()).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 deferred a@example.net 4.2.2", "600 bounced a@example.net 4.2.2"]);
}

#[tokio::test(start_paused = true)]
async fn backoff_is_entered_by_a_rule_and_left_by_a_delivery() {
    let world = World::new();
    let net = SmtpServer::new().reply(Command::Rcpt, "450 4.7.1 slow down").times(1);
    world.server(MX, &net);
    let policy = "[[reply-rule]]\nname = \"slow\"\nmatch = 'slow down'\nactions = [\"mode=backoff\"]\n\
                  [domain.\"*\"]\nretry-after = [\"1m\"]\nbackoff-retry-after = [\"1h\"]\n\
                  backoff-to-normal-after-delivery = true\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["a@example.net"])).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(engine.stats().await.unwrap().in_backoff, 1);
    idle(&engine).await;
    let modes: Vec<_> = world
        .seen
        .events()
        .into_iter()
        .filter_map(|event| match event {
            DeliveryEvent::QueueMode(mode) => Some((mode.mode.as_str(), mode.rule)),
            _ => None,
        })
        .collect();
    assert_eq!(modes, [("backoff", Some("slow".into())), ("normal", None)]);
    assert_eq!(world.elapsed(), 3_600, "backoff's own interval");
}

#[tokio::test(start_paused = true)]
async fn held_mail_is_cancelled_by_queue_domain_and_source() {
    let selectors: [Selector; 3] = [
        Selector::queue("example.net"),
        Domain::parse("example.net").unwrap().into(),
        Selector::source("default"),
    ];
    for selector in selectors {
        let world = World::new();
        let net = SmtpServer::new();
        world.server(MX, &net);
        let engine = world.engine(MemoryStorage::new(), "").await;
        let held = message(&["a@example.net"]).hold_until(crate::support::start() + 5 * HOUR);
        engine.submit(held).await.unwrap();
        tokio::time::sleep(MINUTE).await;
        let report = engine.cancel_all(selector, CancelAs::Cancelled).await.unwrap();
        idle(&engine).await;
        assert_eq!((report.cancelled, net.message_count()), (1, 0)); // is (0, 1)
    }
}

#[tokio::test(start_paused = true)]
async fn bounce_queue_bounces_held_mail_too() {
    let world = World::new();
    let net = SmtpServer::new().reply(Command::Rcpt, "450 4.7.0 kill").times(1);
    world.server(MX, &net);
    let rule = "[[reply-rule]]\nname = \"k\"\nmatch = 'kill'\nactions = [\"bounce-queue\"]\n";
    let engine = world.engine(MemoryStorage::new(), rule).await;
    engine.submit(message(&["held@example.net"]).hold_until(crate::support::start() + HOUR)).await.unwrap();
    engine.submit(message(&["a@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(net.message_count(), 0); // is 1: held@ is delivered after an hour
}

#[tokio::test(start_paused = true)]
async fn retry_now_does_not_override_hold_until() {
    let world = World::new();
    let net = SmtpServer::new();
    world.server(MX, &net);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine
        .submit(message(&["held@example.net"]).hold_until(crate::support::start() + 5 * HOUR))
        .await
        .unwrap();
    tokio::time::sleep(MINUTE).await;
    engine.retry_now(Selector::queue("example.net")).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["18000 delivered held@example.net"]); // is "60 delivered …"
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_says_what_held_it() {
    let cases = [
        ("[domain.\"*\"]\nmax-msg-rate = \"1/h\"\n", "max-msg-rate"),
        ("[domain.\"*\"]\nmax-smtp-out = 1\n", "max-smtp-out"),
        ("[engine]\nmax-connections = 1\n", "max-connections"),
        ("[[ip-connection-limit]]\ncidr = \"0.0.0.0/0\"\nlimit = 1\n", "ip-connection-limit"),
        ("", "paused"),
    ];
    for (policy, held_by) in cases {
        let world = World::new();
        let slow = postrider::testing::Behaviour::Slow(9 * MINUTE);
        let net = SmtpServer::new().reply(Command::Dot, slow);
        world.server(MX, &net);
        let engine = world.engine(MemoryStorage::new(), policy).await;
        if policy.is_empty() {
            engine.pause(Selector::queue("example.net")).await.unwrap();
        }
        engine.submit(message(&["a@example.net"])).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        engine.submit(message(&["b@example.net"]).expires_after(5 * MINUTE)).await.unwrap();
        tokio::time::sleep(6 * MINUTE).await;
        let said = world.seen.events().into_iter().find_map(|event| match event {
            DeliveryEvent::Bounced(bounced) => Some(format!("{:?}", bounced.diagnosis.failure)),
            _ => None,
        });
        assert!(said.as_ref().unwrap().contains(held_by), "{held_by}: {said:?}");
        // is: Engine("expired at an age of 300 s, before an attempt"), five times
    }
}

#[tokio::test(start_paused = true)]
async fn a_fuse_blown_by_the_no_mx_deadline_is_decided_by_the_host() {
    use postrider::control::FuseDecision;
    for decision in [FuseDecision::Bounce, FuseDecision::Keep] {
        let world = world("b.example. A 192.0.2.1\n");
        world.network.refuse(MX.parse().unwrap());
        let policy = "[domain.\"*\"]\nbounce-upon-no-mx = \"1h\"\nretry-after = [\"25m\"]\nbounce-after = \"9h\"\n\
                      bounce-fuse = \"1/1h\"\n";
        let engine = world.engine(MemoryStorage::new(), policy).await;
        for k in 0..4 {
            engine.submit(message(&[&format!("x{k}@b.example")])).await.unwrap();
        }
        tokio::time::sleep(70 * MINUTE).await;
        let bounced = || world.seen.timeline().iter().filter(|line| line.contains("bounced")).count();
        assert_eq!(bounced(), 1);
        let held = engine.decide_fuse("b.example", decision).await.unwrap();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(held, 3); // is 0
        // is 2 both times
        assert_eq!(bounced(), if decision == FuseDecision::Bounce { 4 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn priorities_are_drawn_by_weight_also_where_a_rate_is_low() {
    use postrider::message::Priority;
    let world = World::new();
    let net = SmtpServer::new();
    world.server(MX, &net);
    let engine = world.engine(MemoryStorage::new(), "[domain.\"*\"]\nmax-msg-rate = \"1/s\"\n").await;
    for n in 0..100 {
        for (priority, name) in [(Priority::Low, "l"), (Priority::Normal, "n"), (Priority::High, "h")] {
            engine
                .submit(message(&[&format!("{name}{n}@example.net")]).with_priority(priority))
                .await
                .unwrap();
        }
    }
    idle(&engine).await;
    let order: Vec<char> = net.messages().iter().map(|m| m.recipients[0].chars().next().unwrap()).collect();
    let last_high = order.iter().rposition(|&c| c == 'h').unwrap();
    // While there is high mail, any 21 in a row have about 16 of it: 8 is generous. Is 0 of 36.
    for part in order[..last_high].windows(21) {
        assert!(part.iter().filter(|&&c| c == 'h').count() >= 8, "{}", order.iter().collect::<String>());
    }
}

#[tokio::test(start_paused = true)]
async fn due_retries_and_fresh_mail_alternate_where_a_rate_is_low() {
    let world = World::new();
    let net = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 later").times(300);
    world.server(MX, &net);
    let engine = world.engine(MemoryStorage::new(), "[domain.\"*\"]\nretry-after = [\"10m\"]\n").await;
    for n in 0..300 {
        engine.submit(message(&[&format!("o{n}@example.net")])).await.unwrap();
    }
    tokio::time::sleep(5 * MINUTE).await;
    let slow = Policy::from_toml("[domain.\"*\"]\nmax-msg-rate = \"1/s\"\n").unwrap();
    engine.set_policy(slow).await.unwrap();
    tokio::time::sleep(6 * MINUTE).await;
    let before = net.message_count() as usize; // about 60
    for n in 0..300 {
        engine.submit(message(&[&format!("f{n}@example.net")])).await.unwrap();
    }
    idle(&engine).await;
    let order: String = net.messages().iter().map(|m| m.recipients[0].chars().next().unwrap()).collect();
    let first = order.find('f').unwrap() - before;
    assert!(first <= 10, "{first} retries before the first fresh message: {order}"); // is 134
}

#[tokio::test(start_paused = true)]
async fn a_queue_without_a_connection_comes_before_a_second_one_of_a_big_queue() {
    let mut zone = String::from("mx.p.example. A 192.0.2.1\n");
    for n in 0..10 {
        writeln!(zone, "d{n}.example. MX 10 mx.p.example.").unwrap();
    }
    let world = world(&zone);
    let slow = postrider::testing::Behaviour::Slow(Duration::from_secs(1));
    let net = SmtpServer::new().reply(Command::Dot, slow);
    world.server(MX, &net);
    let policy = "[[ip-connection-limit]]\ncidr = \"0.0.0.0/0\"\nlimit = 1\n";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    for n in 0..500 {
        engine.submit(message(&[&format!("b{n}@d0.example")])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    for d in 1..10 {
        engine.submit(message(&[&format!("s@d{d}.example")])).await.unwrap();
    }
    idle(&engine).await;
    let order: String = net.messages().iter().map(|m| m.recipients[0].chars().next().unwrap()).collect();
    let first = order.find('s').unwrap();
    assert!(first <= 100, "{first}"); // is 200
}
