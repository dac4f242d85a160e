//! Mail flows.

use postrider::storage::MemoryStorage;
use postrider::testing::SmtpServer;

use crate::support::{MX, MX2, World, idle, message};

#[tokio::test(start_paused = true)]
async fn a_message_reaches_both_domains_byte_for_byte() {
    let world = World::new();
    let (net, other) = (SmtpServer::new(), SmtpServer::new());
    world.server(MX, &net).server(MX2, &other);
    let engine = world.engine(MemoryStorage::new(), "").await;
    engine.submit(message(&["b@example.net", "c@example.net", "d@other.example"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(net.message_count(), 1);
    assert_eq!(other.message_count(), 1);
    let mut seen = world.seen.summary();
    seen.sort();
    assert_eq!(
        seen,
        ["delivered b@example.net", "delivered c@example.net", "delivered d@other.example", "received 3"]
    );
}
