//! CONTROLS §3: what reply rules do to recipients, hosts and their queue.

use std::time::Duration;

use super::harness::*;
use crate::event::{DeliveryEvent, Failure};
use crate::reply::Stage;
use crate::scheduler::{Bounds, Event};
use crate::transport::{EndCause, RecipientReport, TransactionReport};

const MICRO: Duration = Duration::from_micros(1);
const FULL: &str = "452 4.2.2 The email account that you tried to reach is over quota";

/// With these settings of all domains and rules `name: actions [conditions]` that match their name in brackets.
fn rig(settings: &str, rules: &[(&str, &str)]) -> Rig {
    Rig::with_policy(&policy(settings, rules), Bounds::default())
}

fn policy(settings: &str, rules: &[(&str, &str)]) -> String {
    let rule = |(name, rest): &(&str, &str)| {
        format!("[[reply-rule]]\nname = \"{name}\"\nmatch = '\\[{name}\\]'\nactions = {rest}\n")
    };
    let rules: String = rules.iter().map(rule).collect();
    format!("{rules}[domain.\"*\"]\n{settings}\n")
}

/// Both at MAIL, RCPT, DATA or the dot.
fn refused_at(stage: Stage, text: &str) -> impl FnOnce(usize) -> TransactionReport {
    move |recipients| {
        let ok = RecipientReport::Reply(reply("250 ok"));
        let mut report = TransactionReport {
            mail: Some(reply("250 ok")),
            recipients: vec![ok; recipients],
            ..TransactionReport::default()
        };
        let text = reply(text);
        match stage {
            Stage::Mail => {
                report.mail = Some(text);
                report.recipients = vec![RecipientReport::None; recipients];
            }
            Stage::Rcpt => report.recipients = vec![RecipientReport::Reply(text); recipients],
            Stage::Data => report.data = Some(text),
            _ => {
                (report.data, report.dot_sent) = (Some(reply("354 go")), true);
                report.dot = Some(text);
            }
        }
        report
    }
}

#[test]
fn the_seeds_gmail_reply_bounces_at_once() {
    let mut rig = Rig::with_policy(
        "[[reply-rule]]\nname = \"quota\"\nactions = \"bounce-rcpt\"\n\
         match = '^452 4\\.2\\.2 .*(over ?quota|out of storage)'",
        Bounds::default(),
    );
    rig.submit_to(&["a@x.example", "b@x.example"]);
    rig.connect();
    rig.transact(|_| rcpts(vec![FULL, "250 ok"], "250 taken"));
    assert_eq!(rig.timeline(), ["0 bounced a@x.example 4.2.2", "0 delivered b@x.example"]);
    let bounced = rig.bounced();
    assert_eq!((bounced.diagnosis.rule.as_deref(), bounced.record.attempts), (Some("quota"), 1));
    assert_eq!(bounced.diagnosis.failure, Failure::Reply(reply(FULL)), "the reply stays as given");
    rig.pass(MINUTE);
    rig.scheduler.assert_empty();
}

#[test]
fn bounce_rcpt_by_stage() {
    for (stage, expected) in [
        (Stage::Mail, "0 deferred a@x.example 4.2.2"),
        (Stage::Rcpt, "0 bounced a@x.example 4.2.2"),
        (Stage::Data, "0 bounced a@x.example 4.2.2"),
        (Stage::Dot, "0 bounced a@x.example 4.2.2"),
    ] {
        let mut rig = rig("", &[("r", "\"bounce-rcpt\"")]);
        rig.submit("a@x.example");
        rig.connect();
        rig.transact(refused_at(stage, "452 4.2.2 [r] full"));
        assert_eq!(rig.timeline(), [expected], "{stage:?}");
    }
    let mut rig = rig("", &[("r", "\"bounce-rcpt\"\nstage = [\"mail\"]")]);
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(refused_at(Stage::Mail, "452 4.2.2 [r] full"));
    assert_eq!(rig.timeline(), ["0 bounced a@x.example 4.2.2"], "a stage named");
}

