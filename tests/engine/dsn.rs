//! Delivery status notifications (RFC 3461): passed on where the server offers DSN, told to the host where not.

use postrider::Message;
use postrider::event::{Delivered, DeliveryEvent};
use postrider::message::{
    DsnReturn, EnvelopeId, MessageDsn, MessageError, Notify, OriginalRecipient, RecipientDsn,
};
use postrider::storage::MemoryStorage;
use postrider::testing::SmtpServer;

use crate::support::{MX, World, idle, message};

fn asking() -> Message {
    let success = RecipientDsn {
        notify: Some(Notify::SUCCESS | Notify::FAILURE),
        original_recipient: Some(OriginalRecipient::new("list+ann=x@example.org").unwrap()),
    };
    let never = RecipientDsn { notify: Some(Notify::NEVER), original_recipient: None };
    let envelope_id = Some(EnvelopeId::new("mail 7+1").unwrap());
    message(&["ann@example.net", "jörg@example.net", "ben@example.net", "eve@example.net"])
        .with_dsn(MessageDsn { returned: Some(DsnReturn::Headers), envelope_id })
        .with_recipient_dsn("ann@example.net", success)
        .and_then(|message| message.with_recipient_dsn("ben@EXAMPLE.net", never))
        .unwrap()
}

async fn send(server: &SmtpServer, message: Message) -> World {
    let world = World::new();
    world.server(MX, server);
    let storage = MemoryStorage::new();
    // It is deferred, and read back by another engine.
    let busy = server.clone().reply(postrider::testing::Command::Connect, "421 4.3.2 busy").times(1);
    let engine = world.engine(storage.reopened(), "").await;
    engine.submit(message).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    engine.shutdown(std::time::Duration::from_secs(1)).await;
    drop((engine, busy));
    let engine = world.engine(storage.reopened(), "").await;
    idle(&engine).await;
    world
}

fn delivered(world: &World, recipient: &str) -> Delivered {
    let is_it = |event: &DeliveryEvent| match event {
        DeliveryEvent::Delivered(event) => event.record.recipient.to_string() == recipient,
        _ => false,
    };
    match world.seen.events().into_iter().find(is_it) {
        Some(DeliveryEvent::Delivered(event)) => event,
        _ => panic!("{recipient} has nothing"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_with_dsn_is_told_what_to_report() {
    for keywords in [&["8BITMIME", "DSN"][..], &["PIPELINING", "DSN"]] {
        let server = SmtpServer::new().ehlo(keywords.iter().copied());
        let world = send(&server, asking()).await;
        let commands: Vec<String> = server.commands();
        let commands = commands.iter().filter(|line| line.starts_with("MAIL") || line.starts_with("RCPT"));
        assert_eq!(
            commands.collect::<Vec<_>>(),
            [
                "MAIL FROM:<a@example.org> RET=HDRS ENVID=mail+207+2B1",
                "RCPT TO:<ann@example.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;list+2Bann+3Dx@example.org",
                // Jörg's address is none for this server, and takes nobody's parameters with it.
                "RCPT TO:<ben@example.net> NOTIFY=NEVER",
                "RCPT TO:<eve@example.net>",
            ]
        );
        let ann = delivered(&world, "ann@example.net");
        assert!(ann.dsn_passed_on);
        let of_recipient = ann.record.recipient_dsn.unwrap();
        assert_eq!(of_recipient.original_recipient.unwrap().address(), "list+ann=x@example.org");
        assert_eq!(ann.record.dsn.unwrap().envelope_id.unwrap().as_str(), "mail 7+1");
        let eve = delivered(&world, "eve@example.net");
        assert!(eve.dsn_passed_on && eve.record.recipient_dsn.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_dsn_is_told_nothing_and_the_host_is() {
    let server = SmtpServer::new();
    let world = send(&server, asking()).await;
    let told = server.commands();
    assert!(
        !told.iter().any(|line| line.contains("RET") || line.contains("NOTIFY") || line.contains("ORCPT"))
    );
    let ann = delivered(&world, "ann@example.net");
    assert!(!ann.dsn_passed_on);
    assert!(ann.record.recipient_dsn.unwrap().notify.unwrap().contains(Notify::SUCCESS));
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_tells_nothing() {
    let server = SmtpServer::new().ehlo(["DSN"]);
    let world = send(&server, message(&["ann@example.net"])).await;
    assert!(server.commands().contains(&"MAIL FROM:<a@example.org>".to_owned()));
    assert!(server.commands().contains(&"RCPT TO:<ann@example.net>".to_owned()));
    assert!(!delivered(&world, "ann@example.net").dsn_passed_on);
}

#[test]
fn parameters_are_for_recipients_of_the_message() {
    let wish = RecipientDsn::default();
    let refused =
        message(&["ann@example.net"]).with_recipient_dsn("bob@example.net", wish.clone()).unwrap_err();
    assert_eq!(refused.to_string(), "bob@example.net is no recipient of the message");
    let refused = message(&["ann@example.net"]).with_recipient_dsn("bob", wish).unwrap_err();
    assert!(matches!(refused, MessageError::Recipient(_)));
}
