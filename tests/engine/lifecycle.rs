//! Submission, cancellation, idleness, shutdown.

use std::time::Duration;

use postrider::engine::SubmitError;
use postrider::event::{DeliveryEvent, Reason};
use postrider::message::MessageId;
use postrider::storage::{MemoryStorage, Storage};
use postrider::testing::{Behaviour, Command, SmtpServer};

use crate::support::{MX, World, idle, message};

fn id(n: u8) -> MessageId {
    format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_id_is_stored_once_even_after_its_delivery() {
    let world = World::new();
    let server = SmtpServer::new();
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "").await;
    for _ in 0..3 {
        assert_eq!(engine.submit(message(&["b@example.net"]).with_id(id(1))).await.unwrap(), id(1));
    }
    idle(&engine).await;
    assert_eq!(engine.submit(message(&["b@example.net"]).with_id(id(1))).await.unwrap(), id(1));
    idle(&engine).await;
    assert_eq!(server.message_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn submission_needs_no_dns_and_no_server() {
    let world = World::new();
    world.zone.fail("example.net", postrider::dns::DnsErrorKind::Timeout);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    assert_eq!(world.elapsed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_messages_are_delivered_once_each_within_the_limits() {
    let world = World::new();
    let server = SmtpServer::new().keep(2_000);
    world.server(MX, &server);
    let policy = "[domain.\"*\"]\nmax-smtp-out = 7\nmax-msg-per-connection = 10";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    let messages = (0..1000).map(|n| message(&[&format!("r{n}@example.net")])).collect();
    for result in engine.submit_batch(messages).await {
        result.unwrap();
    }
    idle(&engine).await;
    assert_eq!(server.message_count(), 1000);
    assert!(server.peak_connections() <= 7, "{}", server.peak_connections());
    assert!((100..=110).contains(&server.connections()), "{}", server.connections());
    let stats = engine.stats().await.unwrap();
    assert_eq!((stats.received, stats.delivered, stats.queued, stats.outbox), (1000, 1000, 0, 0));
    assert_eq!(stats.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn sources_that_the_policy_does_not_have_are_refused() {
    let world = World::new();
    let engine = world.engine(MemoryStorage::new(), "").await;
    let refused = engine.submit(message(&["b@example.net"]).with_source("vmta9")).await;
    assert!(matches!(refused, Err(SubmitError::UnknownSource(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn cancelling_ends_what_waits() {
    let world = World::new();
    world.network.refuse(MX.parse().unwrap());
    let store = MemoryStorage::new();
    let engine = world.engine(store.clone(), "").await;
    engine.submit(message(&["b@example.net", "c@example.net"]).with_id(id(1))).await.unwrap();
    engine.submit(message(&["d@example.net"]).with_id(id(2))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let report = engine.cancel(id(1)).await.unwrap();
    assert_eq!((report.cancelled, report.in_flight), (2, 0));
    assert_eq!(store.usage().await.unwrap().items, 1);
    assert_eq!(engine.cancel(id(9)).await.unwrap().cancelled, 0);
    world.server(MX, &SmtpServer::new());
    idle(&engine).await;
    let timeline = world.seen.timeline();
    assert_eq!(timeline.iter().filter(|line| line.contains("cancelled")).count(), 2, "{timeline:?}");
    assert!(timeline.iter().any(|line| line.contains("delivered d@example.net")), "{timeline:?}");
}

#[tokio::test(start_paused = true)]
async fn cancelling_what_is_being_sent_cancels_what_it_leaves_over() {
    let world = World::new();
    let slow = Behaviour::from("450 4.2.0 busy").after(Duration::from_secs(20));
    world.server(MX, &SmtpServer::new().reply(Command::Rcpt, slow));
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"]).with_id(id(1))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let report = engine.cancel(id(1)).await.unwrap();
    assert_eq!((report.cancelled, report.in_flight), (0, 1));
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["20 cancelled b@example.net"]);
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_transactions_end_and_leaves_the_rest_queued() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Dot, Behaviour::Slow(Duration::from_secs(10)));
    world.server(MX, &server);
    let store = MemoryStorage::new();
    let policy = "[domain.\"*\"]\nmax-smtp-out = 1";
    let engine = world.engine(store.clone(), policy).await;
    for _ in 0..3 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let report = engine.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.interrupted, report.queued), (0, 2));
    assert_eq!(world.elapsed(), 10);
    assert!(matches!(engine.submit(message(&["b@example.net"])).await, Err(SubmitError::Stopped)));
    assert_eq!(world.seen.timeline(), ["10 delivered b@example.net"]);

    let engine = world.engine(store.reopened(), policy).await;
    idle(&engine).await;
    assert_eq!(server.message_count(), 3);
}

#[tokio::test(start_paused = true)]
async fn shutdown_cuts_at_its_deadline_and_says_so() {
    let world = World::new();
    world.server(MX, &SmtpServer::new().reply(Command::Dot, Behaviour::Silence));
    let store = MemoryStorage::new();
    let engine = world.engine(store.clone(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let report = engine.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.interrupted, report.queued), (1, 1));
    assert_eq!(world.elapsed(), 35);
    let Some(DeliveryEvent::Deferred(deferred)) = world.seen.events().pop() else { panic!() };
    assert_eq!(deferred.diagnosis.reason, Reason::PossiblyDelivered, "the server may have taken it");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_the_engine_in_order() {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Dot, Behaviour::Slow(Duration::from_secs(10)));
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    drop(engine);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.seen.timeline(), ["10 delivered b@example.net"]);
}

#[tokio::test(start_paused = true)]
async fn outcomes_wait_in_the_outbox_for_a_sink_that_fails() {
    use std::sync::atomic::{AtomicU32, Ordering};
    struct Failing(AtomicU32);
    impl postrider::event::EventSink for Failing {
        fn on_event(&self, _: &DeliveryEvent) {}
        fn flush(&self) -> std::io::Result<()> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(std::io::Error::other("disk full")),
                _ => Ok(()),
            }
        }
    }
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    let store = MemoryStorage::new();
    let engine = postrider::DeliveryEngine::builder("mta.example.org")
        .storage(store.clone())
        .resolver(world.zone.clone())
        .transport(postrider::transport::smtp::SmtpTransport::over(world.network.clone()))
        .event_sink((world.seen.clone(), Failing(AtomicU32::new(0))))
        .clock(world.clock.clone())
        .seed(2)
        .start()
        .await
        .unwrap();
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    let delivered: Vec<_> = world
        .seen
        .events()
        .into_iter()
        .filter_map(|event| match event {
            DeliveryEvent::Delivered(e) => Some(e.record.event),
            _ => None,
        })
        .collect();
    assert_eq!(delivered.len(), 4);
    assert!(delivered.iter().all(|event| *event == delivered[0]));
    assert_eq!(store.usage().await.unwrap().outbox, 0);
}

#[tokio::test(start_paused = true)]
async fn a_live_stream_sees_events_and_ends_with_the_engine() {
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    let engine = world.engine(MemoryStorage::new(), "").await;
    let mut stream = engine.events(1);
    let reader = tokio::spawn(async move {
        let mut count = 0;
        while stream.next().await.is_some() {
            count += 1;
        }
        count
    });
    for _ in 0..10 {
        engine.submit(message(&["b@example.net"])).await.unwrap();
    }
    idle(&engine).await;
    engine.shutdown(Duration::from_secs(1)).await;
    assert_eq!(reader.await.unwrap(), 20);
}
