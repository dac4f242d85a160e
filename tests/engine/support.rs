//! One engine in a world of test servers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider::clock::{Clock, Timestamp};
use postrider::control::QueueSort;
use postrider::dns::StaticResolver;
use postrider::event::{DeliveryEvent, EventSink};
use postrider::storage::Storage;
use postrider::testing::{MemoryNetwork, SmtpServer};
use postrider::transport::smtp::SmtpTransport;
use postrider::{DeliveryEngine, Message, Policy};

/// Keeps every event.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<DeliveryEvent>>>);

impl EventSink for Recorder {
    fn on_event(&self, event: &DeliveryEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Recorder {
    pub(crate) fn events(&self) -> Vec<DeliveryEvent> {
        self.0.lock().unwrap().clone()
    }

    /// One word per event, with the recipient or domain: `deferred b@x.example`.
    pub(crate) fn summary(&self) -> Vec<String> {
        self.events().iter().map(summarise).collect()
    }

    /// As [`Recorder::summary`], with whole seconds since the start in front, without `received`.
    pub(crate) fn timeline(&self) -> Vec<String> {
        let start = start();
        let line = |event: &DeliveryEvent| {
            let at = match event {
                DeliveryEvent::Delivered(e) => e.record.time,
                DeliveryEvent::Deferred(e) => e.record.time,
                DeliveryEvent::Bounced(e) => e.record.time,
                DeliveryEvent::Cancelled(e) => e.record.time,
                DeliveryEvent::QueueDeferred(e) => e.time,
                DeliveryEvent::LocalTrouble(e) => e.time,
                _ => return None,
            };
            Some(format!("{} {}", at.saturating_since(start).as_secs(), summarise(event)))
        };
        self.events().iter().filter_map(line).collect()
    }
}

fn summarise(event: &DeliveryEvent) -> String {
    match event {
        DeliveryEvent::Received(e) => format!("received {}", e.recipients),
        DeliveryEvent::Delivered(e) => format!("delivered {}", e.record.recipient),
        DeliveryEvent::Deferred(e) => format!("deferred {} {}", e.record.recipient, e.diagnosis.status),
        DeliveryEvent::Bounced(e) => format!("bounced {} {}", e.record.recipient, e.diagnosis.status),
        DeliveryEvent::Cancelled(e) => format!("cancelled {}", e.record.recipient),
        DeliveryEvent::QueueDeferred(e) => format!("queue-deferred {} {}", e.domain, e.diagnosis.status),
        DeliveryEvent::LocalTrouble(_) => "local-trouble".to_owned(),
        DeliveryEvent::StorageTrouble(e) => format!("storage-trouble {} {}", e.operation, e.stopped),
        other => format!("{other:?}"),
    }
}

/// When every test begins.
pub(crate) fn start() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().unwrap()
}

pub(crate) const MX: &str = "192.0.2.1:25";
pub(crate) const MX2: &str = "192.0.2.2:25";
pub(crate) const ZONE: &str = "
example.net. MX 10 mx.example.net.
mx.example.net. A 192.0.2.1
other.example. MX 10 mx.other.example.
mx.other.example. A 192.0.2.2
";

/// A network, a zone and a recorder; engines are started in it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    pub(crate) zone: StaticResolver,
    pub(crate) seen: Recorder,
    pub(crate) clock: Clock,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            network: MemoryNetwork::new(),
            zone: StaticResolver::parse(ZONE).unwrap(),
            seen: Recorder::default(),
            clock: Clock::starting_at(start()),
        }
    }

    pub(crate) fn server(&self, address: &str, server: &SmtpServer) -> &Self {
        self.network.listen(address.parse::<SocketAddr>().unwrap(), server);
        self
    }

    pub(crate) async fn engine(&self, storage: impl Storage, policy: &str) -> DeliveryEngine {
        DeliveryEngine::builder("mta.example.org")
            .storage(storage)
            .resolver(self.zone.clone())
            .transport(SmtpTransport::over(self.network.clone()))
            .policy(Policy::from_toml(policy).unwrap())
            .event_sink(self.seen.clone())
            .clock(self.clock.clone())
            .seed(1)
            .start()
            .await
            .unwrap()
    }

    /// Seconds since the start.
    pub(crate) fn elapsed(&self) -> u64 {
        self.clock.now().saturating_since(start()).as_secs()
    }
}

pub(crate) fn message(to: &[&str]) -> Message {
    Message::new("a@example.org", to, "Subject: hello\r\n\r\nhello\r\n").unwrap()
}

/// Waits until nothing is queued, for at most a month of virtual time.
pub(crate) async fn idle(engine: &DeliveryEngine) {
    match tokio::time::timeout(Duration::from_secs(30 * 86_400), engine.wait_idle()).await {
        Ok(ended) => ended.unwrap(),
        Err(_) => panic!("not idle in time: {:#?}", left(engine).await),
    }
}

/// What is left waits for.
async fn left(engine: &DeliveryEngine) -> Vec<String> {
    let mut left = Vec::new();
    for info in engine.queues(QueueSort::Items, 10).await.unwrap() {
        for queue in engine.why_queue(&info.name).await.unwrap() {
            left.push(queue.to_string());
            left.extend(queue.destinations.iter().map(ToString::to_string));
        }
    }
    left
}
