//! Lanes whose names are lost: a rebuild gives their items a place all the same.
//!
//! The domain is that of their recipients. Source and priority are a message's own, so another item of it in a lane with a name has
//! them. Where there is none, the only source that other mail has is taken, or one without a name, for which the engine takes that of
//! its policy: mail from another source is better than mail lost.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::message::{Domain, MessageId, Priority};
use crate::storage::order::LaneId;
use crate::storage::rows::{Counters, Result, Rows, RowsMut};
use crate::storage::{ItemId, Lane};

use super::error::corrupt;
use super::rebuild::Target;
use super::table_writer::Writer;

/// Items put at once.
const PORTION: usize = 16 * 1024;

/// What items say about their lane.
struct Lost {
    domain: Domain,
    /// A lane of the same source and priority.
    kin: Option<Lane>,
    items: usize,
}

/// Names the lanes that these items lie in, and gives the items their places in the order.
pub(super) fn name(
    target: &mut Target,
    of_messages: &BTreeMap<MessageId, Vec<ItemId>>,
    nameless: &[ItemId],
    counters: &mut Counters,
) -> Result<()> {
    if nameless.is_empty() {
        return Ok(());
    }
    let (mut lost, mut named) = (BTreeMap::new(), BTreeMap::new());
    let mut numbers = BTreeMap::new();
    target.write(|writer| {
        nameless.iter().try_for_each(|item| ask(writer, *item, of_messages, &mut named, &mut lost))?;
        let only_source = only_source(writer)?;
        for (number, Lost { domain, kin, items }) in lost {
            let (source, priority) = match kin {
                Some(kin) => (kin.source, kin.priority),
                None => (only_source.clone().unwrap_or_default(), Priority::default()),
            };
            let lane = Lane { domain, source, priority };
            writer.leave_aside(corrupt(format!(
                "the name of lane {number} is lost: its {items} items lie in {lane} from now on, by what their recipients and \
                 other mail say"
            )));
            counters.next_lane = counters.next_lane.max(number.saturating_add(1));
            let kept = match writer.lane_id(&lane)? {
                Some(other) => other,
                None => writer.put_lane(number, &lane).map(|()| number)?,
            };
            numbers.insert(number, kept);
        }
        Ok(())
    })?;
    for portion in nameless.chunks(PORTION) {
        target.write(|writer| portion.iter().try_for_each(|item| put(writer, *item, &numbers)))?;
    }
    Ok(())
}

fn ask(
    writer: &Writer<'_, '_>,
    item: ItemId,
    of_messages: &BTreeMap<MessageId, Vec<ItemId>>,
    named: &mut BTreeMap<MessageId, Option<Lane>>,
    lost: &mut BTreeMap<LaneId, Lost>,
) -> Result<()> {
    let Some(row) = writer.item(item)? else { return Ok(()) };
    let Some(first) = row.recipients.first() else { return Ok(()) };
    let domain = first.address.domain();
    let lane = lost.entry(row.lane).or_insert_with(|| Lost { domain: domain.clone(), kin: None, items: 0 });
    lane.items += 1;
    if lane.kin.is_none() {
        let message = row.envelope.id;
        if let Entry::Vacant(unknown) = named.entry(message) {
            let items = of_messages.get(&message).map_or(&[][..], |items| items);
            unknown.insert(named_lane_of(writer, items)?);
        }
        lane.kin = named.get(&message).cloned().flatten();
    }
    Ok(())
}

/// The first lane with a name that one of a message's items lies in.
fn named_lane_of(writer: &Writer<'_, '_>, items: &[ItemId]) -> Result<Option<Lane>> {
    for item in items {
        if let Some(head) = writer.head(*item)?
            && let Some(lane) = writer.lane(head.place.lane)?
        {
            return Ok(Some(lane));
        }
    }
    Ok(None)
}

/// The source of all lanes that have a name.
fn only_source(writer: &Writer<'_, '_>) -> Result<Option<Arc<str>>> {
    let mut sources = BTreeSet::new();
    for lane in writer.lanes_after(None)? {
        sources.extend(lane?.ok().map(|(lane, _)| lane.source));
    }
    let only = sources.pop_first();
    Ok(only.filter(|_| sources.is_empty()))
}

fn put(writer: &mut Writer<'_, '_>, item: ItemId, numbers: &BTreeMap<LaneId, LaneId>) -> Result<()> {
    let Some(mut row) = writer.item(item)? else { return Ok(()) };
    let Some(number) = numbers.get(&row.lane) else { return Ok(()) };
    row.lane = *number;
    writer.put_item(item, &row)?;
    row.head().place.keys(item).try_for_each(|key| writer.put_order(key))
}

