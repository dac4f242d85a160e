//! What the rules decide, by policy files.

use super::*;
use crate::policy::Policy;
use crate::policy::file::read_unbuilt_too;
use proptest::prelude::*;

const REPLY: &str = "452 4.2.2 The email account that you tried to reach is over quota";

fn policy(text: &str) -> Policy {
    read_unbuilt_too(text).unwrap()
}

/// Rules r0, r1 … that match everything, with these actions.
fn rules(actions: &[&str]) -> Policy {
    let rule = |(n, actions): (usize, &&str)| {
        format!("[[reply-rule]]\nname = \"r{n}\"\nmatch = \".\"\nactions = \"{actions}\"\n")
    };
    policy(&actions.iter().enumerate().map(rule).collect::<String>())
}

fn at(stage: Stage) -> ReplyContext<'static> {
    ReplyContext::new("gmail.com", "google.rollup", stage)
}

/// The parts of a decision in the order of its fields, with the rule of each.
fn written(decision: &RuleDecision) -> String {
    let mut parts = Vec::new();
    let RuleDecision { fate, retry_after, mode, defer_queue, disable_source, limit_connections, limit_rate } =
        decision;
    parts.extend(fate.as_ref().map(|(fate, rule)| format!("{fate:?} {rule}")));
    parts.extend(retry_after.as_ref().map(|(time, rule)| format!("retry {time:?} {rule}")));
    parts.extend(mode.as_ref().map(|(mode, rule)| format!("{mode:?} {rule}")));
    parts.extend(defer_queue.as_ref().map(|rule| format!("defer {rule}")));
    parts.extend(disable_source.as_ref().map(|(time, rule)| format!("disable {time:?} {rule}")));
    parts.extend(limit_connections.as_ref().map(|(n, time, rule)| format!("max {n} {time:?} {rule}")));
    parts.extend(limit_rate.as_ref().map(|(rate, time, rule)| format!("rate {rate} {time:?} {rule}")));
    parts.join(", ")
}

#[test]
fn the_first_rule_wins_and_later_ones_add() {
    for (actions, want) in [
        (&["bounce-rcpt", "bounce-queue"][..], "BounceRecipient r0"),
        (&["bounce-rcpt mode=backoff"], "BounceRecipient r0, Enter r0"),
        (&["skip-mx", "bounce-rcpt", "retry-rcpt"], "SkipMx r0"),
        (&["retry-rcpt", "bounce-queue mode=backoff"], "RetryRecipient r0, Enter r1"),
        (&["mode=backoff", "mode=normal", "bounce-rcpt"], "BounceRecipient r2, Enter r0"),
        (&["mode=normal", "mode=backoff"], "Leave r0"),
        (&["retry-after=1m", "retry-after=1h", "bounce-rcpt", "skip-mx"], "SkipMx r3, retry 60s r0"),
        (&["bounce-rcpt", "retry-after=1h", "defer-queue"], "BounceRecipient r0, defer r2"),
        (&["retry-rcpt", "retry-after=1m"], "RetryRecipient r0, retry 60s r1"),
        (&["skip-mx retry-after=1m"], "SkipMx r0, retry 60s r0"),
        (&["defer-queue", "bounce-queue", "bounce-rcpt"], "BounceRecipient r2, defer r0"),
        (&["bounce-queue", "defer-queue"], "BounceQueue r0"),
        (
            &["disable-source-ip", "disable-source-ip reenable-after=1h", "limit-connections=2 for=1m"],
            "disable None r0, max 2 60s r2",
        ),
        (
            &[
                "limit-rate=5/m for=1m",
                "limit-rate=1/m for=2m",
                "limit-connections=1 for=3m",
                "limit-connections=9 for=9m",
            ],
            "max 1 180s r2, rate 5/m 60s r0",
        ),
        // Several fates in one rule: the strongest, in whatever order.
        (&["bounce-rcpt bounce-queue defer-queue"], "BounceQueue r0"),
        (&["defer-queue", "bounce-queue bounce-rcpt"], "BounceRecipient r1, defer r0"),
        (&["skip-mx bounce-rcpt"], "BounceRecipient r0"),
        (&["retry-rcpt skip-mx"], "SkipMx r0"),
    ] {
        let policy = rules(actions);
        let decision = policy.decide_reply(REPLY, &at(Stage::Rcpt), |_, _| true);
        assert_eq!(written(&decision), want, "{actions:?}");
        assert!(!decision.is_empty());
    }
}

