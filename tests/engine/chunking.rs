//! What `use-chunking` comes to, through the whole engine.

use std::time::Duration;

use postrider::event::{DeliveryEvent, Reason};
use postrider::storage::MemoryStorage;
use postrider::testing::{Command, SmtpServer};
use postrider::{Message, Policy};

use crate::support::{MX, World, idle, message};

const ON: &str = "[domain.'*']\nuse-chunking = true\n";

fn offering() -> SmtpServer {
    SmtpServer::new().ehlo(["PIPELINING", "8BITMIME", "CHUNKING"])
}

/// The commands by which content came.
fn ways(server: &SmtpServer) -> Vec<String> {
    let commands = server.commands().into_iter();
    commands.filter(|line| line == "DATA" || line.starts_with("BDAT")).collect()
}

#[tokio::test(start_paused = true)]
async fn by_data_unless_the_queue_says_so() {
    for (policy, way) in [
        ("", "DATA"),
        (ON, "BDAT 25 LAST"),
        ("[domain.'*']\nuse-chunking = true\n[domain.'example.net']\nuse-chunking = false", "DATA"),
        ("[domain.'example.net']\nuse-chunking = true", "BDAT 25 LAST"),
    ] {
        let (world, server) = (World::new(), offering());
        world.server(MX, &server);
        let engine = world.engine(MemoryStorage::new(), policy).await;
        engine.submit(message(&["b@example.net"])).await.unwrap();
        idle(&engine).await;
        assert_eq!(ways(&server), [way], "{policy}");
        assert_eq!(server.messages()[0].content, "Subject: hello\r\n\r\nhello\r\n");
    }
}

/// Two queues share a session, and each one's own setting counts; so does a new policy's in a session that is open.
#[tokio::test(start_paused = true)]
async fn the_queues_setting_counts_and_not_the_sessions() {
    let (world, server) = (World::new(), offering());
    world
        .zone
        .set_zone("x.example. MX 10 mx.y.example.\ny.example. MX 10 mx.y.example.\nmx.y.example. A 192.0.2.1")
        .unwrap();
    world.server(MX, &server);
    let idle_long = "[domain.'*']\nconnection-idle-timeout = '10m'\n";
    let policy = format!("{idle_long}[domain.'x.example']\nuse-chunking = true");
    let engine = world.engine(MemoryStorage::new(), &policy).await;
    for to in ["a@x.example", "b@y.example", "c@x.example"] {
        engine.submit(message(&[to])).await.unwrap();
        idle(&engine).await;
    }
    engine.set_policy(Policy::from_toml(&format!("{idle_long}use-chunking = true")).unwrap()).await.unwrap();
    engine.submit(message(&["d@y.example"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(ways(&server), ["BDAT 25 LAST", "DATA", "BDAT 25 LAST", "BDAT 25 LAST"]);
    assert_eq!((server.connections(), server.message_count()), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_do_it_gets_the_mail_by_data() {
    let world = World::new();
    let server = offering().reply(Command::Bdat, "502 5.5.1 command not implemented").times(1);
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), ON).await;
    engine.submit(message(&["b@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(world.seen.timeline(), ["0 deferred b@example.net 4.5.0", "600 delivered b@example.net"]);
    let events = world.seen.events();
    let deferred = events.iter().find_map(|event| match event {
        DeliveryEvent::Deferred(event) => Some(event),
        _ => None,
    });
    let diagnosis = &deferred.unwrap().diagnosis;
    assert_ne!(diagnosis.reason, Reason::PossiblyDelivered);
    let text = format!("{diagnosis:?}");
    let words = "CHUNKING is offered and BDAT is refused as a command: 502 5.5.1 command not implemented";
    assert!(text.contains(words), "{text}");
    engine.submit(message(&["c@example.net"])).await.unwrap();
    idle(&engine).await;
    assert_eq!(ways(&server), ["BDAT 25 LAST", "DATA", "DATA"]);
    assert_eq!(server.message_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_messages_over_one_session_with_a_refusal_in_between() {
    let world = World::new();
    let server = offering().reply(Command::Dot, "552 5.3.4 too large").after(3).times(1);
    let server = server.reply_to_rcpt("m6@example.net", "550 5.1.1 nobody");
    world.server(MX, &server);
    let policy = format!("{ON}max-smtp-out = 1");
    let engine = world.engine(MemoryStorage::new(), &policy).await;
    for number in 0..10 {
        let to = format!("m{number}@example.net");
        let message = Message::new("a@example.org", [to.as_str()], ".\r\n".repeat(number)).unwrap();
        engine.submit(message.clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    idle(&engine).await;
    let bounced = world.seen.summary().into_iter().filter(|line| line.starts_with("bounced"));
    assert_eq!(bounced.collect::<Vec<_>>(), ["bounced m3@example.net 5.3.4", "bounced m6@example.net 5.1.1"]);
    assert_eq!((server.connections(), server.message_count()), (1, 8));
    let resets = server.commands().iter().filter(|line| *line == "RSET").count();
    assert_eq!(resets, 2);
    for message in server.messages() {
        let number: usize = message.recipients[0][1..2].parse().unwrap();
        assert_eq!(message.content, ".\r\n".repeat(number));
    }
}
