//! LMTP (RFC 2033): LHLO, and a reply to the content for each recipient.

use super::*;
use crate::testing::{Behaviour, Command};
use crate::transport::Protocol;

const TO: [&str; 4] = ["a@y.example", "b@y.example", "c@y.example", "d@y.example"];

async fn session(server: &SmtpServer) -> Result<Box<dyn Session>, ConnectError> {
    let network = MemoryNetwork::new();
    network.listen(peer(), server);
    let target = Target { protocol: Protocol::Lmtp, ..target() };
    SmtpTransport::over(network).connect(&target).await
}

/// `rcpt` and a code, `content` and a code, or nothing.
fn said(report: &TransactionReport) -> Vec<String> {
    let said = |recipient: &RecipientReport| match recipient {
        RecipientReport::Reply(reply) => format!("rcpt {}", reply.code()),
        RecipientReport::Content(reply) => format!("content {}", reply.code()),
        other => format!("{other:?}"),
    };
    report.recipients.iter().map(said).collect()
}

#[tokio::test(start_paused = true)]
async fn each_recipient_has_a_reply_of_its_own() {
    for keywords in [vec!["PIPELINING"], vec![]] {
        let server = SmtpServer::new()
            .lmtp()
            .ehlo(keywords)
            .reply_to_rcpt("b@y.example", "550 5.1.1 nobody")
            .reply_to_content_of("c@y.example", "452 4.2.2 full")
            .times(1);
        let mut session = session(&server).await.unwrap();
        let report = session.transact(&transaction(&TO, "x\r\n")).await;
        assert_eq!(said(&report), ["content 250", "rcpt 550", "content 452", "content 250"]);
        assert!(report.dot_sent && report.dot.is_none() && report.end.is_none());
        assert_eq!(server.messages()[0].recipients, ["a@y.example", "d@y.example"]);
        // What came is what was waited for: the session goes on.
        let report = session.transact(&transaction(&["c@y.example"], "x\r\n")).await;
        assert_eq!(said(&report), ["content 250"]);
        assert_eq!(server.commands()[0], "LHLO out.example");
        assert!(!server.commands().iter().any(|line| line.starts_with("RSET")));
    }
}

#[tokio::test(start_paused = true)]
async fn replies_that_came_before_the_end_count() {
    for (behaviour, last) in [
        (Behaviour::Close, "rcpt 250"),
        (Behaviour::Reset, "rcpt 250"),
        (Behaviour::Silence, "rcpt 250"),
        (Behaviour::Raw("what?\r\n".into()), "rcpt 250"),
        ("421 4.3.2 going down".into(), "content 421"),
    ] {
        let server = SmtpServer::new().lmtp().reply_to_content_of("c@y.example", behaviour.clone());
        let mut session = session(&server).await.unwrap();
        let report = session.transact(&transaction(&TO, "x\r\n")).await;
        assert_eq!(said(&report), ["content 250", "content 250", last, "rcpt 250"], "{behaviour:?}");
        assert!(report.dot_sent);
        assert_eq!(report.end.unwrap().stage, Stage::Dot, "{behaviour:?}");
    }
}

/// RFC 2033 §4.2: after DATA that was accepted for nobody no reply comes.
#[tokio::test(start_paused = true)]
async fn a_dot_for_nobody_has_no_reply() {
    let server = SmtpServer::new()
        .lmtp()
        .ehlo(["PIPELINING"])
        .reply(Command::Rcpt, "550 5.1.1 nobody")
        .times(1)
        .reply(Command::Data, "354 well then")
        .times(1);
    let mut session = session(&server).await.unwrap();
    let report = session.transact(&simple()).await;
    assert_eq!((said(&report), report.end), (vec!["rcpt 550".to_owned()], None));
    assert_eq!(said(&session.transact(&simple()).await), ["content 250"]);
}

#[tokio::test(start_paused = true)]
async fn servers_that_speak_the_other_protocol_are_given_up() {
    let error = session(&SmtpServer::new()).await.unwrap_err();
    assert!(matches!(&error.cause, EndCause::Reply(reply) if reply.code() == 500), "{error}");
    let network = MemoryNetwork::new();
    network.listen(peer(), &SmtpServer::new().lmtp());
    let error = SmtpTransport::over(network).connect(&target()).await.unwrap_err();
    assert!(matches!(&error.cause, EndCause::Reply(reply) if reply.code() == 500), "{error}");
}