#[test]
fn one_reply_for_several_recipients_is_found_out_one_by_one() {
    for stage in [Stage::Data, Stage::Dot] {
        let mut rig = rig("", &[("r", "\"bounce-rcpt\"")]);
        rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
        rig.connect();
        rig.transact(refused_at(stage, "452 4.2.2 [r] full"));
        assert!(rig.timeline().is_empty(), "nobody bounces, nobody is charged");
        for text in ["452 4.2.2 [r] full", "250 taken", "451 other"] {
            assert_eq!(rig.transacts[0].1.recipients.len(), 1);
            rig.transact(refused_at(Stage::Dot, text));
        }
        assert_eq!(
            rig.timeline(),
            ["0 bounced a@x.example 4.2.2", "0 delivered b@x.example", "0 deferred c@x.example 4.0.0"],
            "{stage:?}"
        );
        assert_eq!(rig.deferred().record.attempts, 1);
    }
}

/// Who was not in the transaction gets no verdict from its replies.
#[test]
fn recipients_of_other_transactions_are_not_ruled_on() {
    let mut rig = rig("", &[("r", "\"bounce-rcpt\"\nstage = [\"mail\", \"dot\"]")]);
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(refused_at(Stage::Dot, "452 [r] full"));
    rig.transact(accepted);
    assert_eq!(rig.transacts[0].1.recipients[0].as_str(), "b@x.example");
    rig.transact(|n| sent_away_with(n, "421 4.3.2 [r] bye"));
    assert_eq!(rig.timeline(), ["0 delivered a@x.example", "0 bounced b@x.example 4.3.2"]);
    rig.connect();
    rig.accept();
    assert_eq!(rig.last_line(), "0 delivered c@x.example");
}

fn sent_away_with(recipients: usize, text: &str) -> TransactionReport {
    let mut report = sent_away(recipients);
    report.mail = Some(reply(text));
    if let Some(end) = &mut report.end {
        end.cause = EndCause::Reply(reply(text));
    }
    report
}

#[test]
fn conditions_choose_the_recipients() {
    for (condition, expected) in [
        ("min-attempts = 3", [false, false, true]),
        ("min-age = \"9m\"", [false, true, true]),
        ("after = \"3/1h\"", [false, false, true]),
        ("after = \"3/5m\"", [false, false, false]),
        ("domain = \"*.example\"", [true; 3]),
        ("domain = \"y.example\"", [false; 3]),
        ("mx = \"mx.x.example\"", [true; 3]),
        ("queue = \"x.example\"", [true; 3]),
        ("queue = \"y.example\"", [false; 3]),
        ("stage = \"dot\"", [false; 3]),
    ] {
        let mut rig = rig("", &[("r", &format!("\"bounce-rcpt\"\n{condition}"))]);
        rig.submit("a@x.example");
        for bounces in expected {
            rig.connect();
            rig.transact(all_rcpts("450 4.2.0 [r] later"));
            assert_eq!(rig.last_line().contains("bounced"), bounces, "{condition}: {}", rig.last_line());
            if bounces {
                break;
            }
            rig.pass(10 * MINUTE);
        }
    }
}

#[test]
fn after_counts_replies_by_queue_and_survives_other_mail() {
    let mut rig = rig("max-smtp-out = 1", &[("r", "\"bounce-rcpt\"\nafter = \"3/1h\"\nstage = [\"dot\"]")]);
    // One reply to a dot counts once, however many recipients it is about.
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(refused_at(Stage::Dot, "452 [r] full"));
    assert_eq!(rig.timeline().iter().filter(|line| line.contains("deferred")).count(), 3);
    rig.submit("a@y.example");
    rig.connect();
    rig.transact(refused_at(Stage::Dot, "452 [r] full"));
    assert!(rig.last_line().contains("deferred a@y.example"), "another queue");
    for (n, expected) in [(2, "deferred"), (3, "bounced")] {
        rig.submit(&format!("a{n}@x.example"));
        rig.transact(refused_at(Stage::Dot, "452 [r] full"));
        assert!(rig.last_line().contains(expected), "{}", rig.last_line());
    }
}

