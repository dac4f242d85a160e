//! MAIL, RCPT and DATA: groups, verdicts, what is not sent.

use super::*;
use crate::testing::Command;
use crate::transport::Unsendable;

#[tokio::test(start_paused = true)]
async fn with_pipelining_the_group_is_one_write() {
    let mut session = connect_to(1 << 16, |mut lines| async move {
        lines.open(ALL).await;
        // One read of the pipe gives what one write put in.
        let group = lines.0.fill_buf().await.unwrap().to_vec();
        assert_eq!(
            String::from_utf8(group).unwrap(),
            "MAIL FROM:<a@x.example> SIZE=18\r\nRCPT TO:<b@y.example>\r\nDATA\r\n"
        );
        for _ in 0..3 {
            lines.hear().await;
        }
        lines.say("250 ok\r\n250 ok\r\n354 go\r\n").await;
        let content = lines.0.fill_buf().await.unwrap().to_vec();
        assert_eq!(String::from_utf8(content).unwrap(), "Subject: x\r\n\r\nhi\r\n.\r\n");
        lines.hear_content().await;
        lines.say("250 taken\r\n").await;
        lines.hear().await;
    })
    .await
    .unwrap();
    let report = session.transact(&simple()).await;
    assert_eq!(report.dot.unwrap().text(), "taken");
}

