//! The mail that is sent: the same for every policy.

use std::time::Duration;

use crate::providers::Provider;

/// The newsletter is handed over within this time.
const BURST: Duration = Duration::from_secs(3600);
/// Of a hundred messages, so many are the newsletter; the others come one by one over the first third of the time.
const NEWSLETTER_PERCENT: u64 = 75;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mail {
    /// When it is submitted, since the beginning.
    pub(crate) at: Duration,
    /// An index of the providers.
    pub(crate) provider: usize,
    pub(crate) stream: Stream,
    pub(crate) recipient: String,
    pub(crate) mailbox: Mailbox,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Newsletter,
    /// Password resets, receipts: with high priority.
    Transactional,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mailbox {
    Good,
    Unknown,
    Full,
}

/// So many messages, in order of time.
pub(crate) fn mails(seed: u64, messages: u64, time: Duration, providers: &[Provider]) -> Vec<Mail> {
    let mut random = fastrand::Rng::with_seed(seed);
    let newsletter = messages * NEWSLETTER_PERCENT / 100;
    let mut mails: Vec<Mail> = (0..messages)
        .map(|n| {
            let (stream, within) = if n < newsletter {
                (Stream::Newsletter, BURST.min(time / 3))
            } else {
                (Stream::Transactional, time / 3)
            };
            let at = Duration::from_secs(random.u64(..within.as_secs().max(1)));
            let provider = weighted(&mut random, providers.iter().map(|provider| provider.share));
            let domains = providers.get(provider).map(|provider| provider.domains.as_slice());
            let domains = domains.unwrap_or_default();
            let domain = weighted(&mut random, domains.iter().map(|(_, weight)| *weight));
            let domain = domains.get(domain).map_or("", |(name, _)| name.as_str());
            let (mailbox, local) = match random.u32(..1000) {
                0..15 => (Mailbox::Unknown, "gone"),
                15..25 => (Mailbox::Full, "full"),
                _ => (Mailbox::Good, "user"),
            };
            Mail { at, provider, stream, recipient: format!("{local}{n}@{domain}"), mailbox }
        })
        .collect();
    mails.sort_by_key(|mail| mail.at);
    mails
}

/// An index, drawn by weight.
fn weighted(random: &mut fastrand::Rng, weights: impl Iterator<Item = u32> + Clone) -> usize {
    let mut left = random.u32(..weights.clone().sum::<u32>().max(1));
    weights
        .take_while(|&weight| {
            let passed = weight <= left;
            left = left.saturating_sub(weight);
            passed
        })
        .count()
}
