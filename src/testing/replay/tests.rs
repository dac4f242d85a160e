//! Logs through rules.

use std::time::Duration;

use super::*;
use crate::clock::Timestamp;
use crate::reply::Stage;

fn policy(rules: &[&str]) -> Policy {
    Policy::from_toml(&format!("[[reply-rule]]\n{}\n", rules.join("\n[[reply-rule]]\n"))).unwrap()
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}

fn logged(seconds: u64, stage: Stage, reply: &str) -> LoggedReply {
    let reply = Reply::parse(reply).unwrap();
    LoggedReply::new(at(seconds), "a.example", stage, reply).with_mx("mx.a.example")
}

fn rcpt(seconds: u64, reply: &str) -> LoggedReply {
    logged(seconds, Stage::Rcpt, reply)
}

fn run(mut replay: Replay, all: impl IntoIterator<Item = LoggedReply>) -> ReplayReport {
    all.into_iter().for_each(|logged| replay.add(logged));
    replay.finish()
}

/// `kind before>after rule`, of each change.
fn changes(report: &ReplayReport) -> Vec<String> {
    let written = |change: &ReplayChange| {
        let rule = change.decision.rule().map_or("-", |rule| rule);
        let (before, after) = (change.before.as_str(), change.after.as_str());
        format!("{} {before}>{after} {rule}", change.kind.as_str())
    };
    report.changes.iter().map(written).collect()
}

const QUOTA: &str = "name = 'quota'\nmatch = 'quota'\nactions = 'bounce-rcpt'";

#[test]
fn what_the_rules_make_of_what_was_logged() {
    use LoggedOutcome as O;
    const OVER: &str = "452 4.2.2 over quota";
    const GONE: &str = "550 5.1.1 gone";
    let keep = "name = 'keep'\nmatch = 'gone'\nactions = 'retry-rcpt'";
    let next = "name = 'next'\nmatch = 'busy'\nactions = 'skip-mx'";
    let all = "name = 'all'\nmatch = 'blocked'\nactions = 'bounce-queue'\nstage = ['connect', 'rcpt']";
    let policy = policy(&[QUOTA, keep, next, all]);
    for (logged, want) in [
        (rcpt(0, OVER), "bounces retry>bounce quota"),
        (rcpt(0, OVER).with_outcome(O::Bounced).with_rule("quota"), ""),
        (rcpt(0, OVER).with_outcome(O::Bounced).with_rule("old"), "otherwise bounce>bounce quota"),
        (rcpt(0, "450 4.2.1 later"), ""),
        (rcpt(0, "450 4.2.1 later").with_rule("slow"), "otherwise retry>retry -"),
        (rcpt(0, "450 4.2.1 later").with_outcome(O::Bounced).with_rule("old"), "retries bounce>retry -"),
        (rcpt(0, GONE).with_outcome(O::Bounced), "retries bounce>retry keep"),
        (rcpt(0, GONE).with_rule("keep"), ""),
        (rcpt(0, "550 5.7.1 no").with_outcome(O::Bounced), ""),
        (rcpt(0, "450 busy"), "next-host retry>next-host next"),
        (rcpt(0, "450 blocked"), "bounces retry>bounce-queue all"),
        (rcpt(0, "550 blocked").with_outcome(O::Bounced).with_rule("all"), ""),
        // The last of its attempts: it ends either way.
        (rcpt(0, OVER).with_outcome(O::TriedTooOften), "otherwise retry>bounce quota"),
        (rcpt(0, "450 4.2.1 later").with_outcome(O::TriedTooOften), ""),
        // Not its own reply, or none to a command.
        (rcpt(0, OVER).with_outcome(O::EndedWaiting), ""),
        (logged(0, Stage::Queue, OVER), ""),
        (LoggedReply::new(at(0), "a.example", Stage::Rcpt, None), ""),
        // A 5xx greeting bounces nobody by its code; the default stages of bounce-rcpt leave it out.
        (logged(0, Stage::Connect, "554 no").with_outcome(O::QueueDeferred), ""),
        (logged(0, Stage::Connect, "421 quota").with_outcome(O::QueueDeferred), ""),
        (
            logged(0, Stage::Connect, "554 blocked").with_outcome(O::QueueDeferred),
            "bounces retry>bounce-queue all",
        ),
        (logged(0, Stage::Dot, "250 quota, blocked").with_outcome(O::Delivered), ""),
    ] {
        let report = run(Replay::new(policy.clone()), [logged.clone()]);
        assert_eq!(changes(&report).join(", "), want, "{logged:?}");
    }
}

#[test]
fn the_old_policy_goes_before_the_log() {
    let old = policy(&["name = 'old'\nmatch = 'quota'\nactions = 'bounce-rcpt'"]);
    let same = policy(&[
        "name = 'old'\nmatch = 'quota'\nactions = 'bounce-rcpt'",
        "name = 'b'\nmatch = 'busy'\nactions = 'mode=backoff'",
    ]);
    let all = [rcpt(0, "452 quota"), rcpt(1, "450 busy"), rcpt(2, "450 other").with_rule("gone")];
    let report = run(Replay::new(same).against(old), all);
    assert_eq!(changes(&report), ["otherwise retry>retry b"]);
}