#[tokio::test(start_paused = true)]
async fn every_recipient_has_its_own_verdict() {
    for keywords in [vec!["PIPELINING"], vec![]] {
        let server = SmtpServer::new()
            .ehlo(keywords)
            .reply_to_rcpt("b@y.example", "450 4.2.0 busy")
            .reply_to_rcpt("d@y.example", "550-5.1.1 no\n550 5.1.1 such user");
        let mut session = session(&server).await;
        let to = ["a@y.example", "b@y.example", "c@y.example", "d@y.example"];
        let report = session.transact(&transaction(&to, "x\r\n")).await;
        let rcpt = vec![Some(250), Some(450), Some(250), Some(550)];
        assert_eq!(codes(&report), (Some(250), rcpt, Some(354), Some(250)));
        assert!(
            matches!(&report.recipients[3], RecipientReport::Reply(reply) if reply.text() == "no such user")
        );
        assert_eq!(server.messages()[0].recipients, ["a@y.example", "c@y.example"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_421_to_one_recipient_keeps_the_others_verdicts() {
    for keywords in [vec!["PIPELINING"], vec![]] {
        let server = SmtpServer::new().ehlo(keywords).reply_to_rcpt("b@y.example", "421 4.7.0 enough");
        let mut session = session(&server).await;
        let report =
            session.transact(&transaction(&["a@y.example", "b@y.example", "c@y.example"], "x\r\n")).await;
        assert_eq!(codes(&report), (Some(250), vec![Some(250), Some(421), None], None, None));
        assert!(matches!(end_of(&report), (Stage::Rcpt, EndCause::Reply(_))));
        let again = session.transact(&simple()).await;
        assert_eq!((again.end, again.mail), (report.end, None));
        assert_eq!(server.message_count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_transaction_is_reset_before_the_next() {
    for (keywords, expected) in [
        (vec!["PIPELINING"], "EHLO MAIL RCPT DATA RSET MAIL RCPT DATA . MAIL RCPT DATA ."),
        (vec![], "EHLO MAIL RCPT RSET MAIL RCPT DATA . MAIL RCPT DATA ."),
    ] {
        let server = SmtpServer::new().ehlo(keywords).reply(Command::Rcpt, "450 4.2.0 busy").times(1);
        let mut session = session(&server).await;
        assert_eq!(session.transact(&simple()).await.dot, None);
        for _ in 0..2 {
            assert_eq!(session.transact(&simple()).await.dot.unwrap().code(), 250);
        }
        assert_eq!(verbs(&server), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_reset_ends_the_session_without_verdicts() {
    for keywords in [vec!["PIPELINING"], vec![]] {
        let server = SmtpServer::new()
            .ehlo(keywords)
            .reply(Command::Rcpt, "450 4.2.0 busy")
            .times(1)
            .reply(Command::Rset, "502 5.5.1 what");
        let mut session = session(&server).await;
        session.transact(&simple()).await;
        let report = session.transact(&simple()).await;
        assert_eq!(codes(&report), (None, vec![None], None, None));
        assert!(matches!(end_of(&report), (Stage::Mail, EndCause::Reply(reply)) if reply.code() == 502));
    }
}

#[tokio::test(start_paused = true)]
async fn a_354_for_nobody_gets_a_lone_dot() {
    let server = SmtpServer::new()
        .reply(Command::Rcpt, "550 5.1.1 no")
        .times(1)
        .reply(Command::Data, "354 go")
        .times(1);
    let mut session = session(&server).await;
    let report = session.transact(&simple()).await;
    assert_eq!(codes(&report), (Some(250), vec![Some(550)], Some(354), None));
    assert!(!report.dot_sent && report.end.is_none());
    assert_eq!(server.message_count(), 0);
    assert_eq!(session.transact(&simple()).await.dot.unwrap().code(), 250);
    assert_eq!(server.messages().len(), 1);
    assert_eq!(verbs(&server), "EHLO MAIL RCPT DATA . RSET MAIL RCPT DATA .");
}

#[tokio::test(start_paused = true)]
async fn no_content_for_recipients_of_a_refused_mail() {
    let mut session = connect_to(1 << 16, |mut lines| async move {
        lines.open(ALL).await;
        for reply in ["451 no\r\n", "250 ok\r\n", "354 go\r\n"] {
            lines.hear().await;
            lines.say(reply).await;
        }
        assert_eq!(lines.hear().await, "");
    })
    .await
    .unwrap();
    let report = session.transact(&simple()).await;
    assert_eq!(codes(&report), (Some(451), vec![Some(250)], Some(354), None));
    assert!(matches!(end_of(&report), (Stage::Data, EndCause::Protocol(_))));
}

#[tokio::test(start_paused = true)]
async fn after_a_refused_mail_the_groups_replies_are_kept_as_they_came() {
    let server = SmtpServer::new().reply(Command::Mail, "451 4.7.1 greylisted").times(1);
    let mut session = session(&server).await;
    let report = session.transact(&simple()).await;
    assert_eq!(codes(&report), (Some(451), vec![Some(503)], Some(503), None));
    assert_eq!(report.end, None);
    assert_eq!(session.transact(&simple()).await.dot.unwrap().code(), 250);
}

#[tokio::test(start_paused = true)]
async fn huge_groups_do_not_deadlock() {
    // The pipe holds a tiny part of either side's octets.
    let mut session = connect_to(512, |mut lines| async move {
        lines.open(ALL).await;
        loop {
            match lines.hear().await.as_str() {
                "" => return,
                "DATA" => break,
                line => lines.say(format!("250 {line} and some more text\r\n")).await,
            }
        }
        lines.say("354 go\r\n").await;
        lines.hear_content().await;
        lines.say("250 taken\r\n").await;
    })
    .await
    .unwrap();
    let to: Vec<String> = (0..5_000).map(|i| format!("user{i}@y.example")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let report = session.transact(&transaction(&to, "x\r\n")).await;
    assert_eq!(report.dot.unwrap().code(), 250);
    assert!(report.recipients.iter().zip(&to).all(|(report, to)| {
        matches!(report, RecipientReport::Reply(reply) if reply.text().contains(&format!("<{to}>")))
    }));
}

#[tokio::test(start_paused = true)]
async fn what_a_server_can_not_take_is_not_sent() {
    use RecipientReport::{None as Unasked, Unsendable as Not};
    let utf8_to = ["b@y.example", "jörg@y.example"];
    let big = [b'x'; 99];
    let too_large = Not(Unsendable::TooLarge { size: 101, limit: 100 });
    for (offers, to, body, expected) in [
        (vec!["SIZE 100"], &utf8_to[..1], &big[..], vec![too_large]),
        (vec!["SIZE 101"], &utf8_to[..1], &big[..], vec![Unasked]),
        (vec!["SIZE"], &utf8_to[..1], &big[..], vec![Unasked]),
        (vec![], &utf8_to[..1], "h\u{e9}\r\n".as_bytes(), vec![Not(Unsendable::EightBit)]),
        (vec!["8BITMIME"], &utf8_to[..1], "h\u{e9}\r\n".as_bytes(), vec![Unasked]),
        (vec!["8BITMIME"], &utf8_to[..], b"x\r\n", vec![Unasked, Not(Unsendable::Utf8Address)]),
        (vec!["SMTPUTF8"], &utf8_to[..], b"x\r\n", vec![Unasked, Unasked]),
        (vec!["SIZE"], &utf8_to[..1], b"x\r\n.\n", vec![Not(Unsendable::BareLineEnding)]),
    ] {
        let case = format!("{offers:?} {to:?}");
        let server = SmtpServer::new().ehlo(offers);
        let mut session = session(&server).await;
        let report = session.transact(&transaction(to, body.to_vec())).await;
        assert_eq!(report.end, None, "{case}");
        for (got, expected) in report.recipients.iter().zip(&expected) {
            match expected {
                Unasked => {
                    assert!(matches!(got, RecipientReport::Reply(reply) if reply.code() == 250), "{case}")
                }
                _ => assert_eq!(got, expected, "{case}"),
            }
        }
        let asked = expected.contains(&Unasked);
        assert_eq!(server.commands().len() > 1, asked, "{case}");
        assert_eq!(server.message_count(), u64::from(asked), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_utf8_sender_concerns_everyone() {
    let server = SmtpServer::new().ehlo(["PIPELINING"]);
    let mut session = session(&server).await;
    let mut transaction = simple();
    transaction.reverse_path = Some(Address::parse("jörg@x.example").unwrap());
    let report = session.transact(&transaction).await;
    assert_eq!(report.recipients, [RecipientReport::Unsendable(Unsendable::Utf8Address)]);
    assert_eq!(server.commands(), ["EHLO out.example"]);
}

/// By the word of who sends it, whatever is in it.
#[tokio::test(start_paused = true)]
async fn a_header_in_utf8_goes_where_smtputf8_is_offered() {
    for (offers, is_sent) in [(vec!["8BITMIME"], false), (vec!["SMTPUTF8", "PIPELINING"], true)] {
        let server = SmtpServer::new().ehlo(offers);
        let mut session = session(&server).await;
        let report = session.transact(&Transaction { smtputf8: true, ..simple() }).await;
        if is_sent {
            assert_eq!(report.dot.unwrap().code(), 250);
            assert_eq!(server.messages()[0].mail_parameters, "SMTPUTF8");
        } else {
            let why = Unsendable::Utf8Header;
            assert_eq!(report.recipients, [RecipientReport::Unsendable(why)]);
            assert_eq!(why.status().to_string(), "5.6.9");
            assert_eq!(server.message_count(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn parameters_only_where_offered() {
    for (offers, parameters) in [
        (vec![], ""),
        (vec!["SIZE 5000"], "SIZE=5"),
        (vec!["SIZE", "8BITMIME", "SMTPUTF8"], "SIZE=5 BODY=8BITMIME SMTPUTF8"),
    ] {
        let eight_bit = offers.len() == 3;
        let server = SmtpServer::new().ehlo(offers);
        let mut session = session(&server).await;
        let transaction = match eight_bit {
            true => transaction(&["jörg@y.example"], "\u{20ac}\r\n"),
            false => transaction(&["b@y.example"], "abc\r\n"),
        };
        assert_eq!(session.transact(&transaction).await.dot.unwrap().code(), 250);
        assert_eq!(server.messages()[0].mail_parameters, parameters);
    }
}

#[tokio::test(start_paused = true)]
async fn replies_of_one_transaction_share_a_budget() {
    let mut session = connect_to(1 << 20, |mut lines| async move {
        lines.open(ALL).await;
        let long = format!("550-{}\r\n", "x".repeat(1_000)).repeat(60);
        loop {
            match lines.hear().await.split(' ').next().unwrap() {
                "MAIL" | "RSET" => lines.say("250 ok\r\n").await,
                "RCPT" => lines.say(format!("{long}550 end\r\n")).await,
                "DATA" => lines.say("503 no\r\n").await,
                _ => return,
            }
        }
    })
    .await
    .unwrap();
    let to: Vec<String> = (0..100).map(|i| format!("user{i}@y.example")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for _ in 0..2 {
        let report = session.transact(&transaction(&to, "x\r\n")).await;
        let octets = |report: &RecipientReport| match report {
            RecipientReport::Reply(reply) => reply.octets(),
            _ => 0,
        };
        assert!(!matches!(&report.recipients[0], RecipientReport::Reply(reply) if reply.is_truncated()));
        assert!(report.recipients.iter().map(octets).sum::<usize>() < 512 * 1024);
        assert_eq!(codes(&report).1, vec![Some(550); 100]);
    }
}
