//! What the policy decides, asked as functions: without a runtime, a clock or an engine.

use std::time::Duration;

use outside::policy;
use postrider::dns::RouteKind;
use postrider::policy::{BackoffChange, DnsVerdict, ReplyContext, ReplyVerdict};
use postrider::reply::Stage;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn retries_are_spaced_and_end_after_two_days() {
    let settings = policy().settings("example.net", "default");
    let ages: Vec<_> = settings.attempt_ages(|| 0).map(|age| age.as_secs() / 60).collect();
    assert_eq!(ages[..6], [0, 5, 15, 30, 60, 120]);
    assert_eq!(ages.last(), Some(&(47 * 60)));
}

#[test]
fn a_domain_without_mx_is_tried_for_an_hour() {
    let settings = policy().settings("exampel.net", "default");
    assert_eq!(settings.dns_verdict(Ok(RouteKind::Implicit)), DnsVerdict::DeliverUntil(60 * MINUTE));
}

#[test]
fn domains_of_bigmail_are_one_queue() {
    let policy = policy();
    let placement = policy.placement("shop.example", "default", [(10, "in1.mx.bigmail.example")]);
    assert_eq!(&*placement.queue, "bigmail.rollup");
    assert_eq!(policy.settings(&placement.queue, "default").max_smtp_out, Some(4));
}

#[test]
fn a_full_mailbox_bounces_at_the_third_attempt() {
    let policy = policy();
    let context = ReplyContext::new("example.net", "example.net", Stage::Rcpt);
    let verdict = |attempts| {
        let context = context.with_attempts(attempts);
        let decision = policy.decide_reply("452 4.2.2 mailbox full", &context, |_, _| true);
        decision.verdict(false, Stage::Rcpt, 1)
    };
    assert_eq!(verdict(2), ReplyVerdict::Retry);
    assert_eq!(verdict(3), ReplyVerdict::Bounce);
}

#[test]
fn only_bigmail_is_slowed_down() {
    let policy = policy();
    let mode = |queue| {
        let context = ReplyContext::new("shop.example", queue, Stage::Mail);
        policy.decide_reply("421 4.7.28 too fast", &context, |_, _| true).mode.map(|(mode, _)| mode)
    };
    assert_eq!(mode("bigmail.rollup"), Some(BackoffChange::Enter));
    assert_eq!(mode("shop.example"), None);
}
