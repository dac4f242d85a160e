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

#[tokio::test(start_paused = true)]
async fn a_message_says_that_its_header_has_utf8() {
    for (offers, line) in
        [("8BITMIME", "0 bounced b@example.net 5.6.9"), ("SMTPUTF8", "0 delivered b@example.net")]
    {
        let world = World::new();
        let server = SmtpServer::new().ehlo([offers]);
        world.server(MX, &server);
        let engine = world.engine(MemoryStorage::new(), "").await;
        engine.submit(message(&["b@example.net"]).with_smtputf8()).await.unwrap();
        idle(&engine).await;
        assert!(world.seen.timeline()[0].starts_with(line), "{:?}", world.seen.timeline());
        assert_eq!(server.message_count(), u64::from(offers == "SMTPUTF8"));
    }
}