#[test]
fn actions_have_their_stages() {
    let policy = rules(&["bounce-rcpt skip-mx", "retry-rcpt mode=backoff"]);
    for (stage, want) in [
        (Stage::Connect, "SkipMx r0, Enter r1"),
        (Stage::Mail, "SkipMx r0, Enter r1"),
        (Stage::Rcpt, "BounceRecipient r0, Enter r1"),
        (Stage::Data, "BounceRecipient r0, Enter r1"),
        (Stage::Dot, "BounceRecipient r0, Enter r1"),
    ] {
        let decision = policy.decide_reply(REPLY, &at(stage), |_, _| true);
        assert_eq!(written(&decision), want, "{stage:?}");
    }
}

#[test]
fn a_rule_counts_when_all_conditions_hold() {
    let all = ReplyContext::new("gmail.com", "google.rollup", Stage::Rcpt)
        .with_host("mx.l.google.com")
        .with_attempts(2)
        .with_age(Duration::from_secs(60));
    for (condition, want) in [
        ("domain = \"gmail.com\"", true),
        ("domain = [\"x.example\", \"*.com\"]", true),
        ("domain = \"*.gmail.com\"", false),
        ("queue = \"google.rollup\"", true),
        ("queue = \"gmail.com\"", false),
        ("mx = \"*.google.com\"", true),
        ("mx = \"google.com\"", false),
        ("stage = [\"mail\", \"rcpt\"]", true),
        ("stage = \"dot\"", false),
        ("min-attempts = 2", true),
        ("min-attempts = 3", false),
        ("min-age = \"1m\"", true),
        ("min-age = \"61s\"", false),
        ("min-age = \"1m\"\nmin-attempts = 3", false),
    ] {
        let rule = format!(
            "[[reply-rule]]\nname=\"r\"\nmatch=\"OVER QUOTA$\"\nactions=\"bounce-rcpt\"\n{condition}\n"
        );
        let policy = policy(&rule);
        let decision = policy.decide_reply(REPLY, &all, |_, _| unreachable!());
        assert_eq!(decision.is_empty(), !want, "{condition}");
        assert!(policy.decide_reply("452 4.2.2 other", &all, |_, _| true).is_empty(), "{condition}");
    }
    let mx = policy("[[reply-rule]]\nname=\"r\"\nmatch=\".\"\nactions=\"bounce-rcpt\"\nmx=\"*\"");
    assert!(
        mx.decide_reply(REPLY, &at(Stage::Rcpt), |_, _| true).is_empty(),
        "no host is no match, not even of *"
    );
    assert!(!mx.decide_reply(REPLY, &all, |_, _| true).is_empty());
}

#[test]
fn after_is_asked_last_and_once() {
    let text = r#"
        [[reply-rule]]
        name = "first"
        match = "quota"
        actions = "bounce-rcpt"
        [[reply-rule]]
        name = "counted"
        match = "quota"
        actions = ["bounce-rcpt", "mode=backoff"]
        after = "10/1h"
        [[reply-rule]]
        name = "other-reply"
        match = "spam"
        actions = "mode=backoff"
        after = "1/s"
        [[reply-rule]]
        name = "other-domain"
        match = "quota"
        domain = "example.com"
        actions = "defer-queue"
        after = "1/s"
        [[reply-rule]]
        name = "other-stage"
        match = "quota"
        stage = "dot"
        actions = "defer-queue"
        after = "1/s"
        [[reply-rule]]
        name = "nothing-left-to-do"
        match = "quota"
        actions = "bounce-rcpt"
        after = "20/1h"
    "#;
    let policy = policy(text);
    for (enough, want) in [(true, "BounceRecipient first, Enter counted"), (false, "BounceRecipient first")] {
        let mut asked = Vec::new();
        let decision = policy.decide_reply(REPLY, &at(Stage::Rcpt), |rule, rate| {
            asked.push((&*policy.reply_rules()[rule].name, rate.to_string()));
            enough
        });
        assert_eq!(written(&decision), want);
        // A match counts, whether or not an earlier rule wins.
        assert_eq!(asked, [("counted", "10/h".to_owned()), ("nothing-left-to-do", "20/h".to_owned())]);
    }
    // At connect bounce-rcpt is not for the rule that has nothing else; so it does not match there.
    let mut asked = 0;
    policy.decide_reply(REPLY, &at(Stage::Connect), |rule, _| {
        assert_eq!(rule, 1);
        asked += 1;
        true
    });
    assert_eq!(asked, 1);
}

