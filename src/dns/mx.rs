//! What a domain's MX records mean (RFC 5321 §5.1, RFC 7505). Pure: no look-up happens here.

use std::collections::{BTreeMap, HashMap};

use super::{Answer, Data, MxRecord};
use crate::message::normal_name;

/// How many mail exchangers of one domain are used. Beyond it those of the highest preference numbers are left out.
pub const MAX_MAIL_EXCHANGERS: usize = 32;

/// Where a domain's mail goes, by its MX records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MailExchangers {
    /// To these hosts, grouped by preference, the most preferred first. At least one group, and none is empty.
    /// Within a group: the order of the answer.
    Hosts(Vec<Vec<String>>),
    /// No MX record: the domain itself is the host, if it has an address.
    Implicit,
    /// The domain takes no mail (RFC 7505).
    NullMx,
    /// The domain does not exist.
    NxDomain,
    /// We are the most preferred host ourselves: sending on would only come back.
    MailLoop,
}

impl MailExchangers {
    /// Reads the answer to a domain's MX question.
    ///
    /// - A host named twice counts once, at its lowest preference number.
    /// - "." beside other hosts is ignored; where every record is ".", the domain takes no mail.
    /// - One of `own_names` among the hosts drops it and all of the same or a higher preference number
    ///   (RFC 5321 §5.1). Case, a trailing dot and U-labels do not matter.
    /// - At most [`MAX_MAIL_EXCHANGERS`] hosts are kept.
    pub fn new(answer: &Answer<MxRecord>, own_names: &[String]) -> Self {
        let records = match &answer.data {
            Data::NxDomain => return Self::NxDomain,
            Data::NoData => return Self::Implicit,
            Data::Records(records) => records,
        };
        if records.is_empty() {
            return Self::Implicit;
        }
        let records: Vec<(u16, String)> = records
            .iter()
            .map(|r| (r.preference, normal(&r.exchange)))
            .filter(|(_, host)| !host.is_empty())
            .collect();
        if records.is_empty() {
            return Self::NullMx;
        }
        let own = |host: &str| own_names.iter().any(|name| normal(name) == host);
        let limit = records.iter().filter(|(_, host)| own(host)).map(|(preference, _)| *preference).min();

        let mut best: HashMap<&str, u16> = HashMap::new();
        for (preference, host) in &records {
            let lowest = best.entry(host).or_insert(*preference);
            *lowest = (*lowest).min(*preference);
        }
        let mut groups: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for (_, host) in &records {
            // Removed when taken, so that a repetition finds nothing.
            match best.remove(host.as_str()) {
                Some(preference) if limit.is_none_or(|limit| preference < limit) => {
                    groups.entry(preference).or_default().push(host.clone());
                }
                _ => {}
            }
        }
        let mut room = MAX_MAIL_EXCHANGERS;
        let mut kept = Vec::new();
        for (_, mut group) in groups {
            group.truncate(room);
            room -= group.len();
            if !group.is_empty() {
                kept.push(group);
            }
        }
        if kept.is_empty() { Self::MailLoop } else { Self::Hosts(kept) }
    }
}

/// Lower case, A-labels, without trailing dot.
pub(super) fn normal(name: &str) -> String {
    normal_name(name).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn answer(records: &[(u16, &str)]) -> Answer<MxRecord> {
        let records = records
            .iter()
            .map(|&(preference, host)| MxRecord { preference, exchange: host.to_owned() })
            .collect();
        Answer::records(records, Duration::from_secs(300))
    }

    fn hosts(groups: &[&[&str]]) -> MailExchangers {
        MailExchangers::Hosts(groups.iter().map(|g| g.iter().map(|h| (*h).to_owned()).collect()).collect())
    }

    #[test]
    fn records_become_groups() {
        let own = ["mta.example.org".to_owned(), "Other.example.org.".to_owned()];
        for (records, expected) in [
            (&[(10, "a"), (10, "b")][..], hosts(&[&["a", "b"]])),
            (&[(20, "b"), (10, "a")], hosts(&[&["a"], &["b"]])),
            // Named twice: the lowest preference number counts, wherever it stands.
            (&[(20, "a"), (10, "b"), (10, "a")], hosts(&[&["a", "b"]])),
            (&[(10, "A."), (20, "a")], hosts(&[&["a"]])),
            // RFC 7505.
            (&[(0, "")], MailExchangers::NullMx),
            (&[(0, ""), (10, "."), (10, "")], MailExchangers::NullMx),
            (&[(0, ""), (10, "a")], hosts(&[&["a"]])),
            // RFC 5321 §5.1: ourselves.
            (&[(10, "a"), (20, "mta.example.org"), (20, "b"), (30, "c")], hosts(&[&["a"]])),
            (&[(10, "MTA.example.ORG."), (20, "b")], MailExchangers::MailLoop),
            (&[(10, "a"), (10, "other.example.org")], MailExchangers::MailLoop),
            (&[(20, "mta.example.org"), (10, "mta.example.org"), (15, "a")], MailExchangers::MailLoop),
        ] {
            assert_eq!(MailExchangers::new(&answer(records), &own), expected, "{records:?}");
        }
    }

    #[test]
    fn no_records() {
        let ttl = Duration::ZERO;
        assert_eq!(MailExchangers::new(&Answer::no_data(ttl), &[]), MailExchangers::Implicit);
        assert_eq!(MailExchangers::new(&Answer::nx_domain(ttl), &[]), MailExchangers::NxDomain);
    }

    #[test]
    fn the_least_preferred_are_left_out_beyond_the_bound() {
        let records: Vec<MxRecord> = (0..100)
            .rev()
            .map(|n| MxRecord { preference: n, exchange: format!("mx{n}.example.net") })
            .collect();
        let answer = Answer::records(records, Duration::ZERO);
        let MailExchangers::Hosts(groups) = MailExchangers::new(&answer, &[]) else { panic!() };
        assert_eq!(groups.len(), MAX_MAIL_EXCHANGERS);
        assert_eq!(groups[0], ["mx0.example.net"]);
        assert_eq!(groups[31], ["mx31.example.net"]);
    }

    proptest! {
        #[test]
        fn every_host_once_at_its_lowest_preference(records in prop::collection::vec((0u16..6, 0u8..8), 1..30)) {
            let named: Vec<(u16, String)> = records.iter().map(|(p, h)| (*p, format!("h{h}"))).collect();
            let borrowed: Vec<(u16, &str)> = named.iter().map(|(p, h)| (*p, h.as_str())).collect();
            let MailExchangers::Hosts(groups) = MailExchangers::new(&answer(&borrowed), &[]) else { panic!() };
            let mut flat: Vec<&String> = groups.iter().flatten().collect();
            let lowest = |host: &String| named.iter().filter(|(_, h)| h == host).map(|(p, _)| *p).min().unwrap();
            let mut last = None;
            for group in &groups {
                let preference = lowest(&group[0]);
                prop_assert!(group.iter().all(|h| lowest(h) == preference));
                prop_assert!(last < Some(preference));
                last = Some(preference);
            }
            let count = flat.len();
            flat.sort();
            flat.dedup();
            prop_assert_eq!(flat.len(), count);
            prop_assert!(named.iter().all(|(_, h)| flat.contains(&h)));
        }
    }
}
