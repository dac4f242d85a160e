//! Sources, from which mail is sent, and pools of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::domains::DomainRules;
use super::error::{PolicyError, dotted};
use super::settings::DomainSettings;
use super::unbuilt;
use crate::message::{Domain, MessageId};

/// The most a source weighs in a pool.
const MAX_WEIGHT: u32 = 1_000_000;

/// Where mail is sent from: a local address for each family and a name in EHLO.
#[derive(Clone, Debug, PartialEq)]
#[doc(alias = "virtual-mta")]
#[doc(alias = "egress")]
pub struct Source {
    name: Arc<str>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    ehlo: Option<Arc<str>>,
    pub(super) domains: DomainRules,
}

impl Source {
    /// A source without address: the system chooses. Its EHLO name is the engine's.
    ///
    /// The name is 1 to 64 letters, digits, hyphens, underscores and dots; adding the source to a policy checks it.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ipv4: None, ipv6: None, ehlo: None, domains: DomainRules::default() }
    }

    /// Sends from `address` to hosts of its family. One address per family: a second one replaces the first.
    #[doc(alias = "smtp-source-host")]
    pub fn with_address(mut self, address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.ipv4 = Some(v4),
            IpAddr::V6(v6) => self.ipv6 = Some(v6),
        }
        self
    }

    /// The name in EHLO (RFC 5321 §4.1.1.1).
    ///
    /// # Errors
    /// [`PolicyError`]: it is neither a domain name nor an address literal.
    pub fn with_ehlo(mut self, ehlo: &str) -> Result<Self, PolicyError> {
        let name = Domain::parse(ehlo).map_err(|error| {
            PolicyError::new(super::PolicyErrorKind::InvalidValue, self.path() + ".ehlo", error)
        })?;
        self.ehlo = Some(name.as_str().into());
        Ok(self)
    }

    /// This source's own settings for `domain`: `*`, `*.example.com`, `example.com` or `name.rollup`. They go
    /// before the policy's.
    ///
    /// # Errors
    /// [`PolicyError`]: not a domain, settings given already, a value out of range, or a feature that is not built.
    pub fn with_domain(mut self, domain: &str, settings: DomainSettings) -> Result<Self, PolicyError> {
        let path = self.path() + ".domain";
        unbuilt::refuse_settings(&dotted(&path, domain), &settings)?;
        self.domains.add(&path, domain, settings)?;
        Ok(self)
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The address to send from to IPv4 hosts.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.ipv4
    }

    /// The address to send from to IPv6 hosts.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }

    /// The name in EHLO; `None`: the engine's.
    pub fn ehlo(&self) -> Option<&Arc<str>> {
        self.ehlo.as_ref()
    }

    pub(super) fn path(&self) -> String {
        dotted("source", &self.name)
    }
}

/// Sources among which each message is given one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[doc(alias = "virtual-mta-pool")]
pub struct Pool {
    name: Arc<str>,
    members: Vec<(Arc<str>, u32)>,
}

impl Pool {
    /// A pool without sources; it needs one before it joins a policy.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), members: Vec::new() }
    }

    /// Adds a source of weight 1.
    pub fn with_source(self, source: impl Into<Arc<str>>) -> Self {
        self.with_weighted_source(source, 1)
    }

    /// Adds a source that gets `weight` times as much mail as one of weight 1. The weight is 1 to 1,000,000.
    pub fn with_weighted_source(mut self, source: impl Into<Arc<str>>, weight: u32) -> Self {
        self.members.push((source.into(), weight));
        self
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Names and weights of its sources.
    pub fn sources(&self) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.members.iter().map(|(name, weight)| (name, *weight))
    }

    /// The source for a message: always the same while the pool has it, by weighted rendezvous hashing. Adding or
    /// removing a source moves only the messages it gains or loses.
    pub(super) fn draw(&self, id: &MessageId) -> Option<&Arc<str>> {
        self.draw_among(id, |_| true)
    }

    /// The source for a message among the `usable` ones, with the same scores: only the messages of a source that
    /// is not usable move, and they come back to it.
    pub(super) fn draw_among(&self, id: &MessageId, usable: impl Fn(&str) -> bool) -> Option<&Arc<str>> {
        self.highest(id.as_uuid().as_bytes(), usable)
    }

    /// The same by a text: for all that shares it, such as a lane.
    pub(super) fn draw_by_name(&self, key: &str, usable: impl Fn(&str) -> bool) -> Option<&Arc<str>> {
        self.highest(key.as_bytes(), usable)
    }

    fn highest(&self, key: &[u8], usable: impl Fn(&str) -> bool) -> Option<&Arc<str>> {
        let score = |name: &str, weight: u32| {
            // A number strictly between 0 and 1, uniform, from the top 52 bits.
            #[allow(clippy::cast_precision_loss, reason = "52 bits fit")]
            let uniform = ((hash(name, key) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
            f64::from(weight) / -uniform.ln()
        };
        let members = self.members.iter().filter(|(name, _)| usable(name));
        let scored = members.map(|(name, weight)| (score(name, *weight), name));
        scored.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, name)| name)
    }

    pub(super) fn path(&self) -> String {
        dotted("pool", &self.name)
    }

    /// What is wrong with member `index`, as the predicate of a sentence.
    pub(super) fn check_weight(weight: u32) -> Result<(), &'static str> {
        match weight {
            0 => Err("is weight zero: write 1 or more, or leave the source out"),
            1..=MAX_WEIGHT => Ok(()),
            _ => Err("is too heavy: write 1000000 at most"),
        }
    }
}

