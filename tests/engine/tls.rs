//! What `use-starttls` comes to, through the whole engine.

use postrider::event::{Delivered, DeliveryEvent};
use postrider::storage::MemoryStorage;
use postrider::testing::{Behaviour, Command, SmtpServer, TestCertificate};

use crate::support::{MX, MX2, World, idle, message};

const TWO_HOSTS: &str = "
example.net. MX 10 mx1.example.net.
example.net. MX 20 mx2.example.net.
mx1.example.net. A 192.0.2.1
mx2.example.net. A 192.0.2.2
";

fn with_tls() -> SmtpServer {
    SmtpServer::new().starttls(&TestCertificate::new(["mx.example.net"]).unwrap())
}

fn delivered(world: &World) -> Vec<Delivered> {
    let events = world.seen.events().into_iter();
    let delivered = events.filter_map(|event| match event {
        DeliveryEvent::Delivered(event) => Some(event),
        _ => None,
    });
    delivered.collect()
}

#[tokio::test(start_paused = true)]
async fn required_tls_leads_past_a_host_without() {
    let mut world = World::new();
    world.zone = postrider::dns::StaticResolver::parse(TWO_HOSTS).unwrap();
    let (without, with) = (SmtpServer::new(), with_tls());
    world.server(MX, &without).server(MX2, &with);
    let engine = world.engine(MemoryStorage::new(), "[domain.'*']\nuse-starttls = 'required'").await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 delivered b@example.net"]);
    let delivered = &delivered(&world)[0];
    assert_eq!(delivered.record.mx.as_deref(), Some("mx2.example.net"));
    assert_eq!(delivered.tls.as_deref(), Some("TLSv1.3 TLS_AES_256_GCM_SHA384"));
    assert_eq!((without.message_count(), with.message_count()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn required_tls_that_nobody_has_defers() {
    let world = World::new();
    world.server(MX, &SmtpServer::new());
    let policy = "[domain.'*']\nuse-starttls = 'required'\nbounce-after = '15m'";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    let deferred = |minute: u64| format!("{} queue-deferred example.net 4.7.4", minute * 60);
    assert_eq!(world.seen.timeline(), [deferred(0), deferred(10), "900 bounced b@example.net 4.4.7".into()]);
}

/// The connection that TLS failed on is closed before the one in plain is opened: a server that takes one is not
/// asked for two.
#[tokio::test(start_paused = true)]
async fn opportunistic_tls_that_fails_takes_one_connection_at_a_time() {
    let world = World::new();
    let server = with_tls().reply(Command::StartTls, Behaviour::Close);
    world.server(MX, &server);
    let policy = "[domain.'*']\nmax-smtp-out = 1\nmax-msg-per-connection = 1";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    for n in 0..3 {
        engine.submit(message(&[&format!("b{n}@example.net")])).await.unwrap();
    }
    idle(&engine).await;
    assert_eq!(delivered(&world).iter().filter(|event| event.tls.is_none()).count(), 3);
    let address = MX.parse().unwrap();
    assert_eq!((world.network.peak_connections(address), world.network.attempts(address)), (1, 4));
    let starttls = server.commands().iter().filter(|line| *line == "STARTTLS").count();
    assert_eq!(starttls, 1, "it is remembered");
}
