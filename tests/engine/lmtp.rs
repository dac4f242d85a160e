//! What `use-lmtp` comes to, through the whole engine.

use postrider::event::{DeliveryEvent, Reason};
use postrider::storage::MemoryStorage;
use postrider::testing::{Behaviour, SmtpServer};

use crate::support::{MX, World, idle, message};

const POLICY: &str = "[domain.'*']\nsmtp-hosts = '[192.0.2.1]'\nuse-lmtp = true";

#[tokio::test(start_paused = true)]
async fn each_recipient_ends_by_its_own_reply() {
    let world = World::new();
    let server = SmtpServer::new()
        .lmtp()
        .reply_to_rcpt("nobody@example.net", "550 5.1.1 no such user")
        .reply_to_content_of("full@example.net", "452 4.2.2 over quota")
        .times(1)
        .reply_to_content_of("spam@example.net", "554 5.7.1 not here");
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), POLICY).await;
    let to = ["ann@example.net", "nobody@example.net", "full@example.net", "spam@example.net"];
    engine.submit(message(&to)).await.unwrap();
    idle(&engine).await;
    let mut timeline = world.seen.timeline();
    timeline.sort();
    assert_eq!(
        timeline,
        [
            "0 bounced nobody@example.net 5.1.1",
            "0 bounced spam@example.net 5.7.1",
            "0 deferred full@example.net 4.2.2",
            "0 delivered ann@example.net",
            "600 delivered full@example.net",
        ]
    );
    let taken: Vec<_> = server.messages().into_iter().map(|message| message.recipients).collect();
    assert_eq!(taken, [["ann@example.net"], ["full@example.net"]]);
}

#[tokio::test(start_paused = true)]
async fn whose_reply_was_lost_possibly_has_it_and_the_others_keep_theirs() {
    let world = World::new();
    let server =
        SmtpServer::new().lmtp().reply_to_content_of("ben@example.net", Behaviour::LoseReply).times(1);
    world.server(MX, &server);
    let engine = world.engine(MemoryStorage::new(), POLICY).await;
    engine.submit(message(&["ann@example.net", "ben@example.net", "eve@example.net"])).await.unwrap();
    idle(&engine).await;
    let possibly: Vec<String> = world
        .seen
        .events()
        .iter()
        .filter_map(|event| match event {
            DeliveryEvent::Deferred(event) => {
                assert_eq!(event.diagnosis.reason, Reason::PossiblyDelivered);
                Some(event.record.recipient.to_string())
            }
            _ => None,
        })
        .collect();
    assert_eq!(possibly, ["ben@example.net", "eve@example.net"]);
    let taken: Vec<_> = server.messages().into_iter().map(|message| message.recipients).collect();
    assert_eq!(
        taken,
        [vec!["ann@example.net", "ben@example.net"], vec!["ben@example.net", "eve@example.net"]]
    );
}
