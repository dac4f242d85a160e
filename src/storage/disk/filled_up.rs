//! An engine on a disk that fills up: it says what is wrong, loses nothing that it acknowledged, and goes on by itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::cuts::{STORE, options};
use super::simulated::{Disk, Survival};
use super::*;
use crate::clock::Clock;
use crate::dns::StaticResolver;
use crate::engine::SubmitError;
use crate::event::{DeliveryEvent, EventSink, StorageOperation};
use crate::message::MessageId;
use crate::testing::{MemoryNetwork, SmtpServer};
use crate::transport::smtp::SmtpTransport;
use crate::{DeliveryEngine, Message, Policy};

const MIB: u64 = 1024 * 1024;
const CONNECTIONS: u64 = 3;
const ZONE: &str = "example.net. MX 10 mx.example.net.\nmx.example.net. A 192.0.2.1\n";

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<DeliveryEvent>>>);

impl EventSink for Recorder {
    fn on_event(&self, event: &DeliveryEvent) {
        lock(&self.0).push(event.clone());
    }
}

impl Recorder {
    fn delivered(&self) -> Vec<MessageId> {
        let id = |event: &DeliveryEvent| match event {
            DeliveryEvent::Delivered(delivered) => Some(delivered.record.id),
            _ => None,
        };
        let mut delivered: Vec<_> = lock(&self.0).iter().filter_map(id).collect();
        delivered.sort_unstable();
        delivered
    }

    fn trouble(&self, with: StorageOperation) -> Vec<String> {
        let text = |event: &DeliveryEvent| match event {
            DeliveryEvent::StorageTrouble(trouble) if trouble.operation == with => {
                Some(trouble.error.clone())
            }
            _ => None,
        };
        lock(&self.0).iter().filter_map(text).collect()
    }
}

async fn engine(disk: &Disk, network: &MemoryNetwork, seen: &Recorder) -> DeliveryEngine {
    let options = options(disk).with_segment_size(MIB / 4).with_reserve(MIB / 4);
    let policy = format!("[domain.\"*\"]\nmax-smtp-out = {CONNECTIONS}\nretry-after = [\"1m\"]");
    DeliveryEngine::builder("mta.example.org")
        .storage(DiskStorage::open_with(STORE, options).await.unwrap())
        .resolver(StaticResolver::parse(ZONE).unwrap())
        .transport(SmtpTransport::over(network.clone()))
        .policy(Policy::from_toml(&policy).unwrap())
        .event_sink(seen.clone())
        .clock(Clock::starting_at("2026-11-23T10:00:00Z".parse().unwrap()))
        .seed(1)
        .start()
        .await
        .unwrap()
}

/// Everything is delivered, each message once.
async fn drained(engine: &DeliveryEngine, server: &SmtpServer, seen: &Recorder, all: &BTreeSet<MessageId>) {
    tokio::time::timeout(Duration::from_secs(7 * 86_400), engine.wait_idle()).await.unwrap().unwrap();
    assert_eq!(seen.delivered(), all.iter().copied().collect::<Vec<_>>());
    assert_eq!(server.message_count(), all.len() as u64);
}

async fn submit(engine: &DeliveryEngine) -> std::result::Result<MessageId, SubmitError> {
    let body = "a line of a letter\r\n".repeat(500);
    engine.submit(Message::new("a@example.org", ["b@example.net"], body).unwrap()).await
}

#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods, reason = "on paused time")]
async fn an_engine_on_a_disk_that_fills_up_loses_nothing_and_says_so() {
    let (disk, network, seen) = (Disk::default(), MemoryNetwork::new(), Recorder::default());
    let engine_on_it = engine(&disk, &network, &seen).await;
    let used = disk.used();
    disk.plan(|plan| plan.capacity = Some(used + 4 * MIB));
    // Nobody answers yet.
    let (mut accepted, mut refused) = (BTreeSet::new(), 0);
    while refused < 20 {
        match submit(&engine_on_it).await {
            Ok(id) => assert!(accepted.insert(id)),
            Err(SubmitError::Storage(error)) => {
                assert_eq!(error.kind(), StorageErrorKind::Full, "{error}");
                refused += 1;
                tokio::time::sleep(Duration::from_secs(40)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(accepted.len() > 100, "{}", accepted.len());
    let told = seen.trouble(StorageOperation::Insert);
    // Twenty were refused, one each forty seconds.
    let says_so = |text: &String| text.contains("the disk is full") || text.contains("no storage space");
    assert!((10..=20).contains(&told.len()) && told.iter().all(says_so), "{told:?}");

    // The power goes while it is full; there is room afterwards.
    for survival in Survival::ALL {
        let (disk, network, seen) = (disk.reboot(survival, 1), MemoryNetwork::new(), Recorder::default());
        disk.plan(|plan| plan.capacity = None);
        let server = SmtpServer::new().keep(0);
        network.listen("192.0.2.1:25".parse::<SocketAddr>().unwrap(), &server);
        let engine = engine(&disk, &network, &seen).await;
        drained(&engine, &server, &seen, &accepted).await;
        engine.shutdown(Duration::from_secs(9)).await;
    }

    // Or others take what is left, and what is given back: what is sent is settled, or nothing more is.
    let server = SmtpServer::new().keep(0);
    network.listen("192.0.2.1:25".parse::<SocketAddr>().unwrap(), &server);
    disk.plan(|plan| plan.capacity = Some(0));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let (sent, told) = (server.message_count(), seen.delivered().len() as u64);
    assert!(sent > 0 && sent - told <= 2 * CONNECTIONS, "{told} of {sent} are settled");
    assert!(told == accepted.len() as u64 || !seen.trouble(StorageOperation::Commit).is_empty());

    // Or it stays full, and what is delivered makes room.
    disk.plan(|plan| plan.capacity = Some(used + 4 * MIB));
    drained(&engine_on_it, &server, &seen, &accepted).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    accepted.insert(submit(&engine_on_it).await.unwrap());
    drained(&engine_on_it, &server, &seen, &accepted).await;
    engine_on_it.shutdown(Duration::from_secs(9)).await;
}
