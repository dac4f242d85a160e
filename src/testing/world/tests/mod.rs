//! Worlds, tried.

use std::time::{Duration, Instant};

use super::*;
use crate::reply::Stage;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const ZONE: &str = "example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1";

fn message(to: &str) -> Message {
    Message::new("news@sender.example", [to], "Subject: hi\r\n\r\nhi\r\n").unwrap()
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the bar is one of real time")]
fn fifty_messages_greylisted_for_five_days_expire_in_no_time() {
    let began = Instant::now();
    let policy = Policy::from_toml(
        "[domain.'*']\nretry-after = ['5m', '10m', '15m', '30m', '1h']\nbounce-after = '5d'",
    );
    let mut world = World::builder()
        .policy(policy.unwrap())
        .zone(ZONE)
        .server("192.0.2.1", ServerModel::new().with_greylist(30 * DAY))
        .build()
        .unwrap();
    let ids: Vec<_> = (0..50).map(|n| world.submit(message(&format!("r{n}@example.net"))).unwrap()).collect();
    assert!(world.run_until_idle(6 * DAY));
    eprintln!("{:?} {} {}", began.elapsed(), world.attempts(ids[0], "r0@example.net"), world.trace().len());
    assert_eq!(world.count(Outcome::Bounced), 50);
    let _ = (HOUR, Stage::Mail);
}