/// FNV-1a over name and key, then a mix, since FNV leaves the upper bits of short inputs alike. Stable for ever:
/// a retry must find its source again after an upgrade.
fn hash(name: &str, key: &[u8]) -> u64 {
    let bytes = name.bytes().chain([0]).chain(key.iter().copied());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A name is safe in a queue's name, a file and a log line.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(fine) {
        Ok(())
    } else {
        Err("is not a name: write 1 to 64 letters, digits, hyphens, underscores and dots")
    }
}

/// An address that mail can be sent from.
pub(super) fn check_address(address: IpAddr) -> Result<(), &'static str> {
    let address = address.to_canonical();
    if address.is_unspecified() {
        Err("is no address to send from: leave the key out to let the system choose")
    } else if address.is_multicast() {
        Err("is a multicast address, from which nothing can be sent")
    } else {
        Ok(())
    }
}

/// A message asks for a source that the policy does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is neither a source nor a pool of the policy", .name.escape_debug())]
#[non_exhaustive]
pub struct UnknownSource {
    /// What was asked for.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn ids() -> impl Iterator<Item = MessageId> {
        (0..10_000_u128).map(|n| MessageId::generate(Timestamp::from_unix_seconds(1_700_000_000), n << 48))
    }

    #[test]
    fn draws_follow_the_weights() {
        let pool = Pool::new("p").with_weighted_source("a", 3).with_source("b");
        let a = ids().filter(|id| &**pool.draw(id).unwrap() == "a").count();
        assert!((7_300..7_700).contains(&a), "{a} of 10000");
    }

    #[test]
    fn a_new_source_takes_mail_and_moves_none_between_the_others() {
        let two = Pool::new("p").with_source("a").with_source("b");
        let three = Pool::new("p").with_source("c").with_source("b").with_source("a");
        let mut moved = 0;
        for id in ids() {
            let (before, after) = (two.draw(&id).unwrap(), three.draw(&id).unwrap());
            if before != after {
                assert_eq!(&**after, "c");
                moved += 1;
            }
        }
        assert!((3_100..3_600).contains(&moved), "{moved} of 10000");
    }

    #[test]
    fn only_the_mail_of_an_unusable_source_moves() {
        let pool = Pool::new("p").with_weighted_source("a", 2).with_source("b").with_source("c");
        let mut to = [0, 0];
        for id in ids() {
            let (all, among) = (pool.draw(&id).unwrap(), pool.draw_among(&id, |name| name != "a").unwrap());
            if &**all == "a" {
                to[usize::from(&**among == "c")] += 1;
            } else {
                assert_eq!(all, among);
            }
        }
        assert!(to.iter().all(|n| (2_300..2_700).contains(n)), "half of a's half each: {to:?}");
        let id = ids().next().unwrap();
        assert_eq!(pool.draw_among(&id, |name| name == "b").map(|name| &**name), Some("b"));
        assert_eq!(pool.draw_among(&id, |_| false), None);
        assert_eq!(Pool::new("empty").draw(&id), None);
    }

    #[test]
    fn a_text_draws_by_weight_and_always_the_same() {
        let pool = Pool::new("p").with_weighted_source("a", 3).with_source("b");
        let draw = |n: u32| pool.draw_by_name(&format!("example{n}.com bulk"), |_| true).unwrap();
        let a = (0..10_000).filter(|n| &**draw(*n) == "a").count();
        assert!((7_300..7_700).contains(&a), "{a} of 10000");
        assert!((0..100).all(|n| draw(n) == draw(n)));
        assert_eq!(pool.draw_by_name("x", |_| false), None);
    }

    #[test]
    fn the_hash_stays_as_it_is() {
        let id: MessageId = "018bcfe5-6800-7000-8000-000000000001".parse().unwrap();
        assert_eq!(hash("vmta1", id.as_uuid().as_bytes()), PINNED);
    }

    const PINNED: u64 = 1_818_153_065_355_528_256;
}