#[test]
fn a_positive_reply_leaves_backoff_by_the_first_rule_for_it() {
    let text = r#"
        [[reply-rule]]
        name = "bounces"
        match = "."
        actions = ["bounce-queue", "mode=backoff"]
        [[reply-rule]]
        name = "elsewhere"
        match = "."
        domain = "example.com"
        actions = "mode=normal"
        [[reply-rule]]
        name = "often"
        match = "^250 "
        actions = "mode=normal"
        after = "5/1m"
        [[reply-rule]]
        name = "queued"
        match = "QUEUED"
        stage = "dot"
        actions = "mode=normal"
    "#;
    let policy = policy(text);
    for (reply, stage, enough, want) in [
        ("250 2.0.0 queued", Stage::Dot, true, Some("often")),
        ("250 2.0.0 queued", Stage::Dot, false, Some("queued")),
        ("250 2.0.0 queued", Stage::Rcpt, false, None),
        ("250 ok", Stage::Dot, false, None),
        ("251 x", Stage::Dot, true, None),
    ] {
        let mut asked = 0;
        let left = policy.leaves_backoff(reply, &at(stage), |rule, _| {
            asked += 1;
            assert_eq!(rule, 2);
            enough
        });
        assert_eq!(left.as_deref(), want, "{reply}");
        assert_eq!(asked, usize::from(reply.starts_with("250")), "{reply}");
    }
    assert_eq!(rules(&["mode=backoff"]).leaves_backoff("250 ok", &at(Stage::Dot), |_, _| true), None);
}

#[test]
fn no_rules_decide_nothing() {
    assert!(Policy::new().decide_reply(REPLY, &at(Stage::Rcpt), |_, _| true).is_empty());
    assert_eq!(Policy::new().leaves_backoff("250 ok", &at(Stage::Dot), |_, _| true), None);
}

#[test]
fn policies_with_the_same_rules_are_equal() {
    assert_eq!(rules(&["skip-mx"]), rules(&["skip-mx"]));
    assert_ne!(rules(&["skip-mx"]), rules(&["defer-queue"]));
}

#[test]
fn rules_too_large_together_are_refused() {
    // Each is under the limit of one.
    let rule = ReplyRule::new("r", "[a-z]{1000}", [Action::SkipMx]).unwrap();
    let mut rules = ReplyRules::default();
    for number in 0..300 {
        let rule = ReplyRule::new(format!("r{number}"), rule.pattern(), rule.actions().to_vec()).unwrap();
        rules.push(rule).unwrap();
    }
    let message = rules.compile().unwrap_err().to_string();
    assert!(message.starts_with("reply-rule: 300 rules: all patterns together are too large"), "{message}");
}

proptest! {
    // Each case compiles a set.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The set finds what the rules' own patterns find.
    #[test]
    fn the_set_agrees_with_each_rule(
        patterns in proptest::collection::vec(r"(\^)?[a-c4. ]{1,3}(\||\$|\.\*|\?|\\b)?[A-C]{0,2}", 1..12),
        reply in "4[0-9a-cA-CßſK ]{0,12}",
    ) {
        let rules = (0..).zip(&patterns).filter_map(|(n, pattern)| {
            ReplyRule::new(format!("r{n}"), pattern, [Action::SkipMx]).ok()
        });
        let mut all = ReplyRules::default();
        rules.for_each(|rule| all.push(rule).unwrap());
        all.compile().unwrap();
        let found: Vec<_> = all.matching(&reply).map(|(index, _)| index).collect();
        let one_by_one = (0..).zip(all.as_slice()).filter(|(_, rule)| rule.matches(&reply));
        prop_assert_eq!(found, one_by_one.map(|(index, _)| index).collect::<Vec<_>>());
    }
}
