//! DATA's content and the final dot.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::testing::{Behaviour, Command};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_arrives_is_what_was_sent(
        lines in prop::collection::vec(
            prop_oneof![
                Just(Vec::new()), Just(b".".to_vec()), Just(b"..".to_vec()), Just(b"QUIT".to_vec()),
                prop::collection::vec(any::<u8>().prop_filter("line ends", |b| !b"\r\n".contains(b)), 0..90),
                Just(vec![b'.'; 3_000]),
            ],
            0..60,
        ),
        ended in any::<bool>(),
        pipe in prop_oneof![Just(16usize), Just(1024), Just(1 << 17)],
    ) {
        let body = [lines.join(b"\r\n".as_slice()), if ended { b"\r\n".to_vec() } else { Vec::new() }].concat();
        let server = SmtpServer::new();
        let report = paused(async {
            let network = MemoryNetwork::new();
            network.pipe_capacity(pipe).listen(peer(), &server);
            let mut session = SmtpTransport::over(network).connect(&target()).await.unwrap();
            let first = session.transact(&transaction(&["b@y.example"], body.clone())).await;
            // The session is still in step.
            let second = session.transact(&simple()).await;
            assert_eq!(second.dot.map(|reply| reply.code()), Some(250));
            first
        });
        prop_assert_eq!(report.end, None);
        let mut expected = body.clone();
        if !body.is_empty() && !body.ends_with(b"\r\n") {
            expected.extend_from_slice(b"\r\n");
        }
        let messages = server.messages();
        prop_assert_eq!(messages.len(), 2);
        prop_assert_eq!(&messages[0].content[..], &expected[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn large_content_through_a_small_pipe() {
    let line = [vec![b'x'; 998], b"\r\n".to_vec()].concat();
    let body = Bytes::from(line.repeat(5 * 1024));
    for pipe in [1_000, 1 << 16] {
        let server = SmtpServer::new();
        let network = MemoryNetwork::new();
        network.pipe_capacity(pipe).listen(peer(), &server);
        let mut session = SmtpTransport::over(network).connect(&target()).await.unwrap();
        let report = session.transact(&transaction(&["b@y.example"], body.clone())).await;
        assert_eq!((report.dot.unwrap().code(), report.dot_sent), (250, true));
        assert!(server.messages()[0].content == body);
    }
}

#[tokio::test(start_paused = true)]
async fn null_reverse_path_and_empty_content() {
    let server = SmtpServer::new();
    let mut session = session(&server).await;
    let mut transaction = transaction(&["b@y.example"], "");
    transaction.reverse_path = None;
    assert_eq!(session.transact(&transaction).await.dot.unwrap().code(), 250);
    assert_eq!((server.messages()[0].reverse_path.as_str(), server.messages()[0].content.len()), ("", 0));
}

/// Takes `taken` octets of content, then says `last` and closes, or stays.
async fn refusing_midway(mut lines: Lines, taken: usize, last: &'static str, stay: bool) {
    lines.open(ALL).await;
    for reply in ["250 ok\r\n", "250 ok\r\n", "354 go\r\n"] {
        lines.hear().await;
        lines.say(reply).await;
    }
    let mut left = taken;
    while left > 0 {
        left = left.saturating_sub(lines.hear().await.len() + 2);
    }
    lines.say(last).await;
    if stay {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_refusal_is_the_reply_to_the_content() {
    let body = Bytes::from("0123456789\r\n".repeat(100_000));
    for stay in [true, false] {
        let mut session =
            connect_to(4_096, move |lines| refusing_midway(lines, 10_000, "552 5.3.4 too large\r\n", stay))
                .await
                .unwrap();
        let clock = clock();
        let report = session.transact(&transaction(&["b@y.example"], body.clone())).await;
        assert_eq!(report.dot.as_ref().unwrap().code(), 552, "stay {stay}");
        assert!(!report.dot_sent);
        assert!(matches!(end_of(&report), (Stage::Data, EndCause::Reply(reply)) if reply.code() == 552));
        // It is read at once, not after a time limit.
        assert!(clock.now() < Timestamp::from_unix_seconds(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_421_before_the_dot_is_recorded_too() {
    let body = Bytes::from("0123456789\r\n".repeat(100_000));
    let mut session =
        connect_to(4_096, |lines| refusing_midway(lines, 10_000, "421 4.3.2 bye\r\n", false)).await.unwrap();
    let report = session.transact(&transaction(&["b@y.example"], body)).await;
    assert_eq!(codes(&report), (Some(250), vec![Some(250)], Some(354), Some(421)));
}

#[tokio::test(start_paused = true)]
async fn an_acceptance_before_the_dot_is_none() {
    let body = Bytes::from("0123456789\r\n".repeat(100_000));
    for stay in [true, false] {
        let mut session =
            connect_to(4_096, move |lines| refusing_midway(lines, 10_000, "250 fine\r\n", stay))
                .await
                .unwrap();
        let report = session.transact(&transaction(&["b@y.example"], body.clone())).await;
        assert_eq!((report.dot.as_ref(), report.dot_sent), (None, false));
        assert_eq!(end_of(&report).0, Stage::Data);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_right_behind_the_354() {
    let mut session = connect_to(4_096, |mut lines| async move {
        lines.open(ALL).await;
        for _ in 0..3 {
            lines.hear().await;
        }
        lines.say("250 ok\r\n250 ok\r\n354 go\r\n451 4.3.0 no, wait\r\n").await;
        lines.silence().await;
    })
    .await
    .unwrap();
    let report = session.transact(&simple()).await;
    assert_eq!(codes(&report), (Some(250), vec![Some(250)], Some(354), Some(451)));
    assert!(!report.dot_sent && report.end.is_some());
}

#[tokio::test(start_paused = true)]
async fn closed_or_reset_midway() {
    let body = Bytes::from("0123456789\r\n".repeat(100_000));
    let mut session = connect_to(4_096, |lines| refusing_midway(lines, 10_000, "", false)).await.unwrap();
    let report = session.transact(&transaction(&["b@y.example"], body)).await;
    assert_eq!(codes(&report), (Some(250), vec![Some(250)], Some(354), None));
    let (stage, cause) = end_of(&report);
    assert!(stage == Stage::Data && matches!(cause, EndCause::Closed | EndCause::Broken(_)), "{cause:?}");
    assert!(!report.dot_sent);

    let server = SmtpServer::new().reply(Command::Dot, Behaviour::Reset);
    let mut session = super::session(&server).await;
    let report = session.transact(&simple()).await;
    assert!(matches!(end_of(&report), (Stage::Dot, EndCause::Broken(_))));
    assert!(report.dot_sent && report.dot.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_reading_times_out_block_by_block() {
    let mut session = connect_to(4_096, |mut lines| async move {
        lines.open(ALL).await;
        for reply in ["250 ok\r\n", "250 ok\r\n", "354 go\r\n"] {
            lines.hear().await;
            lines.say(reply).await;
        }
        // Keeps the pipe, reads nothing.
        let _kept = lines;
        std::future::pending::<()>().await;
    })
    .await
    .unwrap();
    let clock = clock();
    let report = session.transact(&transaction(&["b@y.example"], "0123456789\r\n".repeat(100_000))).await;
    let limit = Duration::from_secs(180);
    assert_eq!(end_of(&report), (Stage::Data, &EndCause::Timeout(limit)));
    let took = clock.now().saturating_since(Timestamp::EPOCH);
    assert!(took >= limit && took < limit + Duration::from_secs(1), "{took:?}");
}
