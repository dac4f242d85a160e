//! The TLSA records of a host, and which of them count.

use std::sync::Arc;

use crate::dns::TlsaRecord;

/// RFC 7218: the only usages that SMTP knows (RFC 7672 §3.1). The others rest on roots that nobody has agreed on.
const DANE_TA: u8 = 2;
const DANE_EE: u8 = 3;

/// What a host demands of sessions with it by its TLSA records: TLS in any case, and a certificate that matches a record
/// if one is usable (RFC 7672 §2.2).
///
/// Two sets that demand the same are equal, in whatever order DNS gave them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsaSet {
    base: Arc<str>,
    names: Vec<Arc<str>>,
    records: Vec<TlsaRecord>,
}

impl TlsaSet {
    /// The records found at the TLSA base domain `base`, at least one. `names` are further names that a certificate by
    /// DANE-TA may be for: those of the domain whose MX the host is (RFC 7672 §3.2.3).
    ///
    /// Of the records only usable ones are kept: of usage DANE-TA or DANE-EE, of a selector and matching type of RFC 6698,
    /// with data as these want it. Of several digests for the same usage and selector the strongest counts alone (RFC 7671 §9).
    pub fn new(base: Arc<str>, names: impl IntoIterator<Item = Arc<str>>, records: Vec<TlsaRecord>) -> Self {
        let mut usable: Vec<TlsaRecord> = records.into_iter().filter(is_usable).collect();
        let strongest = |of: &TlsaRecord| {
            let alike = usable.iter().filter(|r| (r.usage, r.selector) == (of.usage, of.selector));
            alike.map(|record| record.matching_type).max()
        };
        let counts = |record: &TlsaRecord| {
            record.matching_type == 0 || strongest(record) == Some(record.matching_type)
        };
        let counted: Vec<bool> = usable.iter().map(counts).collect();
        let mut counted = counted.into_iter();
        usable.retain(|_| counted.next().unwrap_or(false));
        usable.sort_unstable();
        usable.dedup();
        let mut further = Vec::new();
        // A key is known whatever it is for.
        let is_for_names = usable.iter().any(|record| record.usage == DANE_TA);
        for name in names.into_iter().filter(|_| is_for_names) {
            if name != base && !further.contains(&name) {
                further.push(name);
            }
        }
        Self { base, names: further, records: usable }
    }

    /// The TLSA base domain (RFC 7672 §2.2.3): also the name in SNI (§8.1).
    pub fn base(&self) -> &Arc<str> {
        &self.base
    }

    /// The names of which a certificate by DANE-TA must be for one: the base domain, then those of the mail's domain.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::once(&self.base).chain(&self.names)
    }

    /// The records that count, in an order of their own.
    pub fn records(&self) -> &[TlsaRecord] {
        &self.records
    }

    /// Whether the certificate must match a record. If not, none is usable: TLS is demanded, with any certificate
    /// (RFC 7672 §2.2).
    pub fn authenticates(&self) -> bool {
        !self.records.is_empty()
    }

    /// What the host demands whatever domain the mail is for: certificates are for the base domain alone.
    pub(crate) fn for_any_domain(&self) -> Self {
        Self { names: Vec::new(), ..self.clone() }
    }

    /// Whether a session that was opened as this set demands is as `other` demands, too. `is_valid_for` tells of its
    /// certificate, beside who has signed it.
    pub(crate) fn proves(&self, other: &Self, is_valid_for: impl Fn(&str) -> bool) -> bool {
        let is_known_anyhow = || self.records.iter().all(|record| record.usage == DANE_EE);
        let is_for_other = || self.names == other.names && self.base == other.base;
        !other.authenticates()
            || self.records == other.records
                && (is_known_anyhow() || is_for_other() || other.names().any(|name| is_valid_for(name)))
    }
}

/// RFC 7672 §3.1, RFC 6698 §2.1.
fn is_usable(record: &TlsaRecord) -> bool {
    let fits = match record.matching_type {
        0 => is_der(&record.data),
        1 => record.data.len() == 32,
        2 => record.data.len() == 64,
        _ => false,
    };
    matches!(record.usage, DANE_TA | DANE_EE) && matches!(record.selector, 0 | 1) && fits
}

