//! Content by BDAT (RFC 3030).

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

use super::*;
use crate::testing::{Behaviour, Command};
use crate::transport::Protocol;
use crate::transport::smtp::memory::Memory;

const OFFERS: &str = "250-mx.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n";
const TO: [&str; 3] = ["a@y.example", "b@y.example", "c@y.example"];

fn offering() -> SmtpServer {
    SmtpServer::new().ehlo(["PIPELINING", "8BITMIME", "SIZE", "CHUNKING"])
}

fn by_bdat(to: &[&str], body: impl Into<Bytes>) -> Transaction {
    Transaction { chunking: true, ..transaction(to, body) }
}

fn to_b(body: impl Into<Bytes>) -> Transaction {
    by_bdat(&["b@y.example"], body)
}

fn large() -> Bytes {
    "0123456789\r\n".repeat(100_000).into()
}

async fn session_over(server: &SmtpServer, protocol: Protocol) -> Box<dyn Session> {
    let network = MemoryNetwork::new();
    network.listen(peer(), server);
    SmtpTransport::over(network).connect(&Target { protocol, ..target() }).await.unwrap()
}

/// That the server does not do BDAT.
fn is_told(report: &TransactionReport) -> bool {
    let words = "CHUNKING is offered and BDAT is refused as a command: ";
    matches!(end_of(report), (Stage::Data, EndCause::Protocol(text)) if text.starts_with(words))
}

#[tokio::test(start_paused = true)]
async fn where_it_is_wanted_and_offered() {
    for (chunking, keywords, expected) in [
        (true, vec!["PIPELINING", "CHUNKING"], "EHLO MAIL RCPT BDAT"),
        (true, vec!["chunking"], "EHLO MAIL RCPT BDAT"),
        (false, vec!["PIPELINING", "CHUNKING"], "EHLO MAIL RCPT DATA ."),
        (true, vec!["PIPELINING"], "EHLO MAIL RCPT DATA ."),
        (true, vec!["XCHUNKING"], "EHLO MAIL RCPT DATA ."),
    ] {
        let server = SmtpServer::new().ehlo(keywords);
        let mut session = session(&server).await;
        let report = session.transact(&Transaction { chunking, ..simple() }).await;
        assert_eq!((report.dot.unwrap().code(), report.dot_sent, report.end), (250, true, None));
        assert_eq!(verbs(&server), expected);
    }
}

