//! CONTROLS table 0 from MAIL to the final dot, row by row.

use super::harness::reply;
use crate::event::Reason;
use crate::reply::Stage;
use crate::scheduler::verdict::{Cause, Context, SessionVerdict, Verdict, What, judge};
use crate::transport::{EndCause, RecipientReport, SessionEnd, TransactionReport, Unsendable};

/// Builds reports in the order of the conversation.
#[derive(Clone, Default)]
struct Said(TransactionReport);

impl Said {
    /// To so many recipients.
    fn to(recipients: usize) -> Self {
        Self(TransactionReport {
            recipients: vec![RecipientReport::None; recipients],
            ..TransactionReport::default()
        })
    }

    fn mail(mut self, text: &str) -> Self {
        self.0.mail = Some(reply(text));
        self
    }

    /// `-`: no reply; `8`: not sent for want of 8BITMIME; `.` and a reply: that to the content, in LMTP.
    fn rcpt(mut self, texts: &[&str]) -> Self {
        for (slot, text) in self.0.recipients.iter_mut().zip(texts) {
            *slot = match *text {
                "-" => RecipientReport::None,
                "8" => RecipientReport::Unsendable(Unsendable::EightBit),
                text => match text.strip_prefix('.') {
                    Some(content) => RecipientReport::Content(reply(content)),
                    None => RecipientReport::Reply(reply(text)),
                },
            };
        }
        self
    }

    fn data(mut self, text: &str) -> Self {
        self.0.data = Some(reply(text));
        self
    }

    fn dot_sent(mut self) -> Self {
        self.0.dot_sent = true;
        self
    }

    fn dot(mut self, text: &str) -> Self {
        self = self.dot_sent();
        self.0.dot = Some(reply(text));
        self
    }

    fn end(mut self, stage: Stage, cause: EndCause) -> Self {
        self.0.end = Some(SessionEnd { stage, cause });
        self
    }

    fn end_by(self, stage: Stage, text: &str) -> Self {
        self.end(stage, EndCause::Reply(reply(text)))
    }

    /// One word per recipient, and one for the session.
    fn verdict(&self, reused: bool, overflowed: &[bool]) -> String {
        let recipients: Vec<u32> = (0..).zip(overflowed).map(|(index, _)| index).collect();
        let overflowed: Vec<u32> = recipients
            .iter()
            .copied()
            .zip(overflowed)
            .filter(|(_, over)| **over)
            .map(|(index, _)| index)
            .collect();
        let context = Context { reused, recipients: &recipients, overflowed: &overflowed };
        let (verdicts, session) = judge(&self.0, context);
        assert_eq!(verdicts.len(), recipients.len());
        let mut words: Vec<String> = verdicts.iter().map(word).collect();
        words.push(match session {
            SessionVerdict::Usable => "| usable".to_owned(),
            SessionVerdict::Gone => "| gone".to_owned(),
            SessionVerdict::AsGreetingFailure => "| as-greeting".to_owned(),
            SessionVerdict::Local(_) => "| local".to_owned(),
        });
        words.join(" ")
    }
}

fn word(verdict: &Verdict) -> String {
    let of = |cause: &Cause| {
        let what = match &cause.what {
            What::Reply(reply) => reply.code().to_string(),
            What::Lost(_) => "lost".to_owned(),
            What::Unsendable(_) => "unsendable".to_owned(),
            What::PolicyUnknown => "policy unknown".to_owned(),
        };
        let reason = cause.reason.map(|reason: Reason| format!(":{reason}")).unwrap_or_default();
        format!("{}:{what}{reason}", cause.stage.as_str())
    };
    match verdict {
        Verdict::Delivered(reply) => format!("delivered:{}", reply.code()),
        Verdict::Deferred(cause) => format!("deferred@{}", of(cause)),
        Verdict::Bounced(cause) => format!("bounced@{}", of(cause)),
        Verdict::Elsewhere(cause) => format!("elsewhere@{}", of(cause)),
        Verdict::AtOnce => "at-once".to_owned(),
        Verdict::Overflow => "overflow".to_owned(),
    }
}

