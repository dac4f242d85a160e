use super::*;
use crate::storage::{Change, Filter, ItemId, ItemSummary, Release, count_by_listing};

async fn pages<F: Fixture>(fixture: &F, filter: Filter, limit: usize) -> Vec<ItemSummary> {
    let mut all: Vec<ItemSummary> = Vec::new();
    loop {
        let after = all.last().map(|item| item.id);
        let page = fixture.store().list(filter.clone(), after, limit).await.unwrap();
        assert!(page.len() <= limit);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// How many items the lane holds, counted in both ways.
async fn count<F: Fixture>(fixture: &F, domain: &str) -> u64 {
    let count = fixture.store().count(&lane(domain)).await.unwrap();
    assert_eq!(count_by_listing(fixture.store(), &lane(domain)).await.unwrap(), count);
    count
}

async fn filled<F: Fixture>() -> F {
    let fixture = F::open().await;
    for number in 1..=20 {
        let domain = if number % 2 == 0 { "a.example" } else { "b.example" };
        // Due and age fall as ids grow.
        let new = with(message(number, domain, 100 - number as u64), |envelope| {
            envelope.tags.insert("third".into(), (number % 3 == 0).to_string());
        });
        fixture.insert(new).await;
    }
    let wide = vec![item("a.example", 1, 2), item("c.example", 200, 1), item("d.example", 300, 1)];
    fixture.insert(message_of(50, 1, wide)).await;
    fixture
}

fn messages(list: &[ItemSummary]) -> Vec<u128> {
    list.iter().map(|item| item.message.as_uuid().as_u128()).collect()
}

pub(super) async fn a_message_lists_its_items<F: Fixture>() {
    let fixture = filled::<F>().await;
    fixture.claim(A, due("c.example", 200, 1)).await;
    for limit in [1, 2, 9] {
        let list = pages(&fixture, Filter::Message(id(50)), limit).await;
        let seen: Vec<_> = list.iter().map(|item| (item.lane.clone(), item.due, item.leased)).collect();
        let expected = [("a.example", 1, false), ("c.example", 200, true), ("d.example", 300, false)]
            .map(|(d, due, l)| (lane(d), at(due), l));
        assert_eq!(seen, expected);
        assert_eq!(list[0].recipients.len(), 2);
        assert_eq!(messages(&pages(&fixture, Filter::Message(id(3)), limit).await), [3]);
    }
    assert!(pages(&fixture, Filter::Message(id(99)), 9).await.is_empty());
    assert!(fixture.store().list(Filter::Message(id(3)), None, 0).await.unwrap().is_empty());
}

pub(super) async fn a_lane_lists_in_pages<F: Fixture>() {
    let fixture = filled::<F>().await;
    let expected: Vec<u128> = (1..=10).map(|n| n * 2).chain([50]).collect();
    for limit in [1, 3, 100] {
        let list = pages(&fixture, Filter::Lane(lane("a.example")), limit).await;
        assert_eq!(messages(&list), expected);
        assert!(list.is_sorted_by_key(|item| item.id));
    }
    assert!(pages(&fixture, Filter::Lane(lane("z.example")), 9).await.is_empty());
}

/// Whatever it takes to find an item otherwise: deferred, with an expiry of its own, leased.
pub(super) async fn a_lane_lists_and_counts_all_it_holds<F: Fixture>() {
    let fixture = F::open().await;
    for (number, due, expiry) in [(1, 5, None), (2, 9, None), (3, 5, Some(50)), (4, 9, Some(50))] {
        let new = message_of(number, 5, vec![item("a.example", due, 2), item("b.example", due, 1)]);
        fixture.insert(with(new, |envelope| envelope.expires_at = expiry.map(at))).await;
    }
    let held = fixture.claim(A, due("a.example", 9, 3)).await;
    let listed = || async { pages(&fixture, Filter::Lane(lane("a.example")), 3).await };
    let list = listed().await;
    assert_eq!(messages(&list), [1, 2, 3, 4]);
    assert_eq!(list.iter().filter(|item| item.leased).count(), 3);
    assert_eq!((count(&fixture, "a.example").await, count(&fixture, "b.example").await), (4, 4));
    // One is settled; one falls into two with their own due times.
    fixture.change(settle(&held[0], &[0, 1])).await;
    let (item, lease, recipients) = (held[1].id, held[1].lease, &held[1].recipients);
    let part = |due, index: usize| Release { due: at(due), recipients: vec![recipients[index].clone()] };
    let released = vec![part(70, 0), part(80, 1)];
    fixture.change(Change::Update { item, lease, settled: vec![], released }).await;
    assert_eq!((count(&fixture, "a.example").await, count(&fixture, "b.example").await), (4, 4));
    assert_eq!(listed().await.len(), 4);
    assert_eq!(count(&fixture, "z.example").await, 0);
}

pub(super) async fn a_rare_tag_is_found_far_away<F: Fixture>() {
    let fixture = F::open().await;
    let batch = (1..=2_500).map(|number| {
        let rare = [1_024, 1_025, 2_500].contains(&number);
        with(message(number, "a.example", 1), |envelope| {
            envelope.tags.insert("rare".into(), rare.to_string());
        })
    });
    fixture.store().insert(batch.collect()).await.unwrap();
    let list = |value: &str, limit| {
        let filter = Filter::Tag { name: "rare".into(), value: value.into() };
        fixture.store().list(filter, None, limit)
    };
    assert_eq!(messages(&list("true", 9).await.unwrap()), [1_024, 1_025, 2_500]);
    assert_eq!(messages(&list("true", 2).await.unwrap()), [1_024, 1_025]);
    assert_eq!(list("false", 2_000).await.unwrap().len(), 2_000, "a page is full if it can be");
    assert!(list("maybe", 9).await.unwrap().is_empty());
    assert_eq!(count(&fixture, "a.example").await, 2_500);
}

pub(super) async fn a_tag_lists_what_has_it<F: Fixture>() {
    let fixture = filled::<F>().await;
    let tag = |value: &str| Filter::Tag { name: "third".into(), value: value.into() };
    for limit in [1, 4, 100] {
        assert_eq!(messages(&pages(&fixture, tag("true"), limit).await), [3, 6, 9, 12, 15, 18]);
    }
    assert!(pages(&fixture, tag("maybe"), 9).await.is_empty());
}

pub(super) async fn all_lists_all<F: Fixture>() {
    let fixture = filled::<F>().await;
    for limit in [1, 5, 100] {
        assert_eq!(pages(&fixture, Filter::All, limit).await.len(), 23);
    }
    // A page may start after an item that has gone meanwhile.
    let first = fixture.store().list(Filter::All, None, 5).await.unwrap();
    let gone = fixture.claim(A, crate::storage::ClaimPart::Items(vec![first[4].id])).await;
    fixture.change(settle(&gone[0], &[0])).await;
    let rest = fixture.store().list(Filter::All, Some(first[4].id), 100).await.unwrap();
    assert_eq!(rest.len(), 18);
    assert!(fixture.store().list(Filter::All, Some(ItemId(u64::MAX)), 9).await.unwrap().is_empty());
}