#[test]
fn a_reply_to_mail_on_a_new_session_counts_once() {
    let mut rig = rig("", &[("r", "\"mode=backoff\"\nafter = \"2/1h\"")]);
    for (n, expected) in [(0, "queue-deferred x.example"), (1, "queue-mode x.example backoff")] {
        rig.submit(&format!("a{n}@x.example"));
        rig.connect();
        rig.transact(|n| sent_away_with(n, "421 4.3.2 [r] bye"));
        let lines = rig.timeline();
        assert!(lines.iter().any(|line| line.contains(expected)), "{n}: {lines:?}");
        assert_eq!(lines.iter().any(|line| line.contains("queue-mode")), n == 1, "{lines:?}");
        rig.pass(10 * MINUTE);
        if n == 0 {
            rig.connect();
            rig.accept();
            rig.pass(MINUTE);
        }
    }
}

#[test]
fn the_first_rule_wins_and_later_ones_add() {
    let mut rig = rig(
        "",
        &[("r", "\"retry-rcpt\""), ("s", "\"bounce-rcpt\""), ("t", "[\"mode=backoff\", \"retry-after=3h\"]")],
    );
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("550 5.1.1 [r] [s] [t] no"));
    assert_eq!(rig.timeline(), ["0 queue-mode x.example backoff", "0 deferred a@x.example 5.1.1"]);
    assert_eq!(rig.deferred().diagnosis.rule.as_deref(), Some("r"));
    assert_eq!(rig.deferred().next_attempt, start() + 3 * HOUR);
}

#[test]
fn retry_rcpt_and_retry_after() {
    let mut rig = rig("", &[("r", "\"retry-rcpt\""), ("s", "\"retry-after=45m\"")]);
    rig.submit_to(&["a@x.example", "b@x.example", "c@x.example"]);
    rig.connect();
    rig.transact(|_| rcpts(vec!["550 [r] no", "550 no", "450 [s] later"], "250 ok"));
    assert_eq!(
        rig.timeline(),
        ["0 bounced b@x.example 5.0.0", "0 deferred a@x.example 5.0.0", "0 deferred c@x.example 4.0.0"]
    );
    rig.pass(10 * MINUTE);
    rig.connect();
    assert_eq!(rig.transacts[0].1.recipients[0].as_str(), "a@x.example");
    rig.transact(all_rcpts("550 [s] no"));
    assert_eq!(
        rig.last_line(),
        "600 bounced a@x.example 5.0.0",
        "retry-after alone does not make it transient"
    );
    rig.pass(35 * MINUTE - MICRO);
    assert!(rig.connects.is_empty());
    rig.pass(MICRO);
    assert_eq!(rig.accept_all(), 1);
}

#[test]
fn a_connections_retry_after_is_for_that_step_alone() {
    let mut rig = rig("", &[("r", "\"retry-after=45m\"")]);
    rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply("421 [r] busy")));
    rig.pass(45 * MINUTE - MICRO);
    assert!(rig.connects.is_empty());
    rig.pass(MICRO);
    rig.refuse();
    rig.pass(10 * MINUTE);
    assert_eq!(rig.connects.len(), 1);
    let hosts = route(&[&[("mx1.x.example", &["192.0.2.1:25"])], &[("mx2.x.example", &["192.0.2.3:25"])]]);
    let mut rig = self::rig("", &[("r", "\"retry-after=45m\"")]);
    rig.answer_with("x.example", Ok(hosts));
    rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply("421 [r] busy")));
    rig.connect();
    rig.transact(all_rcpts("450 later"));
    rig.pass(10 * MINUTE);
    rig.refuse();
    rig.refuse();
    rig.pass(10 * MINUTE);
    assert_eq!(rig.connects.len(), 1, "the other host took us: it is over");
}

#[test]
fn skip_mx_goes_on_with_the_next_host_even_on_a_5xx() {
    let hosts = route(&[
        &[("mx1.x.example", &["192.0.2.1:25", "192.0.2.2:25"])],
        &[("mx2.x.example", &["192.0.2.3:25"])],
    ]);
    for stage in [Stage::Connect, Stage::Mail, Stage::Rcpt, Stage::Dot] {
        let mut rig = rig("", &[("r", "\"skip-mx\"")]);
        rig.answer_with("x.example", Ok(hosts.clone()));
        rig.submit("a@x.example");
        let text = "554 5.7.1 [r] no";
        if stage == Stage::Connect {
            rig.fail_connect(EndCause::Reply(reply(text)));
        } else {
            rig.connect();
            rig.transact(refused_at(stage, text));
        }
        assert!(rig.timeline().is_empty(), "{stage:?}: {:?}", rig.timeline());
        assert_eq!(&*rig.connects[0].1.host, "mx2.x.example", "{stage:?}");
        if stage == Stage::Connect {
            rig.fail_connect(EndCause::Reply(reply(text)));
        } else {
            rig.connect();
            rig.transact(refused_at(stage, text));
        }
        assert_eq!(rig.timeline(), ["0 queue-deferred x.example 5.7.1"], "{stage:?}");
        rig.pass(10 * MINUTE);
        assert_eq!(&*rig.connects[0].1.host, "mx1.x.example", "all hosts again at {stage:?}");
        assert_eq!(rig.accept_all(), 1);
        let Some(DeliveryEvent::Delivered(delivered)) = rig.events.last() else { panic!() };
        assert_eq!(delivered.record.attempts, 1, "nobody was charged before");
    }
}