/// Whether it is one DER sequence and nothing else, as certificates and public keys are.
fn is_der(data: &[u8]) -> bool {
    let Some((0x30, rest)) = data.split_first().map(|(&tag, rest)| (tag, rest)) else { return false };
    let Some((&first, rest)) = rest.split_first() else { return false };
    if first < 0x80 {
        return rest.len() == usize::from(first);
    }
    let count = usize::from(first & 0x7f);
    let Some((length, content)) = rest.split_at_checked(count) else { return false };
    let length = length.iter().try_fold(0_usize, |sum, &octet| {
        sum.checked_mul(256).and_then(|sum| sum.checked_add(usize::from(octet)))
    });
    count > 0 && length == Some(content.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(usage: u8, selector: u8, matching_type: u8, data: &[u8]) -> TlsaRecord {
        TlsaRecord::new(usage, selector, matching_type, data)
    }

    fn set(base: &str, names: &[&str], records: &[TlsaRecord]) -> TlsaSet {
        TlsaSet::new(base.into(), names.iter().map(|&name| name.into()), records.to_vec())
    }

    #[test]
    fn what_is_not_usable_does_not_count() {
        let certificate = [&[0x30, 0x82, 0x01, 0x00][..], &[7; 256]].concat();
        for (usage, selector, matching_type, data, usable) in [
            (3, 1, 1, &[1; 32][..], true),
            (3, 0, 1, &[1; 32], true),
            (2, 0, 1, &[1; 32], true),
            (2, 1, 2, &[1; 64], true),
            (3, 1, 0, &[0x30, 2, 5, 0], true),
            (2, 0, 0, &certificate, true),
            // The usages of the web.
            (0, 0, 1, &[1; 32], false),
            (1, 1, 1, &[1; 32], false),
            (4, 1, 1, &[1; 32], false),
            (255, 1, 1, &[1; 32], false),
            (3, 2, 1, &[1; 32], false),
            (3, 1, 3, &[1; 32], false),
            // A digest of another length.
            (3, 1, 1, &[1; 31], false),
            (3, 1, 1, &[1; 64], false),
            (3, 1, 2, &[1; 32], false),
            (3, 1, 1, &[], false),
            (3, 1, 0, &[], false),
            (3, 0, 0, &[0x30, 3, 5, 0], false),
            (3, 0, 0, &[0x30, 1, 5, 0], false),
            (3, 0, 0, &[0x31, 2, 5, 0], false),
            (2, 0, 0, &certificate[..259], false),
            (2, 0, 0, &[0x30, 0x80], false),
            (2, 0, 0, &[0x30, 0xff, 1, 1], false),
        ] {
            let set = set("mx.example", &[], &[record(usage, selector, matching_type, data)]);
            assert_eq!(set.authenticates(), usable, "{usage} {selector} {matching_type} {}", data.len());
        }
    }

    /// RFC 7671 §9: for the same usage and selector, and what is not digested counts always.
    #[test]
    fn the_strongest_digest_counts_alone() {
        let (weak, strong, full) =
            (record(3, 1, 1, &[1; 32]), record(3, 1, 2, &[2; 64]), record(3, 1, 0, &[0x30, 0]));
        let (of_all, by_root) = (record(3, 0, 1, &[3; 32]), record(2, 1, 1, &[4; 32]));
        let all = [&weak, &strong, &full, &of_all, &by_root].map(Clone::clone);
        assert_eq!(set("mx.example", &[], &all).records(), [by_root, of_all, full, strong]);
        let malformed = record(3, 1, 2, &[2; 63]);
        assert_eq!(set("mx.example", &[], &[weak.clone(), malformed]).records(), [weak]);
    }

    #[test]
    fn the_same_demand_is_the_same_set() {
        let (one, two) = (record(2, 1, 1, &[1; 32]), record(3, 1, 1, &[2; 32]));
        let both =
            set("mx.example", &["example.net", "mx.example", "example.net"], &[one.clone(), two.clone()]);
        let turned = set("mx.example", &["example.net"], &[two.clone(), one.clone(), two.clone()]);
        assert_eq!(both, turned);
        let names = |set: &TlsaSet| set.names().cloned().collect::<Vec<_>>();
        assert_eq!(names(&both), ["mx.example", "example.net"].map(Into::into));
        assert_eq!(names(&both.for_any_domain()), ["mx.example".into()]);
        let by_key = set("mx.example", &["example.net"], std::slice::from_ref(&two));
        assert_eq!(names(&by_key), ["mx.example".into()]);
    }

    #[test]
    fn a_session_proves_what_was_demanded_of_it() {
        let (key, other_key) = (record(3, 1, 1, &[1; 32]), record(3, 1, 1, &[2; 32]));
        let root = record(2, 1, 1, &[3; 32]);
        let of = |base: &str, records: &[&TlsaRecord]| {
            set(base, &[], &records.iter().map(|&record| record.clone()).collect::<Vec<_>>())
        };
        let for_domain = |domain: &str| set("a.example", &[domain], std::slice::from_ref(&root));
        for (opened, wanted, expected) in [
            (of("a.example", &[&key]), of("a.example", &[&key]), true),
            // A key is known whatever the host is called.
            (of("a.example", &[&key]), of("b.example", &[&key]), true),
            (of("a.example", &[&key]), of("a.example", &[&other_key]), false),
            (of("a.example", &[&key, &other_key]), of("a.example", &[&key]), false),
            (of("a.example", &[&key]), of("a.example", &[&key, &other_key]), false),
            (of("a.example", &[&root]), of("a.example", &[&root]), true),
            (of("a.example", &[&root]), of("b.example", &[&root]), false),
            (of("a.example", &[&root, &key]), of("b.example", &[&root, &key]), false),
            (for_domain("x.example"), for_domain("y.example"), false),
            // Any TLS will do.
            (of("a.example", &[&key]), of("b.example", &[]), true),
            (of("a.example", &[]), of("b.example", &[]), true),
            (of("a.example", &[]), of("a.example", &[&key]), false),
        ] {
            assert_eq!(opened.proves(&wanted, |_| false), expected, "{opened:?} {wanted:?}");
        }
        // Who has signed it is known, and what it is for can be seen.
        for (wanted, expected) in [
            (of("b.example", &[&root]), true),
            (for_domain("y.example"), true),
            (of("c.example", &[&root]), false),
            (of("b.example", &[&key]), false),
        ] {
            let opened = for_domain("x.example");
            let is_valid_for = |name: &str| ["b.example", "y.example"].contains(&name);
            assert_eq!(opened.proves(&wanted, is_valid_for), expected, "{wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(numbers in any::<(u8, u8)>(), tag in prop::sample::select(vec![0x30_u8, 0x31]), rest in any::<Vec<u8>>()) {
            let data = [&[tag], rest.as_slice()].concat();
            let set = set("mx.example", &[], &[record(3, numbers.0, numbers.1, &data), record(3, 1, 0, &data)]);
            prop_assert!(set.records().iter().all(is_usable));
        }
    }
}
