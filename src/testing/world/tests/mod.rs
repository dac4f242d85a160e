//! Worlds, tried: what their parts promise must hold.

mod bad_stores;
mod dns;
mod faults;
mod models;
mod moves;
mod questions;
mod seeds;
mod store;

use std::time::Duration;

use super::*;
use crate::control::{CancelAs, FuseDecision, Selector};
use crate::event::DeliveryEvent;
use crate::reply::Stage;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const ZONE: &str = "example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1";
const SERVER: &str = "192.0.2.1";
const BOB: &str = "bob@example.net";

fn message(to: &str) -> Message {
    Message::new("news@sender.example", [to], "Subject: hi\r\n\r\nhi\r\n").unwrap()
}

fn policy(text: &str) -> Policy {
    Policy::from_toml(text).unwrap()
}

/// Retries after five minutes, ten, and so on.
fn usual() -> Policy {
    policy("[domain.'*']\nretry-after = ['5m', '10m', '15m', '30m', '1h']\nbounce-after = '5d'")
}

fn builder(model: ServerModel) -> WorldBuilder {
    World::builder().policy(usual()).zone(ZONE).server(SERVER, model)
}

fn world(model: ServerModel) -> World {
    builder(model).build().unwrap()
}

fn submit(world: &mut World, count: u32) -> Vec<MessageId> {
    (0..count).map(|n| world.submit(message(&format!("r{n}@example.net"))).unwrap()).collect()
}

/// When each of its transactions began.
fn offered_at(world: &World, id: MessageId) -> Vec<Duration> {
    let timeline = world.timeline(id);
    let offered = timeline.iter().filter(|observation| matches!(observation.seen, Seen::Offered { .. }));
    offered.map(|observation| observation.at).collect()
}

/// When its first recipient ended.
fn ended_at(world: &World, id: MessageId) -> Option<Duration> {
    let timeline = world.timeline(id);
    let end = timeline
        .iter()
        .find(|observation| matches!(&observation.seen, Seen::Event(event) if event.is_final()));
    end.map(|observation| observation.at)
}

/// The codes that refused it, in order.
fn refusals(world: &World, id: MessageId) -> Vec<String> {
    let timeline = world.timeline(id);
    let replies = timeline.iter().filter_map(|observation| match &observation.seen {
        Seen::Answered { reply: Some(reply), .. } if !reply.is_positive() => Some(reply.to_string()),
        _ => None,
    });
    replies.collect()
}

#[test]
fn fifty_messages_greylisted_for_five_days_expire() {
    let mut world = world(ServerModel::new().with_greylist(30 * DAY));
    let ids = submit(&mut world, 50);
    assert!(world.run_until_idle(6 * DAY));
    assert_eq!(world.count(Outcome::Bounced), 50);
    for (n, id) in ids.into_iter().enumerate() {
        let to = format!("r{n}@example.net");
        let Some(DeliveryEvent::Bounced(bounced)) = world.final_event(id, &to) else { panic!("{to}") };
        assert_eq!(bounced.diagnosis.status.to_string(), "4.4.7");
        assert_eq!(ended_at(&world, id), Some(5 * DAY));
        // After the sixth attempt, at two hours, one each hour: 118 more.
        let minutes: Vec<_> = offered_at(&world, id).iter().map(|at| at.as_secs() / 60).collect();
        assert_eq!(minutes[..6], [0, 5, 15, 30, 60, 120]);
        assert_eq!(minutes.len(), 6 + 117);
        assert_eq!(world.attempts(id, &to), minutes.len() as u64);
    }
}
