//! The recommended policy: a policy file of its own.

use std::sync::{Arc, LazyLock};

use super::domains::DomainRules;
use super::{Policy, PolicyBase};

/// Settings, rollups and reply rules with the reason of each.
const RECOMMENDED: &str = include_str!("recommended.toml");

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    // A test sees to it that it can be read.
    let mut policy = Policy::from_toml(RECOMMENDED).unwrap_or_default();
    let inner = Arc::make_mut(&mut policy.0);
    inner.base = PolicyBase::Recommended;
    inner.domains = DomainRules::over(std::mem::take(&mut inner.domains));
    inner.base_rollups = inner.rollups.len();
    inner.reply_rules.are_base();
    inner.ip_limits.are_base();
    policy
});

pub(super) fn policy() -> Policy {
    POLICY.clone()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Reason;
    use crate::policy::{
        BackoffChange, DomainSettings, ReplyContext, ReplyVerdict, Scope, Suppression, Verdict,
    };
    use crate::reply::Stage;

    #[test]
    fn it_can_be_read() {
        let read = Policy::from_toml(RECOMMENDED).unwrap();
        let policy = Policy::recommended();
        assert_eq!(policy.base(), PolicyBase::Recommended);
        assert_eq!(policy.rollups(), read.rollups());
        assert_eq!(policy.reply_rules(), read.reply_rules());
        assert_eq!(policy.settings("google.rollup", "default"), read.settings("google.rollup", "default"));
        assert_eq!(policy, Policy::from_toml("[policy]\nbase = \"recommended\"").unwrap());
        assert_eq!(Policy::from_toml("[policy]\nbase = \"none\"").unwrap(), Policy::new());
    }

    /// Each line has its reason.
    #[test]
    fn each_table_stands_below_words() {
        let mut reasoned = false;
        for line in RECOMMENDED.lines() {
            match line {
                _ if line.starts_with("# ") => reasoned = true,
                "" => reasoned = false,
                _ if line.starts_with('[') || line.contains(" = ") => assert!(reasoned, "{line}"),
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_added_lies_over_it() {
        let few = DomainSettings::new().with_max_smtp_out(3);
        let policy = Policy::recommended().with_domain("google.rollup", few).unwrap();
        let settings = policy.settings("google.rollup", "default");
        assert_eq!((settings.max_smtp_out, settings.max_msg_per_connection), (Some(3), Some(50)));
        let file = "[policy]\nbase = \"recommended\"\n[domain.\"*\"]\nmax-smtp-out = 7\n[domain.\"google.rollup\"]\nmax-smtp-out = 3";
        let from_file = Policy::from_toml(file).unwrap();
        assert_eq!(from_file.settings("google.rollup", "default"), settings, "the more exact wins");
        assert_eq!(from_file.settings("x.example", "default").max_smtp_out, Some(7));
        assert_eq!(from_file.settings("yahoo.rollup", "default").max_smtp_out, Some(10));
        assert_eq!(
            from_file.settings("x.example", "default").retry_after.interval(1),
            Duration::from_secs(300)
        );

        let rules = "[policy]\nbase = \"recommended\"\n[[reply-rule]]\nname = \"mine\"\nmatch = \"x\"\nactions = \"skip-mx\"\n\
                     [[reply-rule]]\nname = \"slow-down\"\nmatch = \"y\"\nactions = \"skip-mx\"\n\
                     [[rollup]]\nqueue = \"own.rollup\"\nmx = \"*.google.com\"";
        let policy = Policy::from_toml(rules).unwrap();
        let names: Vec<&str> = policy.reply_rules().iter().map(|rule| &**rule.name()).collect();
        assert_eq!(names[..2], ["mine", "slow-down"], "one's own go first");
        assert_eq!(names.iter().filter(|name| **name == "slow-down").count(), 1, "in the other's place");
        assert_eq!(names.len(), Policy::recommended().reply_rules().len() + 1);
        assert_eq!(policy.rollups()[0].queue().as_str(), "own.rollup");
        let limit = "[policy]\nbase = \"recommended\"\n[[ip-connection-limit]]\ncidr = \"62.149.128.0/24\"\nlimit = 5";
        let found = Policy::from_toml(limit).unwrap();
        assert_eq!(
            found.ip_connection_limit("62.149.128.9".parse().unwrap()).map(|limit| limit.limit),
            Some(5)
        );
        let again = format!("{limit}\n[[ip-connection-limit]]\ncidr = \"62.149.128.0/24\"\nlimit = 5");
        assert!(Policy::from_toml(&again).unwrap_err().to_string().contains("has a limit already"));
        let twice = rules.replace("slow-down", "mine");
        assert!(Policy::from_toml(&twice).unwrap_err().to_string().contains("name of a rule already"));
    }

    fn judge(reply: &str, stage: Stage, attempts: u32, hours: u64, counted: bool) -> (Reason, Verdict) {
        let context = ReplyContext::new("a.example", "a.example", stage)
            .with_attempts(attempts)
            .with_age(Duration::from_secs(hours * 3600));
        let (kind, verdict) = Policy::recommended().judge_reply(reply, &context, |_, _| counted);
        (kind.reason, verdict)
    }

    const GMAIL_OVER_QUOTA: &str = "452 4.2.2 The email account that you tried to reach is over quota. Please direct the recipient to another place";

    #[test]
    fn what_stands_for_a_day_and_three_attempts_bounces() {
        for (reply, reason) in [
            (GMAIL_OVER_QUOTA, Reason::MailboxFull),
            ("450 4.1.1 User unknown", Reason::UserUnknown),
            ("450 4.2.1 The account is disabled", Reason::Disabled),
        ] {
            for (attempts, hours, expected) in
                [(3, 24, ReplyVerdict::Bounce), (2, 48, ReplyVerdict::Retry), (9, 23, ReplyVerdict::Retry)]
            {
                let (found, verdict) = judge(reply, Stage::Rcpt, attempts, hours, true);
                assert_eq!((found, verdict.fate), (reason, expected), "{reply}");
                assert_eq!(verdict.scope, Scope::Recipient);
                // It said so with a 4xx: not for good.
                let suppress = if expected == ReplyVerdict::Bounce {
                    Suppression::Temporary
                } else {
                    Suppression::Never
                };
                assert_eq!(verdict.suppress, suppress);
            }
        }
        let (_, greylisted) = judge("450 4.2.0 Greylisted", Stage::Rcpt, 99, 99, true);
        assert_eq!(greylisted.fate, ReplyVerdict::Retry);
    }

    /// Hotmail's hourly limits.
    #[test]
    fn limits_slow_the_queue() {
        let hotmail = "421 RP-001 (BAY004-MC1F4) Unfortunately, some messages from 192.0.2.1 weren't sent. The mail server IP \
                       connecting to Outlook.com server has exceeded the rate limit allowed. Limits are by the hour.";
        let (reason, verdict) = judge(hotmail, Stage::Connect, 1, 0, true);
        assert_eq!((reason, verdict.fate), (Reason::TooManyMessages, ReplyVerdict::Retry));
        assert!(matches!(verdict.effects.mode, Some((BackoffChange::Enter, _))));
        assert_eq!(verdict.scope, Scope::SourceAtProvider);
        let (_, once) = judge(hotmail, Stage::Connect, 1, 0, false);
        assert!(once.effects.is_empty(), "one alone is no reason");

        // Aruba's.
        let aruba = "421 too many connections from your address, try later";
        let (reason, verdict) = judge(aruba, Stage::Connect, 1, 0, true);
        assert_eq!(reason, Reason::TooManyConnections);
        assert!(matches!(verdict.effects.limit_connections, Some((1, ..))));
    }

    #[test]
    fn a_5xx_that_is_no_fault_of_the_address_is_retried() {
        for (reply, stage) in [
            ("550 5.7.1 Client host [192.0.2.1] blocked using Spamhaus", Stage::Rcpt),
            ("550 5.7.1 Client host [192.0.2.1] blocked using Spamhaus", Stage::Mail),
            ("554 Your IP has a poor reputation", Stage::Dot),
            ("550 You have sent too many messages this hour", Stage::Rcpt),
        ] {
            let (_, verdict) = judge(reply, stage, 50, 100, true);
            assert_eq!(
                (verdict.fate, verdict.suppress),
                (ReplyVerdict::Retry, Suppression::Never),
                "{reply}"
            );
            assert!(!verdict.effects.is_empty());
            // Without the policy it bounces, and the address is not given up either.
            let context = ReplyContext::new("a.example", "a.example", stage);
            let (_, verdict) = Policy::new().judge_reply(reply, &context, |_, _| true);
            assert_eq!(
                (verdict.fate, verdict.suppress),
                (ReplyVerdict::Bounce, Suppression::Never),
                "{reply}"
            );
        }
        let (_, rests) = judge("554 5.7.1 [192.0.2.1] is listed by Spamhaus", Stage::Rcpt, 1, 0, true);
        assert!(rests.effects.disable_source.is_some());
        let (_, unknown) = judge("550 5.1.1 User unknown", Stage::Rcpt, 1, 0, true);
        assert_eq!((unknown.fate, unknown.suppress), (ReplyVerdict::Bounce, Suppression::Permanent));
    }
}