fn eof() -> EndCause {
    EndCause::Closed
}

fn reset() -> EndCause {
    EndCause::Broken("reset".to_owned())
}

fn silence() -> EndCause {
    EndCause::Timeout(std::time::Duration::from_secs(300))
}

fn local() -> EndCause {
    EndCause::Local("no descriptor left".to_owned())
}

fn check(rows: &[(&str, Said, bool, &str)]) {
    for (what, said, reused, expected) in rows {
        let overflowed = vec![false; said.0.recipients.len()];
        assert_eq!(said.verdict(*reused, &overflowed), *expected, "{what}");
    }
}

const OK2: &[&str] = &["250 ok", "250 ok"];

#[test]
fn replies_to_all_are_every_recipients() {
    let sent = || Said::to(2).mail("250 ok").rcpt(OK2);
    check(&[
        ("taken", sent().data("354 go").dot("250 ok"), false, "delivered:250 delivered:250 | usable"),
        ("dot 4xx", sent().data("354 go").dot("451 no"), false, "deferred@dot:451 deferred@dot:451 | usable"),
        ("dot 5xx", sent().data("354 go").dot("554 no"), true, "bounced@dot:554 bounced@dot:554 | usable"),
        (
            "dot 421",
            sent().data("354 go").dot("421 bye").end_by(Stage::Dot, "421 bye"),
            false,
            "deferred@dot:421 deferred@dot:421 | gone",
        ),
        (
            "dot 3xx is no reason to bounce",
            sent().data("354 go").dot("354 go"),
            false,
            "deferred@dot:354 deferred@dot:354 | usable",
        ),
        ("DATA 4xx", sent().data("451 no"), false, "deferred@data:451 deferred@data:451 | usable"),
        ("DATA 5xx", sent().data("554 no"), false, "bounced@data:554 bounced@data:554 | usable"),
        (
            "DATA 421",
            sent().data("421 bye").end_by(Stage::Data, "421 bye"),
            false,
            "deferred@data:421 deferred@data:421 | gone",
        ),
        ("MAIL 4xx", Said::to(2).mail("451 no"), false, "deferred@mail:451 deferred@mail:451 | usable"),
        ("MAIL 5xx", Said::to(2).mail("550 no"), true, "bounced@mail:550 bounced@mail:550 | usable"),
        (
            "503 after a refused MAIL of the same group is no verdict",
            Said::to(2).mail("451 no").rcpt(&["503 MAIL first", "503 MAIL first"]).data("503 MAIL first"),
            false,
            "deferred@mail:451 deferred@mail:451 | usable",
        ),
        (
            "MAIL refused and the session ended",
            Said::to(1).mail("550 no").end(Stage::Rcpt, eof()),
            false,
            "bounced@mail:550 | gone",
        ),
    ]);
}

#[test]
fn a_session_that_was_used_may_be_gone_at_mail() {
    let nothing = |cause| Said::to(2).end(Stage::Mail, cause);
    let bye = Said::to(2).mail("421 bye").end_by(Stage::Mail, "421 bye");
    let unasked = Said::to(2).end_by(Stage::Mail, "421 idle too long");
    check(&[
        ("EOF, used", nothing(eof()), true, "at-once at-once | gone"),
        ("reset, used", nothing(reset()), true, "at-once at-once | gone"),
        ("421, used", bye.clone(), true, "at-once at-once | gone"),
        ("421 before MAIL, used", unasked.clone(), true, "at-once at-once | gone"),
        ("421, new", bye, false, "at-once at-once | as-greeting"),
        ("421 before MAIL, new", unasked, false, "at-once at-once | as-greeting"),
        ("EOF, new", nothing(eof()), false, "deferred@mail:lost deferred@mail:lost | gone"),
        ("reset, new", nothing(reset()), false, "deferred@mail:lost deferred@mail:lost | gone"),
        ("timeout, used", nothing(silence()), true, "deferred@mail:lost deferred@mail:lost | gone"),
        (
            "EOF after a reply, used",
            Said::to(2).mail("250 ok").end(Stage::Rcpt, eof()),
            true,
            "deferred@rcpt:lost deferred@rcpt:lost | gone",
        ),
    ]);
}

