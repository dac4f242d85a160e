//! What becomes of a recipient whom a reply refuses.

use super::decision::{Fate, RuleDecision};
use crate::reply::Stage;

/// What becomes of a recipient whom a reply refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ReplyVerdict {
    /// It is charged and tried again.
    Retry,
    /// It bounces.
    Bounce,
    /// It bounces, and with it every message in its queue.
    BounceQueue,
    /// It goes on to the next host, uncharged.
    NextHost,
    /// It would bounce, but the reply is to several recipients: first each is sent the message by itself.
    OneByOne,
}

impl ReplyVerdict {
    /// In lower case: `retry`, `bounce`, `bounce-queue`, `next-host`, `one-by-one`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Bounce => "bounce",
            Self::BounceQueue => "bounce-queue",
            Self::NextHost => "next-host",
            Self::OneByOne => "one-by-one",
        }
    }
}

impl RuleDecision {
    /// What becomes of each recipient of a transaction that was refused: what the rules say, else what the reply's
    /// code says. `permanent`: it was 5xx. `recipients`: how many the transaction had.
    ///
    /// ```
    /// # use postrider::policy::{Policy, ReplyContext, ReplyVerdict};
    /// # use postrider::reply::Stage;
    /// let policy = Policy::from_toml("[[reply-rule]]\nname = 'spam'\nmatch = 'spam'\nactions = 'bounce-rcpt'")?;
    /// let decision = policy.decide_reply("451 spam", &ReplyContext::new("a.example", "a.example", Stage::Dot), |_, _| true);
    /// assert_eq!(decision.verdict(false, Stage::Dot, 1), ReplyVerdict::Bounce);
    /// assert_eq!(decision.verdict(false, Stage::Dot, 2), ReplyVerdict::OneByOne);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verdict(&self, permanent: bool, stage: Stage, recipients: usize) -> ReplyVerdict {
        match self.fate.as_ref().map(|(fate, _)| *fate) {
            // Whose fault it is shows when each is sent by itself.
            Some(Fate::BounceRecipient)
                if recipients > 1 && matches!(stage, Stage::Data | Stage::Dot) && !permanent =>
            {
                ReplyVerdict::OneByOne
            }
            Some(Fate::BounceRecipient) => ReplyVerdict::Bounce,
            Some(Fate::BounceQueue) => ReplyVerdict::BounceQueue,
            Some(Fate::SkipMx) => ReplyVerdict::NextHost,
            Some(Fate::RetryRecipient) => ReplyVerdict::Retry,
            None if permanent => ReplyVerdict::Bounce,
            None => ReplyVerdict::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_goes_before_the_code() {
        use ReplyVerdict as V;
        for (fate, transient, permanent) in [
            (None, V::Retry, V::Bounce),
            (Some(Fate::BounceRecipient), V::Bounce, V::Bounce),
            (Some(Fate::BounceQueue), V::BounceQueue, V::BounceQueue),
            (Some(Fate::SkipMx), V::NextHost, V::NextHost),
            (Some(Fate::RetryRecipient), V::Retry, V::Retry),
        ] {
            let decision =
                RuleDecision { fate: fate.map(|fate| (fate, "r".into())), ..RuleDecision::default() };
            for stage in [Stage::Rcpt, Stage::Dot] {
                let got = (decision.verdict(false, stage, 1), decision.verdict(true, stage, 1));
                assert_eq!(got, (transient, permanent), "{fate:?}");
            }
            let several = if fate == Some(Fate::BounceRecipient) { V::OneByOne } else { transient };
            assert_eq!(decision.verdict(false, Stage::Data, 2), several);
            assert_eq!(decision.verdict(false, Stage::Rcpt, 2), transient, "a reply to RCPT is about one");
            assert_eq!(decision.verdict(true, Stage::Dot, 2), permanent, "it would bounce anyhow");
        }
    }
}
