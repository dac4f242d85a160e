//! Mail under the policy, against receivers as they are. Days pass in moments; an oracle watches all along.

use std::time::Duration;

use outside::policy;
use postrider::Message;
use postrider::testing::{Failure, Key, Outcome, ServerModel, World};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Two tenants of one provider, and a domain with a server of its own.
const ZONE: &str = "
    shop.example.            MX 10 in1.mx.bigmail.example.
    club.example.            MX 10 in1.mx.bigmail.example.
    in1.mx.bigmail.example.  A  192.0.2.1
    example.net.             MX 10 mx.example.net.
    mx.example.net.          A  198.51.100.1
";

fn message(to: &str) -> Message {
    Message::new("news@sender.example", [to], "Subject: hello\r\n\r\nhello\r\n").unwrap()
}

#[test]
fn a_greylisted_message_arrives_at_the_second_attempt() {
    let greylisting = ServerModel::new().with_greylist(Duration::from_secs(240));
    let mut world =
        World::builder().policy(policy()).zone(ZONE).server("198.51.100.1", greylisting).build().unwrap();
    let id = world.submit(message("ann@example.net")).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.outcome(id, "ann@example.net"), Outcome::Delivered);
    assert_eq!(world.attempts(id, "ann@example.net"), 2);
}

#[test]
fn tenants_share_the_connections_of_their_provider() {
    let slow = ServerModel::new().with_reply_latency(Duration::from_secs(20));
    let mut world = World::builder().policy(policy()).zone(ZONE).server("192.0.2.1", slow).build().unwrap();
    for number in 0..50 {
        let domain = ["shop.example", "club.example"][number % 2];
        world.submit(message(&format!("r{number}@{domain}"))).unwrap();
    }
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.count(Outcome::Delivered), 50);
    // Four by the queue, two by the address: the smaller counts.
    assert_eq!(world.peak_connections(Key::Queue("bigmail.rollup".to_owned())), 2);
}

#[test]
fn a_provider_is_never_offered_more_than_its_rate() {
    let fast = ServerModel::new();
    let mut world = World::builder().policy(policy()).zone(ZONE).server("192.0.2.1", fast).build().unwrap();
    for number in 0..1_500 {
        world.submit(message(&format!("r{number}@shop.example"))).unwrap();
    }
    world.run_for(2 * HOUR);
    // The rate is paced evenly. One is offered at once.
    assert!((590..=601).contains(&world.most_offered_in("192.0.2.1", HOUR)));
}

#[test]
fn a_provider_that_slows_down_puts_its_queue_into_backoff() {
    let strict = ServerModel::new().with_message_rate(50, HOUR);
    let mut world = World::builder().policy(policy()).zone(ZONE).server("192.0.2.1", strict).build().unwrap();
    for number in 0..100 {
        world.submit(message(&format!("r{number}@shop.example"))).unwrap();
    }
    world.run_for(HOUR / 2);
    let why = world.why_queue("bigmail.rollup").join("\n");
    assert!(why.contains("backoff"), "{why}");
    assert!(world.run_until_idle(2 * DAY));
    assert_eq!(world.count(Outcome::Delivered), 100);
}

#[test]
fn a_full_mailbox_bounces_and_its_neighbour_does_not() {
    let model = ServerModel::new().with_mailbox("full@example.net", "452 4.2.2 mailbox full");
    let mut world =
        World::builder().policy(policy()).zone(ZONE).server("198.51.100.1", model).build().unwrap();
    let recipients = ["full@example.net", "ann@example.net"];
    let id = world.submit(Message::new("news@sender.example", recipients, "hello\r\n").unwrap()).unwrap();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.outcome(id, "full@example.net"), Outcome::Bounced);
    assert_eq!(world.attempts(id, "full@example.net"), 3);
    assert_eq!(world.outcome(id, "ann@example.net"), Outcome::Delivered);
}

#[test]
fn an_outage_of_a_day_costs_no_mail_over_crash_and_restart() {
    let down = ServerModel::new().with_failure(Duration::ZERO..DAY, Failure::Refuse);
    let mut world =
        World::builder().policy(policy()).zone(ZONE).server("198.51.100.1", down).build().unwrap();
    for number in 0..30 {
        world.submit(message(&format!("r{number}@example.net"))).unwrap();
    }
    world.run_for(10 * HOUR);
    world.crash();
    world.run_for(10 * HOUR);
    world.restart();
    assert!(world.run_until_idle(DAY));
    assert_eq!(world.count(Outcome::Delivered), 30);
    // One connection per interval, however much mail waits, and then what is needed.
    assert!(world.server("198.51.100.1").attempts < 40);
}