#[test]
fn a_rule_is_summed_up() {
    let slow = "name = 'slow'\nmatch = '^4'\nactions = 'mode=backoff'\nafter = '3/1m'";
    let never = "name = 'never'\nmatch = 'xyz'\nactions = 'bounce-rcpt'";
    let kept_out = "name = 'kept-out'\nmatch = 'quota'\nactions = 'bounce-rcpt'";
    let policy = policy(&[QUOTA, slow, never, kept_out]);
    let elsewhere = |seconds, source: &str| rcpt(seconds, "450 busy").with_queue("b.rollup", source);
    let report = run(
        Replay::new(policy),
        [
            rcpt(0, "452 quota"),
            rcpt(10, "450 busy"),
            // A queue of a source counts for itself.
            elsewhere(10, "out2"),
            elsewhere(11, "out2"),
            elsewhere(12, "out3"),
            rcpt(20, "450 busy"),
            // In backoff by now: no news.
            rcpt(30, "450 busy"),
            rcpt(40, "550 gone").with_outcome(LoggedOutcome::Bounced),
            LoggedReply::new(at(50), "a.example", Stage::Connect, None),
        ],
    );
    let numbers: Vec<_> =
        report.rules.iter().map(|rule| (&*rule.rule, rule.matched, rule.acted, rule.bounces)).collect();
    assert_eq!(numbers, [("quota", 1, 1, 1), ("slow", 7, 2, 0), ("never", 0, 0, 0), ("kept-out", 1, 0, 0)]);
    let backoffs: Vec<_> = report.rules[1].backoffs.iter().collect();
    assert_eq!(backoffs, [(&("a.example".into(), "default".into()), &1)]);
    let unused: Vec<_> = report.unused().map(|rule| &*rule.rule).collect();
    assert_eq!(unused, ["never", "kept-out"]);
    assert_eq!((report.replies, report.unmatched, report.engine_made), (8, 1, 1));
}

#[test]
fn one_reply_to_all_recipients_counts_once() {
    let after = "name = 'after'\nmatch = 'busy'\nactions = 'mode=backoff'\nafter = '3/1h'";
    let policy = policy(&[after, "name = 'spam'\nmatch = 'spam'\nactions = 'bounce-rcpt'"]);
    let of = |seconds, stage, message: &'static str, reply| {
        ["r1", "r2", "r3"].map(|to| logged(seconds, stage, reply).with_recipient(message, to))
    };
    let acted = |all: Vec<LoggedReply>| run(Replay::new(policy.clone()), all).rules[0].acted;
    // One match each, however many recipients.
    let shared = |message, seconds| of(seconds, Stage::Dot, message, "451 busy");
    assert_eq!(acted([shared("m1", 0), shared("m2", 0)].concat()), 0);
    assert_eq!(acted([shared("m1", 0), shared("m2", 0), shared("m3", 1)].concat()), 1);
    assert_eq!(acted([shared("m1", 0), shared("m1", 60), shared("m1", 120)].concat()), 1, "three attempts");
    assert_eq!(acted(of(0, Stage::Rcpt, "m1", "451 busy").to_vec()), 1, "each RCPT has a reply of its own");

    let report = run(Replay::new(policy.clone()), of(0, Stage::Dot, "m1", "451 spam"));
    assert_eq!(changes(&report), ["one-by-one retry>one-by-one spam"; 3]);
    assert_eq!((report.replies, report.rules[1].matched, report.rules[1].bounces), (1, 1, 0));
    let bounced = |logged: LoggedReply| logged.with_outcome(LoggedOutcome::Bounced).with_rule("spam");
    let one_by_one = of(0, Stage::Dot, "m1", "451 spam").map(bounced);
    assert!(
        changes(&run(Replay::new(policy.clone()), one_by_one)).is_empty(),
        "three transactions in one moment"
    );
    let one = logged(0, Stage::Dot, "451 spam").with_recipient("m1", "r1");
    assert_eq!(changes(&run(Replay::new(policy), [one])), ["bounces retry>bounce spam"]);
}

#[test]
fn a_recipient_that_would_have_bounced_is_not_judged_again() {
    use LoggedOutcome as O;
    let slow = "name = 'slow'\nmatch = 'quota'\nactions = 'mode=backoff'\nafter = '3/1h'";
    let rules = policy(&[slow, "name = 'full'\nmatch = 'quota'\nactions = 'bounce-rcpt'"]);
    let of = |seconds, message: &'static str, to: &'static str, outcome| {
        rcpt(seconds, "452 quota")
            .with_recipient(message, to)
            .with_outcome(outcome)
            .with_attempts(2, Duration::ZERO)
    };
    let all = [
        of(0, "m1", "a", O::Deferred),
        of(0, "m1", "b", O::Deferred),
        of(10, "m1", "a", O::Deferred),
        of(10, "m1", "b", O::Delivered),
        of(20, "m1", "a", O::TriedTooOften),
        // The same recipient of another message.
        of(30, "m2", "a", O::Deferred),
    ];
    let report = run(Replay::new(rules.clone()), all.clone());
    assert_eq!(report.count(ChangeKind::Bounces), 3);
    let [slow, full] = &report.rules[..] else { panic!() };
    assert_eq!((slow.acted, full.matched, full.bounces), (1, 3, 3), "the third that would have been");
    assert_eq!((report.replies, report.deliveries), (3, 0));
    assert_eq!((report.after_end, report.delivered_after_end), (3, 1));

    // By the old rules they had ended: kept once each, however often they are kept.
    let report = run(Replay::new(Policy::default()).against(rules), all);
    assert_eq!(report.count(ChangeKind::Retries), 3);
    assert_eq!((report.replies, report.deliveries, report.after_end), (5, 1, 0));
}