#[test]
fn recipients_have_their_own_verdicts() {
    let sent = |texts| Said::to(3).mail("250 ok").rcpt(texts);
    check(&[
        (
            "mixed",
            sent(&["250 ok", "450 later", "550 no"]).data("354 go").dot("250 ok"),
            false,
            "delivered:250 deferred@rcpt:450 bounced@rcpt:550 | usable",
        ),
        (
            "251 counts",
            sent(&["251 elsewhere", "252 maybe", "250 ok"]).data("354 go").dot("250 ok"),
            false,
            "delivered:250 delivered:250 delivered:250 | usable",
        ),
        (
            "none taken, DATA all the same, a lone dot",
            sent(&["550 no", "550 no", "450 later"]).data("354 go").dot("554 no recipients"),
            false,
            "bounced@rcpt:550 bounced@rcpt:550 deferred@rcpt:450 | usable",
        ),
        (
            "421: that recipient is charged, the others have no verdict",
            sent(&["250 ok", "421 bye"]).end_by(Stage::Rcpt, "421 bye"),
            false,
            "at-once deferred@rcpt:421 at-once | gone",
        ),
        (
            "421 keeps verdicts already received",
            sent(&["550 no", "421 bye"]).end_by(Stage::Rcpt, "421 bye"),
            true,
            "bounced@rcpt:550 deferred@rcpt:421 at-once | gone",
        ),
        (
            "not sent",
            sent(&["250 ok", "8", "250 ok"]).data("354 go").dot("250 ok"),
            false,
            "delivered:250 bounced@mail:unsendable:extension-missing delivered:250 | usable",
        ),
    ]);
}

#[test]
fn in_lmtp_the_content_has_a_reply_for_each_recipient() {
    let sent = |texts: &[&str]| Said::to(3).mail("250 ok").rcpt(texts).data("354 go").dot_sent();
    check(&[
        (
            "each its own",
            sent(&[".250 ok", ".452 full", ".550 no"]),
            false,
            "delivered:250 deferred@dot:452 bounced@dot:550 | usable",
        ),
        (
            "lost",
            sent(&[".250 ok", "550 no", "250 ok"]).end(Stage::Dot, eof()),
            true,
            "delivered:250 bounced@rcpt:550 deferred@dot:lost:possibly-delivered | gone",
        ),
        (
            "421",
            sent(&[".250 ok", ".421 bye", "250 ok"]).end_by(Stage::Dot, "421 bye"),
            false,
            "delivered:250 deferred@dot:421 deferred@dot:lost:possibly-delivered | gone",
        ),
        (
            "one too many",
            sent(&[".250 ok", "452 too many", ".250 ok"]),
            false,
            "delivered:250 overflow delivered:250 | usable",
        ),
    ]);
}

