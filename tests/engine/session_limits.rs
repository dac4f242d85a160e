//! What a server says it takes at most (RFC 9422), through the whole engine.

use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer};

use crate::support::{MX, World, idle, message};

#[tokio::test(start_paused = true)]
async fn a_server_is_not_sent_more_than_it_says() {
    let world = World::new();
    let server = SmtpServer::new().ehlo(["PIPELINING", "LIMITS RCPTMAX=2 MAILMAX=2"]).on(|exchange| {
        match exchange.command {
            Command::Rcpt if exchange.recipients.len() >= 2 => Some("452 4.5.3 too many recipients".into()),
            Command::Mail if exchange.transactions >= 2 => Some("421 4.7.0 too many messages".into()),
            _ => None,
        }
    });
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), "[domain.'*']\nmax-smtp-out = 1").await;
    let to: Vec<String> = (0..5).map(|n| format!("b{n}@example.net")).collect();
    engine.submit(message(&to.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline().iter().filter(|line| line.starts_with("0 delivered")).count(), 5);
    let said = |verb: &str| server.commands().iter().filter(|line| line.starts_with(verb)).count();
    assert_eq!((said("MAIL"), said("RCPT"), server.connections()), (3, 5, 2));
}
