//! What `auth-username` comes to, through the whole engine.

use postrider::storage::MemoryStorage;
use postrider::testing::SmtpServer;

use crate::support::{MX, MX2, World, idle, message};

/// The first relay refuses name and password, the second has other ones in mind; later both take them.
#[tokio::test(start_paused = true)]
async fn a_relay_that_refuses_the_password_defers_and_charges_nobody() {
    let world = World::new();
    let (first, second) = (SmtpServer::new().auth("ann", "old"), SmtpServer::new().auth("ben", "new"));
    world.server(MX, &first).server(MX2, &second);
    let policy = "
        [domain.'*']
        smtp-hosts = '[192.0.2.1];[192.0.2.2]'
        auth-username = 'ann'
        auth-password = 'new'
        use-unencrypted-plain-auth = true";
    let engine = world.engine(MemoryStorage::new(), policy).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert_eq!(world.seen.timeline(), ["0 queue-deferred example.net 5.7.8"]);
    let _ = first.clone().auth("ann", "new");
    idle(&engine).await;
    assert_eq!(world.seen.timeline()[1..], ["600 delivered b@example.net"]);
    assert_eq!(first.messages()[0].username.as_deref(), Some("ann"));
    assert_eq!((first.message_count(), second.connections()), (1, 1));
}