/// What DATA delivers, over each protocol, with and without pipelining, and the session is in step.
#[tokio::test(start_paused = true)]
async fn the_same_content_arrives_as_by_data() {
    let bodies: [&[u8]; 10] = [
        b"",
        b"\r\n",
        b".",
        b"no end",
        b".\r\n",
        b"a\r\n.\r\nb\r\n",
        b".a\r\n..\r\n\r\n.b",
        b"QUIT\r\nRSET\r\nBDAT 5 LAST\r\n",
        b"h\xe9\xff\x80\r\n",
        &large()[..1 << 20],
    ];
    for protocol in [Protocol::Smtp, Protocol::Lmtp] {
        for pipelining in [true, false] {
            let keywords = ["8BITMIME", "CHUNKING"].into_iter().chain(pipelining.then_some("PIPELINING"));
            let server = SmtpServer::new().ehlo(keywords);
            let server = if protocol == Protocol::Lmtp { server.lmtp() } else { server };
            let mut session = session_over(&server, protocol).await;
            for body in bodies {
                let body = Bytes::copy_from_slice(body);
                for chunking in [true, false] {
                    let message = Transaction { chunking, ..transaction(&TO, body.clone()) };
                    assert_eq!(session.transact(&message).await.end, None);
                }
                let messages = server.messages();
                let [.., first, second] = &messages[..] else { panic!("two came") };
                assert!(first == second, "{protocol:?} {:?}", String::from_utf8_lossy(&body));
                let octets = first.content.len();
                assert!(server.commands().contains(&format!("BDAT {octets} LAST")));
            }
            assert_eq!(server.message_count(), 2 * bodies.len() as u64);
            assert!(!verbs(&server).contains("RSET"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_arrives_is_what_was_sent(
        lines in prop::collection::vec(
            prop_oneof![
                Just(Vec::new()), Just(b".".to_vec()), Just(b"QUIT".to_vec()),
                prop::collection::vec(any::<u8>().prop_filter("line ends", |b| !b"\r\n".contains(b)), 0..90),
                Just(vec![b'.'; 30_000]),
            ],
            0..20,
        ),
        ended in any::<bool>(),
        pipe in prop_oneof![Just(16usize), Just(1024), Just(1 << 17)],
    ) {
        let mut body = lines.join(b"\r\n".as_slice());
        if ended {
            body.extend_from_slice(b"\r\n");
        }
        let server = offering();
        paused(async {
            let network = MemoryNetwork::new();
            network.pipe_capacity(pipe).listen(peer(), &server);
            let mut session = SmtpTransport::over(network).connect(&target()).await.unwrap();
            for message in [to_b(body.clone()), to_b("x\r\n")] {
                let report = session.transact(&message).await;
                assert_eq!((report.dot.map(|reply| reply.code()), report.end), (Some(250), None));
            }
        });
        if !body.is_empty() && !body.ends_with(b"\r\n") {
            body.extend_from_slice(b"\r\n");
        }
        let messages = server.messages();
        prop_assert_eq!((messages.len(), &messages[1].content[..]), (2, &b"x\r\n"[..]));
        prop_assert_eq!(&messages[0].content[..], &body[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_envelope_is_one_write_and_the_chunk_another() {
    let mut session = connect_to(1 << 16, |mut lines| async move {
        lines.open(OFFERS).await;
        assert_eq!(lines.hear().await, "MAIL FROM:<a@x.example>");
        assert_eq!(lines.hear().await, "RCPT TO:<b@y.example>");
        // Nothing follows before the replies.
        assert!(lines.0.buffer().is_empty());
        let early = tokio::time::timeout(Duration::from_secs(60), lines.hear()).await;
        assert!(early.is_err(), "{early:?}");
        lines.say("250 ok\r\n250 ok\r\n").await;
        assert_eq!(lines.hear().await, "BDAT 18 LAST");
        assert_eq!(lines.0.buffer(), b"Subject: x\r\n\r\nhi\r\n");
        lines.0.consume(18);
        lines.say("250 taken\r\n").await;
        assert_eq!(lines.hear().await, "QUIT");
    })
    .await
    .unwrap();
    let report = session.transact(&Transaction { chunking: true, ..simple() }).await;
    assert_eq!(codes(&report), (Some(250), vec![Some(250)], None, Some(250)));
    session.quit().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_nobody() {
    for (keywords, refused) in [
        (vec!["PIPELINING", "CHUNKING"], "EHLO MAIL RCPT RCPT RSET MAIL RCPT BDAT MAIL RCPT BDAT"),
        (vec!["CHUNKING"], "EHLO MAIL RCPT RCPT RSET MAIL RCPT BDAT MAIL RCPT BDAT"),
    ] {
        let server = SmtpServer::new().ehlo(keywords).reply(Command::Rcpt, "450 4.2.0 busy").times(2);
        let mut session = session(&server).await;
        let report = session.transact(&by_bdat(&TO[..2], "x\r\n")).await;
        assert_eq!(codes(&report), (Some(250), vec![Some(450); 2], None, None));
        assert!(report.end.is_none() && !report.dot_sent);
        for _ in 0..2 {
            assert_eq!(session.transact(&to_b("x\r\n")).await.dot.unwrap().code(), 250);
        }
        assert_eq!(verbs(&server), refused);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_where_mail_was_refused() {
    // A recipient is accepted all the same.
    let mut session = connect_to(1 << 16, |mut lines| async move {
        lines.open(OFFERS).await;
        for (expected, reply) in [
            ("MAIL", "451 4.3.0 no\r\n"),
            ("RCPT", "250 ok\r\n"),
            ("RSET", "250 ok\r\n"),
            ("MAIL", "250 ok\r\n"),
            ("RCPT", "250 ok\r\n"),
            ("BDAT", ""),
            ("x", "250 taken\r\n"),
        ] {
            let heard = lines.hear().await;
            assert!(heard.starts_with(expected), "{heard} is not {expected}");
            lines.say(reply).await;
        }
    })
    .await
    .unwrap();
    let report = session.transact(&to_b("x\r\n")).await;
    assert_eq!(codes(&report), (Some(451), vec![Some(250)], None, None));
    assert!(report.end.is_none() && !report.dot_sent);
    assert_eq!(session.transact(&to_b("x\r\n")).await.dot.unwrap().code(), 250);
}

/// The kit's server takes nothing but RSET after a chunk that it refused (RFC 3030 §2).
#[tokio::test(start_paused = true)]
async fn after_a_refused_chunk_comes_rset() {
    for code in [450, 452, 550, 552, 554, 505] {
        for pipelining in [true, false] {
            let keywords = ["CHUNKING"].into_iter().chain(pipelining.then_some("PIPELINING"));
            let server = SmtpServer::new().ehlo(keywords);
            let server = server.reply(Command::Dot, format!("{code} no")).after(1).times(1);
            let mut session = session(&server).await;
            for expected in [250, code, 250, 250] {
                let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
                let (dot, all) = (report.dot.as_ref().unwrap().code(), vec![Some(250); 3]);
                assert_eq!((dot, codes(&report).1, &report.end), (expected, all, &None));
                assert!(report.dot_sent);
            }
            let once = "MAIL RCPT RCPT RCPT BDAT";
            assert_eq!(verbs(&server), format!("EHLO {once} {once} RSET {once} {once}"));
            assert_eq!(server.message_count(), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_lmtp_each_recipient_has_a_reply_of_its_own() {
    let server = offering()
        .lmtp()
        .reply_to_rcpt("b@y.example", "550 5.1.1 nobody")
        .reply_to_content_of("c@y.example", "452 4.2.2 full")
        .times(1);
    let mut session = session_over(&server, Protocol::Lmtp).await;
    let contents = |report: &TransactionReport| {
        let code = |recipient: &RecipientReport| match recipient {
            RecipientReport::Content(reply) => Some(reply.code()),
            _ => None,
        };
        report.recipients.iter().map(code).collect::<Vec<_>>()
    };
    let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
    assert_eq!(contents(&report), [Some(250), None, Some(452)]);
    assert!(report.dot_sent && report.dot.is_none() && report.end.is_none());
    for _ in 0..2 {
        let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
        assert_eq!((contents(&report), report.end), (vec![Some(250), None, Some(250)], None));
    }
    let once = "MAIL RCPT RCPT RCPT BDAT";
    assert_eq!(verbs(&server), format!("LHLO {once} RSET {once} {once}"));
    assert_eq!(server.messages()[0].recipients, ["a@y.example"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_do_it_is_sent_data_for_a_week() {
    for code in 500..=504 {
        // Behind the chunk; while it is read; at the command, after which the content is read as commands.
        for place in [Command::Dot, Command::Content, Command::Bdat] {
            for (body, lmtp) in
                [("NOOP\r\n".into(), false), (large(), false), (large(), true), ("x\r\n".into(), true)]
            {
                let case = format!("{code} {place:?} {} {lmtp}", body.len());
                if place == Command::Content && body.len() < 1_000 {
                    // What has come to its end is not answered before it.
                    continue;
                }
                // In LMTP one for each recipient.
                let times = if lmtp && place == Command::Dot { 3 } else { 1 };
                let server = offering().reply(place, format!("{code} 5.5.1 what?")).times(times);
                let server = if lmtp { server.lmtp() } else { server };
                let protocol = if lmtp { Protocol::Lmtp } else { Protocol::Smtp };
                let network = MemoryNetwork::new();
                network.pipe_capacity(4_096).listen(peer(), &server);
                let transport = SmtpTransport::over(network);
                let target = Target { protocol, ..target() };
                let mut open_already = transport.connect(&target).await.unwrap();
                let mut session = transport.connect(&target).await.unwrap();
                let report = session.transact(&by_bdat(&TO, body.clone())).await;
                assert_eq!(codes(&report), (Some(250), vec![Some(250); 3], None, None), "{case}");
                // In LMTP the first reply may be the first recipient's own, and others have the mail.
                let is_in_doubt = lmtp && (place == Command::Dot || body.len() < 1_000);
                assert!(is_told(&report) && report.dot_sent == is_in_doubt, "{case}: {:?}", report.end);
                drop(session);

                let mut next = transport.connect(&target).await.unwrap();
                for session in [&mut open_already, &mut next] {
                    let report = session.transact(&by_bdat(&TO, body.clone())).await;
                    assert_eq!((report.end, report.dot_sent), (None, true), "{case}");
                }
                let commands = server.commands();
                let last = commands[commands.len() - 5..].iter().map(|line| &line[..4.min(line.len())]);
                assert_eq!(last.collect::<Vec<_>>(), ["RCPT", "RCPT", "RCPT", "DATA", "."], "{case}");
                assert_eq!(server.message_count(), 2, "{case}");

                tokio::time::advance(Memory::WITHOUT_BDAT_FOR).await;
                let mut later = transport.connect(&target).await.unwrap();
                assert_eq!(later.transact(&by_bdat(&TO, "y\r\n")).await.end, None, "{case}");
                assert!(server.commands().last().unwrap().starts_with("BDAT 3 LAST"), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_about_the_command_is_told_by_code_and_status() {
    for (reply, is_about_it) in [
        ("521 5.5.1 Error: command not implemented", true),
        ("504 5.5.2 <a>: Sender address rejected: need fully-qualified address", false),
        ("501 what?", true),
        ("501 5.1.7 no such sender", false),
        ("503 5.5.0 odd", true),
        ("550 5.5.1 what?", true),
        ("550 5.7.1 no", false),
        ("451 4.5.1 later", false),
    ] {
        let server = offering().reply(Command::Dot, reply);
        let mut session = session_over(&server, Protocol::Smtp).await;
        let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
        assert_eq!((report.end.is_some(), report.dot.is_none()), (is_about_it, is_about_it), "{reply}");
        assert!(!is_about_it || is_told(&report), "{reply}: {:?}", report.end);
    }
}

/// It may be about the command; if not, the others have the mail.
#[tokio::test(start_paused = true)]
async fn the_first_recipients_own_503_leaves_it_in_doubt() {
    let server = offering().lmtp().reply_to_content_of("a@y.example", "503 5.5.1 odd");
    let mut session = session_over(&server, Protocol::Lmtp).await;
    let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
    assert!(is_told(&report) && report.dot_sent);
    let mut session = session_over(&server, Protocol::Lmtp).await;
    let report = session.transact(&by_bdat(&["a@y.example"], "x\r\n")).await;
    assert!(is_told(&report) && !report.dot_sent);
}

/// Of several replies of one transaction in LMTP the first alone is about the command.
#[tokio::test(start_paused = true)]
async fn a_recipients_own_503_is_a_verdict() {
    let server = offering().lmtp().reply_to_content_of("b@y.example", "503 5.5.1 odd");
    let mut session = session_over(&server, Protocol::Lmtp).await;
    let report = session.transact(&by_bdat(&TO, "x\r\n")).await;
    let codes = report.recipients.iter().map(|recipient| match recipient {
        RecipientReport::Content(reply) => reply.code(),
        other => panic!("{other:?}"),
    });
    assert_eq!((codes.collect::<Vec<_>>(), report.end), (vec![250, 503, 250], None));
}

/// Whoever reads content as commands is told nothing more, not even QUIT.
#[tokio::test(start_paused = true)]
async fn nothing_follows_a_refused_bdat() {
    let (heard, mut all) = tokio::sync::mpsc::channel(16);
    let mut session = connect_to(1 << 16, move |mut lines| {
        let heard = heard.clone();
        async move {
            lines.open(OFFERS).await;
            loop {
                let line = lines.hear().await;
                let reply = match line.split(' ').next() {
                    Some("MAIL" | "RCPT") => "250 ok\r\n",
                    Some("") => return,
                    _ => "502 5.5.2 what?\r\n",
                };
                lines.say(reply).await;
                heard.try_send(line).unwrap();
            }
        }
    })
    .await
    .unwrap();
    let report = session.transact(&to_b("first\r\nsecond\r\n")).await;
    assert!(is_told(&report));
    let again = session.transact(&to_b("x\r\n")).await;
    assert_eq!((again.mail, again.end), (None, report.end));
    session.quit().await;
    let mut heard = Vec::new();
    while let Some(line) = all.recv().await {
        heard.push(line);
    }
    assert_eq!(heard[2..], ["BDAT 15 LAST", "first", "second"]);
}

/// Takes `taken` octets of a chunk, then says `last` and closes, or stays.
async fn breaking_off(mut lines: Lines, taken: usize, last: &'static str, stay: bool) {
    lines.open(OFFERS).await;
    for _ in 0..2 {
        lines.hear().await;
    }
    lines.say("250 ok\r\n250 ok\r\n").await;
    lines.hear().await;
    let read = lines.0.buffer().len();
    lines.0.consume(read);
    let mut rest = vec![0; taken - read];
    lines.0.get_mut().read_exact(&mut rest).await.unwrap();
    // The client has written what it can.
    let _ = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
    lines.say(last).await;
    if stay {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_reply_is_what_it_is_to_data() {
    for (last, code) in [
        ("552 5.3.4 too large\r\n", Some(552)),
        ("452 4.3.1 full\r\n", Some(452)),
        ("421 4.3.2 bye\r\n", Some(421)),
        ("250 fine\r\n", None),
        ("354 go on\r\n", None),
        ("what?\r\n", None),
    ] {
        for stay in [true, false] {
            let script = move |lines| breaking_off(lines, 10_000, last, stay);
            let mut session = connect_to(4_096, script).await.unwrap();
            let clock = clock();
            let report = session.transact(&to_b(large())).await;
            assert_eq!(codes(&report), (Some(250), vec![Some(250)], None, code), "{last}");
            let (stage, cause) = end_of(&report);
            assert_eq!((stage, matches!(cause, EndCause::Reply(_))), (Stage::Data, code.is_some()), "{last}");
            assert!(!report.dot_sent, "{last}");
            assert!(clock.now() < Timestamp::from_unix_seconds(1));
        }
    }
}

/// A chunk is complete with its last octet, to the octet.
#[tokio::test(start_paused = true)]
async fn it_may_have_arrived_only_with_its_last_octet() {
    let pipe = 4_096;
    for (body, ending) in [(large(), ""), (Bytes::from("x".repeat(70_000)), "\r\n")] {
        let octets = body.len() + ending.len();
        for (short, may_have) in [(pipe + 1, false), (pipe, true)] {
            let script = move |lines| breaking_off(lines, octets - short, "", false);
            let mut session = connect_to(pipe, script).await.unwrap();
            let report = session.transact(&to_b(body.clone())).await;
            assert_eq!(codes(&report), (Some(250), vec![Some(250)], None, None));
            assert_eq!(report.dot_sent, may_have, "{short} octets short");
            let stage = if may_have { Stage::Dot } else { Stage::Data };
            assert!(matches!(end_of(&report), (at, EndCause::Closed | EndCause::Broken(_)) if at == stage));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_behind_the_chunk() {
    for (behaviour, cause) in [
        (Behaviour::Close, None),
        (Behaviour::Reset, None),
        (Behaviour::Silence, Some(EndCause::Timeout(Duration::from_secs(600)))),
    ] {
        let mut session = session(&offering().reply(Command::Dot, behaviour)).await;
        let report = session.transact(&to_b("x\r\n")).await;
        assert_eq!(codes(&report), (Some(250), vec![Some(250)], None, None));
        let (stage, end) = end_of(&report);
        assert!(report.dot_sent && stage == Stage::Dot, "{end:?}");
        assert!(cause.is_none_or(|cause| *end == cause), "{end:?}");
    }
}

/// A server that stops in the middle of a chunk: each block has its time.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_reading_times_out() {
    let mut session = connect_to(4_096, |lines| breaking_off(lines, 10_000, "", true)).await.unwrap();
    let report = session.transact(&to_b(large())).await;
    let limit = Timeouts::default().data_block;
    assert_eq!(end_of(&report), (Stage::Data, &EndCause::Timeout(limit)));
    assert!(!report.dot_sent);
}

/// A reply that came before BDAT was sent is none to it: no verdict, and no word on what the server can do.
#[tokio::test(start_paused = true)]
async fn a_reply_too_many_is_never_the_chunks() {
    for extra in ["250 2.0.0 ok", "550 5.7.1 no", "502 5.5.1 what?"] {
        let server = SmtpServer::new().ehlo(["PIPELINING", "CHUNKING"]);
        let server = server.reply(Command::Rcpt, format!("250 ok\n{extra}")).times(1);
        let network = MemoryNetwork::new();
        network.listen(peer(), &server);
        let transport = SmtpTransport::over(network);
        let mut session = transport.connect(&target()).await.unwrap();
        let report = session.transact(&to_b("x\r\n")).await;
        assert_eq!(codes(&report), (Some(250), vec![Some(250)], None, None), "{extra}");
        assert!(matches!(end_of(&report), (Stage::Data, EndCause::Protocol(_))) && !is_told(&report));
        assert!(!report.dot_sent && server.message_count() == 0);
        let mut session = transport.connect(&target()).await.unwrap();
        assert_eq!(session.transact(&to_b("x\r\n")).await.dot.unwrap().code(), 250);
        assert_eq!(verbs(&server), "EHLO MAIL RCPT EHLO MAIL RCPT BDAT");
    }
}

#[tokio::test(start_paused = true)]
async fn parameters_and_limits_are_those_of_data() {
    let server = SmtpServer::new().ehlo(["SIZE 10", "8BITMIME", "CHUNKING"]);
    let mut session = session(&server).await;
    for body in ["12345678901", "a\nb\r\n"] {
        let report = session.transact(&to_b(body)).await;
        assert!(matches!(report.recipients[..], [RecipientReport::Unsendable(_)]), "{body}");
    }
    assert_eq!(session.transact(&to_b("h\u{e9}")).await.dot.unwrap().code(), 250);
    assert_eq!(server.messages()[0].mail_parameters, "SIZE=5 BODY=8BITMIME");
    assert_eq!(server.commands().last().unwrap(), "BDAT 5 LAST");
}

#[cfg(feature = "tls")]
#[tokio::test(start_paused = true)]
async fn over_tls() {
    let server = offering().starttls(&crate::testing::TestCertificate::new(["mx.example"]).unwrap());
    let network = MemoryNetwork::new();
    network.pipe_capacity(4_096).listen(peer(), &server);
    let mut session = SmtpTransport::over(network).connect(&target()).await.unwrap();
    assert!(session.tls().is_some());
    for body in ["".into(), "x".into(), large()] {
        for chunking in [true, false] {
            let message = Transaction { chunking, ..transaction(&TO, Bytes::clone(&body)) };
            assert_eq!(session.transact(&message).await.dot.unwrap().code(), 250);
        }
    }
    let messages = server.messages();
    assert!(messages.len() == 6 && messages.chunks(2).all(|pair| pair[0] == pair[1]));
}
