//! Opening, idling, closing.

use std::time::Duration;

use super::*;
use crate::testing::{Behaviour, Command};

#[tokio::test(start_paused = true)]
async fn greetings() {
    for (greeting, expected) in [
        ("220 mx\r\n", Ok(())),
        ("220-mx\r\n220 hello\r\n", Ok(())),
        ("220\r\n", Ok(())),
        ("421 4.3.2 busy\r\n", Err(421)),
        ("521 no mail here\r\n", Err(521)),
        ("554 5.7.1 go away\r\n", Err(554)),
        ("250 what\r\n", Err(0)),
        ("HTTP/1.1 400 Bad Request\r\n", Err(0)),
    ] {
        let session = connect_to(4_096, move |mut lines| async move {
            lines.say(greeting).await;
            lines.hear().await;
            lines.say("250 mx\r\n").await;
            lines.hear().await;
        })
        .await;
        let got = session.map(|_| ()).map_err(|error| {
            assert_eq!(error.stage, Stage::Connect, "{greeting:?}");
            match error.cause {
                EndCause::Reply(reply) => reply.code(),
                EndCause::Protocol(_) => 0,
                other => panic!("{greeting:?}: {other:?}"),
            }
        });
        assert_eq!(got, expected, "{greeting:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refused_is_told_quit() {
    let server = SmtpServer::new().reply(Command::Ehlo, "550 5.7.1 no").reply(Command::Helo, "550 5.7.1 no");
    let network = MemoryNetwork::new();
    network.listen(peer(), &server);
    let error = SmtpTransport::over(network).connect(&target()).await.unwrap_err();
    assert_eq!(error.stage, Stage::Ehlo);
    tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(server.commands(), ["EHLO out.example", "HELO out.example", "QUIT"]);
    assert_eq!(server.open_connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn helo_when_ehlo_is_refused_for_good() {
    for (ehlo, helo, expected) in [
        ("500 5.5.1 what", "250 mx", Ok(())),
        ("502 5.5.1 what", "250 mx", Ok(())),
        ("550 5.7.1 no", "250 mx", Ok(())),
        ("550 5.7.1 no", "554 5.7.1 never", Err(554)),
        ("451 4.3.0 later", "250 mx", Err(451)),
        ("421 4.3.2 bye", "250 mx", Err(421)),
    ] {
        let server = SmtpServer::new().reply(Command::Ehlo, ehlo).reply(Command::Helo, helo);
        let network = MemoryNetwork::new();
        network.listen(peer(), &server);
        let session = SmtpTransport::over(network).connect(&target()).await;
        let got = match session {
            Ok(mut session) => {
                // After HELO nothing is offered, so nothing is pipelined and MAIL has no parameters.
                assert_eq!(session.transact(&simple()).await.dot.unwrap().code(), 250);
                assert_eq!(server.messages()[0].mail_parameters, "");
                Ok(())
            }
            Err(ConnectError { stage: Stage::Ehlo, cause: EndCause::Reply(reply) }) => Err(reply.code()),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(got, expected, "{ehlo}, {helo}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_after_refusing_ehlo_is_quoted() {
    let server = SmtpServer::new().reply(Command::Ehlo, Behaviour::ReplyAndClose("554 5.7.1 blocked".into()));
    let network = MemoryNetwork::new();
    network.listen(peer(), &server);
    let error = SmtpTransport::over(network).connect(&target()).await.unwrap_err();
    assert!(matches!(error.cause, EndCause::Reply(reply) if reply.code() == 554));
}

#[tokio::test(start_paused = true)]
async fn bad_ehlo_names_are_this_machines_trouble() {
    for name in ["", "a b", "a\r\nMAIL FROM:<x@y>", "bücher.example"] {
        let target = Target { ehlo: name.into(), ..target() };
        let error = SmtpTransport::over(MemoryNetwork::new()).connect(&target).await.unwrap_err();
        assert!(matches!(error.cause, EndCause::Local(_)), "{name:?}");
    }
}

/// A server that opens a session, then says `text` after a minute, and closes if told so.
async fn idle(text: &'static str, close: bool) -> Box<dyn Session> {
    connect_to(4_096, move |mut lines| async move {
        lines.open(ALL).await;
        let _ = tokio::time::timeout(Duration::from_secs(60), std::future::pending::<()>()).await;
        lines.say(text).await;
        if !close {
            lines.silence().await;
        }
    })
    .await
    .unwrap()
}

#[tokio::test(start_paused = true)]
async fn idle_sessions_notice_their_end() {
    for (text, close, expected) in [
        ("", true, "the server closed the connection"),
        ("421 4.4.2 idle\r\n", true, "the server ended the session: 421 4.4.2 idle"),
        ("421 4.4.2 idle\r\n", false, "the server ended the session: 421 4.4.2 idle"),
        ("250 surprise\r\n", false, "not SMTP: unsolicited reply: 250 surprise"),
        ("what?\r\n", false, "not SMTP: the line `what?` does not begin with a reply code from 200 to 599"),
    ] {
        let mut session = idle(text, close).await;
        let end = session.closed().await;
        assert_eq!((end.stage, end.cause.to_string().as_str()), (Stage::Mail, expected));
        assert_eq!(session.closed().await, end);
        assert_eq!(session.transact(&simple()).await.end, Some(end));
    }
}

#[tokio::test(start_paused = true)]
async fn what_came_while_idle_is_never_the_next_commands_reply() {
    for (text, close, expected) in [
        ("", true, "the server closed the connection"),
        ("421 4.4.2 idle\r\n", true, "the server ended the session: 421 4.4.2 idle"),
        ("250 surprise\r\n", false, "not SMTP: unsolicited reply: 250 surprise"),
        ("25", false, "not SMTP: half of an unsolicited reply"),
    ] {
        let mut session = idle(text, close).await;
        let _ = tokio::time::timeout(Duration::from_secs(61), std::future::pending::<()>()).await;
        let report = session.transact(&simple()).await;
        assert_eq!(codes(&report), (None, vec![None], None, None));
        let (stage, cause) = end_of(&report);
        assert_eq!((stage, cause.to_string().as_str()), (Stage::Mail, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_end_may_be_dropped_midway() {
    let mut session = connect_to(4_096, |mut lines| async move {
        lines.open(ALL).await;
        for byte in b"421 4.4.2 idle\r\n" {
            lines.say([*byte]).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await;
        }
        lines.silence().await;
    })
    .await
    .unwrap();
    let mut waits = 0;
    let end = loop {
        match tokio::time::timeout(Duration::from_millis(700), session.closed()).await {
            Ok(end) => break end,
            Err(_) => waits += 1,
        }
    };
    assert!(waits > 10);
    assert!(matches!(end.cause, EndCause::Reply(reply) if reply.to_string() == "421 4.4.2 idle"));
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_on_after_a_dropped_wait() {
    let server = SmtpServer::new();
    let mut session = session(&server).await;
    for _ in 0..3 {
        let wait = tokio::time::timeout(Duration::from_secs(5), session.closed()).await;
        assert!(wait.is_err());
        assert_eq!(session.transact(&simple()).await.dot.unwrap().code(), 250);
    }
}

#[tokio::test(start_paused = true)]
async fn quit_waits_a_moment_for_the_reply() {
    let server = SmtpServer::new();
    session(&server).await.quit().await;
    assert_eq!(server.commands().last().unwrap(), "QUIT");

    let server = SmtpServer::new().reply(Command::Quit, Behaviour::Silence);
    let session = session(&server).await;
    let clock = clock();
    session.quit().await;
    let took = clock.now().saturating_since(Timestamp::EPOCH);
    assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2_005), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn dropping_a_connect_or_a_session_closes_it() {
    let server = SmtpServer::new().reply(Command::Connect, Behaviour::Silence).times(1);
    let network = MemoryNetwork::new();
    network.listen(peer(), &server);
    let transport = SmtpTransport::over(network.clone());
    let given_up = tokio::time::timeout(Duration::from_secs(1), transport.connect(&target())).await;
    assert!(given_up.is_err());
    assert_eq!(network.open_connections(peer()), 0);
    let session = transport.connect(&target()).await.unwrap();
    assert_eq!(network.open_connections(peer()), 1);
    drop(session);
    assert_eq!(network.open_connections(peer()), 0);
}
