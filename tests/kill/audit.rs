//! What must be true after any number of kills.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::receiver::Seen;
use crate::{CONNECTIONS, Offered};

/// Transactions that one kill may have sent again.
///
/// No transaction is handed out while so many outcomes are not durable as there are connections, and each connection may
/// have one that was handed out before.
const SENT_AGAIN: usize = 2 * CONNECTIONS - 1;

pub(crate) struct Audit<'a> {
    pub(crate) offered: &'a BTreeMap<String, Offered>,
    /// With the number of the mailer that wrote each.
    pub(crate) records: &'a [(usize, Value)],
    pub(crate) seen: &'a Seen,
    pub(crate) kills: usize,
}

/// The final record of a recipient. If it was written more than once: the first.
struct Final<'a> {
    mailer: usize,
    kind: &'a str,
    event: &'a str,
    id: &'a str,
    times: usize,
}

impl Audit<'_> {
    /// Panics at what must not be; else sums up.
    pub(crate) fn judge(&self) -> String {
        let received = self.received();
        let finals = self.finals();
        self.all_ended(&received, &finals);
        self.ended_as_the_receiver_saw(&finals);
        self.nothing_after_its_record(&finals);
        let again = self.sent_again();
        let repeated: usize = finals.values().map(|found| found.times - 1).sum();
        format!(
            "{} kills, {} messages received, {} recipients ended; {} transactions sent again, at most {} after one \
             kill; {repeated} records repeated",
            self.kills,
            received.len(),
            finals.len(),
            again.iter().sum::<usize>(),
            again.iter().max().unwrap_or(&0),
        )
    }

    /// References and ids of what was acknowledged.
    fn received(&self) -> BTreeMap<&str, &str> {
        let mut received = BTreeMap::new();
        for (_, record) in self.records {
            assert_ne!(record["type"], "rejected", "{record}");
            if record["type"] == "received" {
                let (reference, id) = (text(record, "ref"), text(record, "id"));
                let offered =
                    self.offered.get(reference).unwrap_or_else(|| panic!("never offered: {record}"));
                assert!(offered.id.as_deref().is_none_or(|own| own == id), "another id: {record}");
                assert_eq!(*received.entry(reference).or_insert(id), id, "two ids: {record}");
            }
        }
        let own = self.offered.iter().filter(|(_, offered)| offered.id.is_some());
        own.for_each(|(name, _)| {
            assert!(received.contains_key(name.as_str()), "{name} was offered until received")
        });
        received
    }

    fn finals(&self) -> BTreeMap<&str, Final<'_>> {
        let mut finals: BTreeMap<&str, Final<'_>> = BTreeMap::new();
        let mut events = BTreeSet::new();
        for (mailer, record) in self.records {
            let kind = text(record, "type");
            if kind != "delivered" && kind != "bounced" {
                continue;
            }
            let [reference, recipient, event, id] =
                ["ref", "recipient", "event", "id"].map(|field| text(record, field));
            assert!(!event.is_empty() && !id.is_empty(), "without a stable id: {record}");
            let offered = self.offered.get(reference).unwrap_or_else(|| panic!("never offered: {record}"));
            assert!(offered.to.iter().any(|to| to == recipient), "not a recipient of the message: {record}");
            if let Some(first) = finals.get_mut(recipient) {
                assert_eq!((first.kind, first.event, first.id), (kind, event, id), "another event: {record}");
                first.times += 1;
            } else {
                assert!(events.insert(event), "the event of another recipient: {record}");
                finals.insert(recipient, Final { mailer: *mailer, kind, event, id, times: 1 });
            }
        }
        finals
    }

    /// A message has ended as a whole if it was acknowledged, or if anything of it was seen.
    fn all_ended(&self, received: &BTreeMap<&str, &str>, finals: &BTreeMap<&str, Final<'_>>) {
        for (reference, offered) in self.offered {
            let id = received.get(reference.as_str());
            let is_seen = |to: &String| finals.contains_key(to.as_str()) || self.seen.asked.contains_key(to);
            if id.is_none() && !offered.to.iter().any(is_seen) {
                continue;
            }
            for to in &offered.to {
                let found =
                    finals.get(to.as_str()).unwrap_or_else(|| panic!("{to} was received and is lost"));
                assert!(id.is_none_or(|id| *id == found.id), "{to}: the record is of another message");
                assert_eq!(found.kind, if to.starts_with("gone-") { "bounced" } else { "delivered" }, "{to}");
            }
        }
    }

    fn ended_as_the_receiver_saw(&self, finals: &BTreeMap<&str, Final<'_>>) {
        let accepted: BTreeSet<&str> = self
            .seen
            .visits
            .iter()
            .flat_map(|visit| visit.accepted.iter().flatten())
            .map(String::as_str)
            .collect();
        let delivered: BTreeSet<&str> =
            finals.iter().filter(|(_, found)| found.kind == "delivered").map(|(to, _)| *to).collect();
        // Both ways: nobody is reported who got nothing, and nobody got anything who is not reported.
        assert_eq!(accepted, delivered);
    }

    /// A final record comes from what is durable: once it was written, no later mailer tries that recipient.
    fn nothing_after_its_record(&self, finals: &BTreeMap<&str, Final<'_>>) {
        for (to, found) in finals {
            let asked = &self.seen.asked[*to];
            assert!(
                asked.iter().all(|mailer| *mailer <= found.mailer),
                "{to} has the record of mailer {}, and was tried by {asked:?}",
                found.mailer
            );
        }
    }

    /// For each mailer, its transactions of which a recipient was sent the message again by a later one.
    fn sent_again(&self) -> Vec<usize> {
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        let mut once = BTreeSet::new();
        for visit in &self.seen.visits {
            for to in visit.accepted.iter().flatten() {
                assert!(once.insert((visit.mailer, to)), "{to} was sent twice by mailer {}", visit.mailer);
                let mailer = last.entry(to).or_default();
                *mailer = visit.mailer.max(*mailer);
            }
        }
        let mut again = vec![0; self.kills + 1];
        for visit in &self.seen.visits {
            let is_again =
                |transaction: &Vec<String>| transaction.iter().any(|to| last[to.as_str()] > visit.mailer);
            let settled = visit.accepted.iter().take_while(|transaction| !is_again(transaction)).count();
            // Outcomes become durable in the order in which a connection had them.
            let (_, unsettled) = visit.accepted.split_at(settled);
            assert!(unsettled.iter().all(is_again), "mailer {}: settled after what was not", visit.mailer);
            again[visit.mailer] += unsettled.len();
        }
        for (mailer, count) in again.iter().enumerate() {
            assert!(*count <= SENT_AGAIN, "{count} transactions were sent again after mailer {mailer}");
        }
        again
    }
}

/// A text field of a record, empty if it is not there.
fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}
