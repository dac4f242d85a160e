//! What mail waits for, asked through the public interface.

use std::time::Duration;

use postrider::event::Failure;
use postrider::storage::{MemoryStorage, Storage};
use postrider::testing::{Command, SmtpServer};
use postrider::why::{MessageWaits, Wait};

use crate::support::{MX, World, idle, message, start};

const MINUTE: Duration = Duration::from_secs(60);

async fn asks(storage: impl Storage) {
    let world = World::new();
    let server = SmtpServer::new().reply(Command::Rcpt, "450 4.2.0 later").times(2);
    world.server(MX, &server);
    let engine = world.engine(storage, "[domain.\"*\"]\nretry-after = [\"10m\", \"30m\"]\n").await;
    let id = engine.submit(message(&["b@example.net"])).await.unwrap();
    let held = engine.submit(message(&["c@other.example"]).hold_until(start() + 90 * MINUTE)).await.unwrap();

    tokio::time::sleep(11 * MINUTE).await;
    let told = engine.why(id).await.unwrap();
    let [item] = &told.items[..] else { panic!("{told:?}") };
    let [Wait::RecipientRetry { until, attempts: 2, last: Some(last) }] = &item.waits[..] else {
        panic!("{item}")
    };
    assert_eq!(until.saturating_since(start()).as_secs(), 40 * 60);
    assert_eq!((item.until, &*item.queue, &*item.source), (Some(*until), "example.net", "default"));
    let Failure::Reply(reply) = &last.failure else { panic!("{last:?}") };
    assert_eq!(reply.to_string(), "450 4.2.0 later");
    assert!(item.recipients.iter().all(|recipient| recipient.attempts == 2));

    let told = engine.why_queue("Example.NET").await.unwrap();
    let [queue] = &told[..] else { panic!("{told:?}") };
    assert_eq!((queue.until, queue.waits.len()), (Some(*until), 0));
    let [destination] = &queue.destinations[..] else { panic!("{queue:?}") };
    assert!(matches!(destination.waits[..], [Wait::NotDue { .. }]), "{destination}");

    let told = engine.why(held).await.unwrap();
    let [item] = &told.items[..] else { panic!("{told:?}") };
    assert!(matches!(item.waits[..], [Wait::HeldBack { .. }]), "{item}");

    assert_eq!(
        engine.why("0190163d-8694-739b-aea5-966c26f8ad91".parse().unwrap()).await.unwrap(),
        MessageWaits::default()
    );
    assert!(engine.why_queue("nowhere.example").await.unwrap().is_empty());
    engine.cancel(held).await.unwrap();
    idle(&engine).await;
    assert!(engine.why(id).await.unwrap().items.is_empty());
    assert!(engine.why_queue("example.net").await.unwrap().iter().all(|queue| queue.destinations.is_empty()));
    engine.shutdown(Duration::ZERO).await;
    assert!(engine.why(id).await.is_err() && engine.why_queue("example.net").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_engine_says_what_mail_waits_for() {
    asks(MemoryStorage::new()).await;
}

#[cfg(feature = "disk")]
#[tokio::test(start_paused = true)]
async fn also_when_it_lies_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    asks(postrider::storage::DiskStorage::open(folder.path()).await.unwrap()).await;
}