#[test]
fn a_transaction_is_of_those_that_have_not_ended() {
    let rules = policy(&["name = 'spam'\nmatch = 'spam'\nactions = 'bounce-rcpt'"]);
    let ended = rcpt(0, "451 spam").with_recipient("m1", "r1");
    let dot = |to: &'static str| logged(9, Stage::Dot, "451 spam").with_recipient("m1", to);
    let report = run(Replay::new(rules), [ended, dot("r1"), dot("r2")]);
    assert_eq!(changes(&report), ["bounces retry>bounce spam"; 2], "the other one was alone");
}

#[test]
fn some_changes_are_kept_and_all_are_counted() {
    let all = || (0..1_500).map(|n| rcpt(n, "452 quota"));
    let report = run(Replay::new(policy(&[QUOTA])), all());
    assert_eq!((report.changes.len(), report.count(ChangeKind::Bounces)), (1_000, 1_500));
    let mut replay = Replay::new(policy(&[QUOTA]));
    all().for_each(|logged| replay.add(logged));
    let mut found = 0;
    let report = replay.finish_with(|_| found += 1);
    assert_eq!((found, report.changes.len()), (1_500, 0));
}

#[test]
fn backoff_ends_as_in_the_engine() {
    let rules = [
        "name = 'slow'\nmatch = 'busy'\nactions = 'mode=backoff'",
        "name = 'well'\nmatch = '^250 well'\nactions = 'mode=normal'",
    ];
    let entries = |settings: &str, between: LoggedReply| {
        let text = format!("[domain.'*']\n{settings}\n[[reply-rule]]\n{}", rules.join("\n[[reply-rule]]\n"));
        let replay = Replay::new(Policy::from_toml(&text).unwrap());
        let report = run(replay, [rcpt(0, "450 busy"), between, rcpt(600, "450 busy")]);
        report.rules[0].backoffs.values().sum::<u64>()
    };
    let delivered = |reply: &str| logged(300, Stage::Dot, reply).with_outcome(LoggedOutcome::Delivered);
    assert_eq!(entries("", delivered("250 ok")), 1);
    assert_eq!(entries("", delivered("250 well")), 2);
    assert_eq!(entries("backoff-to-normal-after-delivery = true", delivered("250 ok")), 2);
    assert_eq!(entries("backoff-to-normal-after = '10m'", delivered("250 ok")), 2);
    assert_eq!(entries("backoff-to-normal-after = '10m'", rcpt(300, "450 busy")), 1, "its end moves");
}

#[test]
fn conditions_are_asked_of_the_log() {
    let rule = "name = 'r'\nmatch = '.'\nactions = 'bounce-rcpt'\nmin-attempts = 3\nmin-age = '1h'\nmx = 'mx.a.example'\ndomain = 'a.example'\nqueue = 'p.rollup'";
    let policy = policy(&[rule]);
    let fits = || rcpt(0, "450 no").with_queue("p.rollup", "x").with_attempts(3, Duration::from_secs(3_600));
    let matches = |logged| run(Replay::new(policy.clone()), [logged]).rules[0].matched;
    assert_eq!(matches(fits()), 1);
    assert_eq!(matches(fits().with_attempts(2, Duration::from_secs(3_600))), 0);
    assert_eq!(matches(fits().with_attempts(3, Duration::from_secs(3_599))), 0);
    assert_eq!(matches(fits().with_queue("a.example", "x")), 0);
    assert_eq!(matches(fits().with_mx("mx.b.example")), 0);
}

#[test]
fn order_and_repetition_play_no_part() {
    let policy = policy(&[QUOTA, "name = 'slow'\nmatch = 'busy'\nactions = 'mode=backoff'\nafter = '2/1m'"]);
    let all: Vec<_> = (0..50)
        .map(|n| {
            let reply = if n % 3 == 0 { "452 quota" } else { "450 busy" };
            rcpt(n * 25, reply).with_event(format!("e{n}"))
        })
        .collect();
    let forward = run(Replay::new(policy.clone()), all.clone());
    assert_eq!(forward, run(Replay::new(policy.clone()), all.iter().rev().cloned()));
    let twice = run(Replay::new(policy), all.iter().chain(&all).cloned());
    assert_eq!(twice, ReplayReport { repeated: 50, ..forward });
}
