//! Every stage, pipelined and not, with everything that can go wrong there.

use std::time::Duration;

use super::*;

const STAGES: [Stage; 6] = [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Close,
    CloseMidReply,
    Silence,
    SilenceMidReply,
    Say(&'static str),
    TooLong,
    ByteByByte,
    Twice,
}

/// A strict server that does `fault` the first time it comes to `stage`.
async fn serve(mut lines: Lines, stage: Stage, fault: Fault, offers: &'static str) {
    let mut fault = Some(fault);
    let (mut mail, mut rcpt) = (false, false);
    let mut at = Stage::Connect;
    loop {
        let normal = match at {
            Stage::Connect => "220 mx.example\r\n",
            Stage::Ehlo => offers,
            Stage::Mail if mail => "503 nested\r\n",
            Stage::Rcpt if !mail => "503 no mail\r\n",
            Stage::Data if !rcpt => "503 no recipients\r\n",
            Stage::Data => "354 go\r\n",
            _ => "250 ok\r\n",
        };
        let mut reply = normal.to_owned();
        if at == stage {
            match fault.take() {
                None => {}
                Some(Fault::Close) => return,
                Some(Fault::CloseMidReply) => return lines.say(&normal[..2]).await,
                Some(Fault::Silence) => return lines.silence().await,
                Some(Fault::SilenceMidReply) => {
                    lines.say(&normal[..2]).await;
                    return lines.silence().await;
                }
                Some(Fault::Say(other)) => reply = other.to_owned(),
                Some(Fault::TooLong) => {
                    reply = format!("554-{0}\r\n", "x".repeat(999)).repeat(99) + "554 end\r\n"
                }
                Some(Fault::ByteByByte) => {
                    reply.clear();
                    for byte in normal.bytes() {
                        lines.say([byte]).await;
                        tokio::task::yield_now().await;
                    }
                }
                Some(Fault::Twice) => reply = normal.to_owned() + "250 extra\r\n",
            }
        }
        lines.say(&reply).await;
        let accepted = reply.is_empty() || reply.starts_with(&normal[..1]);
        match at {
            Stage::Mail => mail = mail || accepted,
            Stage::Rcpt => rcpt = rcpt || (accepted && mail),
            Stage::Dot => (mail, rcpt) = (false, false),
            Stage::Data if accepted && rcpt => {
                lines.hear_content().await;
                at = Stage::Dot;
                continue;
            }
            _ => {}
        }
        at = loop {
            match lines.hear().await.split(' ').next().unwrap() {
                "EHLO" => break Stage::Ehlo,
                "HELO" => lines.say("550 no\r\n").await,
                "MAIL" => break Stage::Mail,
                "RCPT" => break Stage::Rcpt,
                "DATA" => break Stage::Data,
                "RSET" => {
                    (mail, rcpt) = (false, false);
                    lines.say("250 reset\r\n").await;
                }
                _ => return,
            }
        };
    }
}

/// What came of the first transaction, how long it took, and what came of a second if the session lived.
struct Outcome {
    first: Result<TransactionReport, ConnectError>,
    took: Duration,
    second: Option<TransactionReport>,
}

async fn run(stage: Stage, fault: Fault, pipelining: bool) -> Outcome {
    let offers = if pipelining { ALL } else { "250 mx.example\r\n" };
    let clock = clock();
    let mut session = match connect_to(1 << 20, move |lines| serve(lines, stage, fault, offers)).await {
        Ok(session) => session,
        Err(error) => {
            return Outcome {
                first: Err(error),
                took: clock.now().saturating_since(Timestamp::EPOCH),
                second: None,
            };
        }
    };
    let first = session.transact(&simple()).await;
    let took = clock.now().saturating_since(Timestamp::EPOCH);
    let second = if first.end.is_none() { Some(session.transact(&simple()).await) } else { None };
    Outcome { first: Ok(first), took, second }
}

impl Outcome {
    fn end(&self) -> Option<(Stage, EndCause)> {
        match &self.first {
            Err(ConnectError { stage, cause }) => Some((*stage, cause.clone())),
            Ok(report) => report.end.clone().map(|end| (end.stage, end.cause)),
        }
    }

    /// The reply to the command of `stage`.
    fn reply(&self, stage: Stage) -> Option<Reply> {
        match (&self.first, stage) {
            (Err(ConnectError { cause: EndCause::Reply(reply), .. }), _) => Some(reply.clone()),
            (Ok(report), Stage::Mail) => report.mail.clone(),
            (Ok(report), Stage::Rcpt) => match &report.recipients[0] {
                RecipientReport::Reply(reply) => Some(reply.clone()),
                _ => None,
            },
            (Ok(report), Stage::Data) => report.data.clone(),
            (Ok(report), Stage::Dot) => report.dot.clone(),
            _ => None,
        }
    }

    /// Before `stage` all was answered well, after it nothing was.
    fn check_replies_around(&self, stage: Stage, case: &str) {
        for other in STAGES.into_iter().filter(|&other| other >= Stage::Mail && self.first.is_ok()) {
            match other.cmp(&stage) {
                std::cmp::Ordering::Less => assert!(self.reply(other).unwrap().code() < 400, "{case}"),
                std::cmp::Ordering::Greater => assert_eq!(self.reply(other), None, "{case}"),
                std::cmp::Ordering::Equal => {}
            }
        }
        if let Ok(report) = &self.first {
            assert_eq!(report.dot_sent, stage == Stage::Dot, "{case}");
        }
    }
}

fn limit(stage: Stage) -> Duration {
    let timeouts = Timeouts::default();
    match stage {
        Stage::Connect => timeouts.greeting,
        Stage::Ehlo => timeouts.ehlo,
        Stage::Mail => timeouts.mail,
        Stage::Rcpt => timeouts.rcpt,
        Stage::Data => timeouts.data,
        _ => timeouts.dot,
    }
}

async fn each(fault: Fault, check: impl Fn(Stage, bool, Outcome, &str)) {
    for stage in STAGES {
        for pipelining in [true, false] {
            let case = format!("{fault:?} at {stage:?}, pipelining {pipelining}");
            check(stage, pipelining, run(stage, fault, pipelining).await, &case);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn close() {
    for fault in [Fault::Close, Fault::CloseMidReply] {
        each(fault, |stage, _, outcome, case| {
            assert_eq!(outcome.end(), Some((stage, EndCause::Closed)), "{case}");
            assert_eq!(outcome.reply(stage), None, "{case}");
            outcome.check_replies_around(stage, case);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_exactly_at_the_limit() {
    for fault in [Fault::Silence, Fault::SilenceMidReply] {
        each(fault, |stage, _, outcome, case| {
            assert_eq!(outcome.end(), Some((stage, EndCause::Timeout(limit(stage)))), "{case}");
            // Tokio's timers round up to milliseconds.
            assert!(outcome.took >= limit(stage), "{case}");
            assert!(outcome.took <= limit(stage) + Duration::from_millis(2), "{case}: {:?}", outcome.took);
            outcome.check_replies_around(stage, case);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_421_is_recorded_and_ends_the_session() {
    each(Fault::Say("421 4.3.2 bye\r\n"), |stage, _, outcome, case| {
        let reply = Reply::parse("421 4.3.2 bye").unwrap();
        assert_eq!(outcome.end(), Some((stage, EndCause::Reply(reply.clone()))), "{case}");
        assert_eq!(outcome.reply(stage), Some(reply), "{case}");
        outcome.check_replies_around(stage, case);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refusals_are_verdicts_and_the_session_goes_on() {
    for code in ["450", "451", "550", "554"] {
        let text: &'static str = Box::leak(format!("{code} x.1.2 no\r\n").into_boxed_str());
        each(Fault::Say(text), |stage, _, outcome, case| {
            // A permanent refusal of EHLO leads to HELO, whose refusal is the one that counts.
            let expected = if stage == Stage::Ehlo && code.starts_with('5') { "550" } else { code };
            assert_eq!(outcome.reply(stage).unwrap().code().to_string(), expected, "{case}");
            if stage >= Stage::Mail {
                assert_eq!(outcome.end(), None, "{case}");
                let second = outcome.second.as_ref().unwrap();
                let all = (Some(250), vec![Some(250)], Some(354), Some(250));
                assert_eq!(codes(second), all, "{case}: {:?}", second.end);
            } else {
                assert_eq!(outcome.end().unwrap().0, stage, "{case}");
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_reply_to_the_command_is_never_a_verdict() {
    let faults =
        ["hello\r\n", "\r\n", "250-a\r\n550 b\r\n", "550-a\r\n250 b\r\n", "999 x\r\n", "2500\r\n", "\0\0\n"];
    for text in faults {
        each(Fault::Say(text), |stage, _, outcome, case| {
            let (at, cause) = outcome.end().unwrap();
            assert!(matches!(cause, EndCause::Protocol(_)), "{case}: {cause:?}");
            assert_eq!(at, stage, "{case}");
            assert_eq!(outcome.reply(stage), None, "{case}");
            outcome.check_replies_around(stage, case);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn codes_out_of_place_are_protocol_errors() {
    for stage in STAGES {
        for pipelining in [true, false] {
            let text = if stage == Stage::Data { "250 what\r\n" } else { "354 what\r\n" };
            let outcome = run(stage, Fault::Say(text), pipelining).await;
            let (at, cause) = outcome.end().unwrap();
            assert!(at == stage && matches!(cause, EndCause::Protocol(_)), "{stage:?}: {at:?} {cause:?}");
            assert_eq!(outcome.reply(stage), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn over_long_replies_keep_their_code() {
    each(Fault::TooLong, |stage, _, outcome, case| {
        let reply = outcome.reply(stage).unwrap_or_else(|| panic!("{case}"));
        // HELO's refusal counts after EHLO's.
        if stage != Stage::Ehlo {
            assert!(reply.code() == 554 && reply.is_truncated(), "{case}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn replies_may_come_octet_by_octet() {
    each(Fault::ByteByByte, |_, _, outcome, case| {
        let report = outcome.first.as_ref().unwrap();
        assert_eq!(codes(report), (Some(250), vec![Some(250)], Some(354), Some(250)), "{case}");
        assert_eq!(report.end, None, "{case}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_too_many_never_delivers_or_refuses() {
    each(Fault::Twice, |stage, pipelining, outcome, case| {
        if stage == Stage::Dot {
            // This transaction is over; the next does not begin.
            let second = outcome.second.as_ref().unwrap();
            assert!(matches!(end_of(second), (Stage::Mail, EndCause::Protocol(_))), "{case}");
            assert_eq!(codes(second), (None, vec![None], None, None), "{case}");
            return;
        }
        let (at, cause) = outcome.end().unwrap();
        assert!(matches!(cause, EndCause::Protocol(_)), "{case}: {cause:?}");
        assert_eq!(outcome.reply(Stage::Dot), None, "{case}");
        if !pipelining && stage < Stage::Data {
            // The next command is not even sent.
            let next = STAGES.into_iter().find(|&next| next > stage).unwrap();
            assert_eq!(at, next, "{case}");
            assert!(outcome.first.is_err() || outcome.reply(next).is_none(), "{case}");
        }
        if let Ok(report) = &outcome.first {
            assert!(!report.dot_sent, "{case}");
        }
    })
    .await;
}