#[cfg(test)]
mod tests {
    use super::super::cuts::{open, options, run, sized};
    use super::super::damaged::{DOMAINS, Part, claim, filled, flip};
    use super::super::salvaged::{kept, large_store, pages, with_zeroes};
    use super::super::simulated::Disk;
    use super::super::{DiskStorage, cuts};
    use super::*;
    use crate::storage::{ClaimPart, NewMessage, Storage};
    use crate::testing::conformance::{at, item, lane, message_of};

    fn all_due(lane: Lane) -> ClaimPart {
        ClaimPart::Due { lane, before: at(1_000_000), limit: 9_999 }
    }

    async fn told(store: &DiskStorage) -> Vec<String> {
        store.take_damage().await.iter().map(ToString::to_string).collect()
    }

    /// The page that all of a table lies in.
    async fn page_of(whole: &Disk, table: &str) -> usize {
        for page in 1..pages(whole) {
            let told = kept(&with_zeroes(whole, &[page]), &format!("pages [{page}]")).await;
            let words = format!("of the table {table}, is damaged");
            if told.is_some_and(|(_, told)| told.iter().any(|told| told.to_string().contains(&words))) {
                return page;
            }
        }
        panic!("there is no page of {table}");
    }

    #[test]
    fn mail_in_lanes_that_are_all_lost_is_served_by_its_recipients_domains() {
        run(async {
            let whole = large_store(true).await;
            let all = kept(&whole, "whole").await.unwrap().0;
            let both = [page_of(&whole, "lanes").await, page_of(&whole, "lane-names").await];
            let store = open(&with_zeroes(&whole, &both)).await;
            let told = told(&store).await;
            assert!(told.iter().any(|told| told.contains("the name of lane 1 is lost")), "{told:?}");
            assert!(!told.iter().any(|told| told.contains("has lost")), "{told:?}");
            let mut served = BTreeSet::new();
            for domain in DOMAINS {
                let lane = Lane { source: "".into(), ..lane(domain) };
                for item in claim(&store, all_due(lane.clone())).await {
                    assert!(item.lane == lane && *item.recipients[0].address.domain() == lane.domain);
                    served.insert((item.id, item.recipients.len()));
                }
            }
            assert!(served == all, "{} of {}", served.len(), all.len());
        });
    }

    /// By damage that redb does not see, in metadata that is too large to be verified.
    async fn without_name(disk: &Disk, row: usize) -> DiskStorage {
        for table in ["lanes", "lane-names"] {
            assert!(flip(disk, table, row, Part::Value));
        }
        DiskStorage::open_with(cuts::STORE, options(disk).with_verified_metadata(0)).await.unwrap()
    }

    #[test]
    fn mail_in_a_lane_that_is_lost_goes_by_the_only_source() {
        run(async {
            let disk = filled().await;
            let store = without_name(&disk, 0).await;
            let told = told(&store).await;
            assert!(told.iter().any(|told| told.contains("lie in a.example/s/normal")), "{told:?}");
            assert_eq!(claim(&store, all_due(lane("a.example"))).await.len(), 3);
        });
    }

    #[test]
    fn mail_in_a_lane_that_is_lost_goes_as_the_other_mail_of_its_messages() {
        run(async {
            let disk = Disk::default();
            let store = open(&disk).await;
            let mut of_two = message_of(1, 3, vec![item("b.example", 3, 1), item("a.example", 3, 1)]);
            for item in &mut of_two.items {
                (item.lane.source, item.lane.priority) = ("t".into(), Priority::High);
            }
            let wanted = of_two.items[1].lane.clone();
            let mut alone: NewMessage = sized(2, "a.example", 10);
            alone.items[0].lane = wanted.clone();
            store.insert(vec![of_two, alone, sized(3, "c.example", 10)]).await.unwrap();
            drop(store);
            // Under its number it comes second.
            assert!(flip(&disk, "lanes", 0, Part::Value) && flip(&disk, "lane-names", 1, Part::Value));
            let store = open(&disk).await;
            assert!(told(&store).await.iter().any(|told| told.contains("lie in a.example/t/high")));
            assert_eq!(claim(&store, all_due(wanted)).await.len(), 2);
        });
    }

    #[test]
    fn mail_in_lanes_of_one_name_lies_in_one() {
        run(async {
            let disk = Disk::default();
            let store = open(&disk).await;
            let mut urgent = sized(1, "a.example", 10);
            urgent.items[0].lane.priority = Priority::High;
            store.insert(vec![urgent, sized(2, "a.example", 10)]).await.unwrap();
            drop(store);
            // Of two priorities of a domain the first.
            let store = without_name(&disk, 0).await;
            assert_eq!(store.heads(None, 9).await.unwrap().len(), 1);
            assert_eq!(claim(&store, all_due(lane("a.example"))).await.len(), 2);
        });
    }
}