/// The rule speaks of the message, in truth: the others must not wait behind it for ever.
#[test]
fn a_message_over_which_all_hosts_were_skipped_goes_last() {
    let mut rig = rig("max-smtp-out = 1", &[("r", "\"skip-mx\"")]);
    rig.submit("poison@x.example");
    rig.submit("good@x.example");
    rig.connect();
    rig.transact(all_rcpts("450 [r] no"));
    assert!(rig.last_line().contains("queue-deferred"));
    rig.pass(10 * MINUTE);
    rig.connect();
    assert_eq!(rig.transacts[0].1.recipients[0].as_str(), "good@x.example");
}

#[test]
fn a_521_that_a_rule_retries_does_not_bounce() {
    for (text, expected) in [("521 [r] no", "queue-deferred"), ("521 no", "bounced")] {
        let mut rig = rig("", &[("r", "\"retry-rcpt\"\nstage = [\"connect\", \"ehlo\"]")]);
        rig.submit("a@x.example");
        rig.fail_connect(EndCause::Reply(reply(text)));
        assert!(rig.last_line().contains(expected), "{}", rig.last_line());
    }
}

#[test]
fn rules_at_connect_and_ehlo() {
    for stage in [Stage::Connect, Stage::Ehlo] {
        let all = format!("[\"bounce-rcpt\"]\nstage = [\"{}\"]", stage.as_str());
        let mut rig = rig("", &[("r", &all)]);
        (0..3).for_each(|n| {
            rig.submit(&format!("a{n}@x.example"));
        });
        let (connection, _) = rig.opening();
        let error =
            crate::transport::ConnectError { stage, cause: EndCause::Reply(reply("550 5.7.1 [r] no")) };
        rig.tell(Event::ConnectFailed { connection, error });
        let bounced: Vec<_> = (0..3).map(|n| format!("0 bounced a{n}@x.example 5.7.1")).collect();
        assert_eq!(rig.timeline(), bounced, "what the connection was for");
        assert_eq!(rig.bounced().diagnosis.rule.as_deref(), Some("r"));
        assert_eq!(rig.bounced().diagnosis.stage, stage);
        rig.pass(2 * MINUTE);
        rig.scheduler.assert_empty();
    }
    // The default stages of bounce-rcpt do not include them.
    let mut rig = rig("", &[("r", "\"bounce-rcpt\"")]);
    rig.submit("a@x.example");
    rig.fail_connect(EndCause::Reply(reply("550 5.7.1 [r] no")));
    assert_eq!(rig.timeline(), ["0 queue-deferred x.example 5.7.1"]);
}

#[test]
fn one_decision_for_each_recipient_reaches_the_queue() {
    // The same reply for both; only the second has the attempts that the queue's rule asks for.
    let mut rig = rig(
        "max-rcpt-per-transaction = 2\nretry-after = [\"10m\", \"20m\"]",
        &[("r", "\"retry-rcpt\""), ("s", "\"mode=backoff\"\nmin-attempts = 2")],
    );
    rig.submit("a@x.example");
    rig.connect();
    rig.transact(all_rcpts("550 [r] [s] no"));
    assert_eq!(rig.timeline(), ["0 deferred a@x.example 5.0.0"]);
    rig.pass(10 * MINUTE);
    rig.connect();
    rig.transact(all_rcpts("550 [r] [s] no"));
    assert!(rig.timeline().contains(&"600 queue-mode x.example backoff".to_owned()));
}