#[test]
fn too_many_recipients_go_on_uncharged() {
    let sent = |texts: &[&str]| Said::to(2).mail("250 ok").rcpt(texts).data("354 go").dot("250 ok");
    check(&[
        ("452", sent(&["250 ok", "452 too many"]), false, "delivered:250 overflow | usable"),
        ("452 4.5.3", sent(&["250 ok", "452 4.5.3 too many"]), false, "delivered:250 overflow | usable"),
        ("552 5.5.3", sent(&["250 ok", "552 5.5.3 too many"]), false, "delivered:250 overflow | usable"),
        ("552", sent(&["250 ok", "552 too many"]), false, "delivered:250 overflow | usable"),
        ("452 4.2.2", sent(&["250 ok", "452 4.2.2 full"]), false, "delivered:250 deferred@rcpt:452 | usable"),
        ("552 5.2.2", sent(&["250 ok", "552 5.2.2 full"]), false, "delivered:250 bounced@rcpt:552 | usable"),
        (
            "452 before any",
            sent(&["452 too many", "250 ok"]),
            false,
            "deferred@rcpt:452 delivered:250 | usable",
        ),
        ("552 before any", sent(&["552 no", "250 ok"]), false, "bounced@rcpt:552 delivered:250 | usable"),
    ]);
    let again = sent(&["552 5.5.3 too many", "250 ok"]);
    assert_eq!(
        again.verdict(true, &[true, false]),
        "deferred@rcpt:552 delivered:250 | usable",
        "refused there too"
    );
}

#[test]
fn a_lost_connection_charges() {
    let sent = || Said::to(2).mail("250 ok").rcpt(OK2);
    let both = |word: &str| format!("{word} {word} | gone");
    let possibly = both("deferred@dot:lost:possibly-delivered");
    let in_data = both("deferred@data:lost");
    for (name, cause) in [
        ("EOF", eof()),
        ("reset", reset()),
        ("timeout", silence()),
        ("garbage", EndCause::Protocol("what".to_owned())),
    ] {
        check(&[
            (name, sent().data("354 go").dot_sent().end(Stage::Dot, cause.clone()), false, &possibly),
            (name, sent().data("354 go").end(Stage::Data, cause.clone()), true, &in_data),
            (name, sent().end(Stage::Data, cause.clone()), false, &in_data),
            (
                name,
                Said::to(2).mail("250 ok").rcpt(&["550 no"]).end(Stage::Rcpt, cause),
                false,
                "bounced@rcpt:550 deferred@rcpt:lost | gone",
            ),
        ]);
    }
    let waiting = sent().data("354 go").dot("552 5.3.4 too big").end(Stage::Dot, eof());
    assert_eq!(
        waiting.verdict(false, &[false; 2]),
        "bounced@dot:552 bounced@dot:552 | gone",
        "a reply that waits counts"
    );
}

#[test]
fn trouble_of_this_machine_charges_nobody() {
    let sent = || Said::to(2).mail("250 ok").rcpt(&["250 ok", "550 no"]);
    check(&[
        ("at MAIL", Said::to(2).end(Stage::Mail, local()), false, "at-once at-once | local"),
        (
            "verdicts received stay",
            sent().end(Stage::Data, local()),
            true,
            "at-once bounced@rcpt:550 | local",
        ),
        (
            "after the dot it may have been delivered",
            sent().data("354 go").dot_sent().end(Stage::Dot, local()),
            false,
            "deferred@dot:lost:possibly-delivered bounced@rcpt:550 | gone",
        ),
    ]);
}

/// Else it would be tried again at once for ever.
#[test]
fn a_transport_that_says_nothing_charges() {
    check(&[
        ("nothing at all", Said::to(2), true, "deferred@mail:lost deferred@mail:lost | usable"),
        (
            "accepted and no more",
            Said::to(2).mail("250 ok").rcpt(OK2),
            false,
            "deferred@mail:lost deferred@mail:lost | usable",
        ),
        (
            "one verdict is progress",
            Said::to(2).mail("250 ok").rcpt(&["550 no"]),
            false,
            "bounced@rcpt:550 at-once | usable",
        ),
    ]);
    assert_eq!(
        Said::to(0).mail("250 ok").verdict(false, &[false]),
        "deferred@mail:lost | usable",
        "too short a list"
    );
    let long = Said::to(3).mail("250 ok").rcpt(&["250 ok"; 3]).data("354 go").dot("250 ok");
    assert_eq!(long.verdict(false, &[false]), "delivered:250 | usable", "too long a list");
}
