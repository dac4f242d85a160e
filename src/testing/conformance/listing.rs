use super::*;
use crate::storage::{Change, ClaimPart, Filter, ItemId, ItemSummary, ListPosition, Release};

async fn pages<F: StorageUnderTest>(subject: &Subject<F>, filter: Filter, limit: usize) -> Vec<ItemSummary> {
    let mut all: Vec<ItemSummary> = Vec::new();
    loop {
        let after = all.last().map(ItemSummary::position);
        let page = subject.storage().list(filter.clone(), after, limit).await.works();
        assert!(page.len() <= limit, "a page of {} items, the limit is {limit}", page.len());
        if page.is_empty() {
            return all;
        }
        let place = |item: &ItemSummary| match filter {
            Filter::Lane(_) => item.position(),
            _ => ListPosition { due: at(0), id: item.id },
        };
        let before = all.last().map(place);
        assert!(before < Some(place(&page[0])), "a page after {before:?} begins with {:?}", place(&page[0]));
        assert!(page.is_sorted_by_key(place), "a page is not in order: {page:?}");
        all.extend(page);
    }
}

/// How many items the lane holds, counted in both ways.
async fn count<F: StorageUnderTest>(subject: &Subject<F>, domain: &str) -> u64 {
    let count = subject.storage().count(&lane(domain)).await.works();
    let listed = pages(subject, Filter::Lane(lane(domain)), 1_000).await.len();
    assert_eq!(listed as u64, count, "the list and the count of {domain}");
    count
}

async fn filled<F: StorageUnderTest>() -> Subject<F> {
    let subject = Subject::<F>::open().await;
    for number in 1..=20 {
        let domain = if number % 2 == 0 { "a.example" } else { "b.example" };
        // Due and age fall as ids grow.
        let new = with(message(number, domain, 100 - number as u64), |envelope| {
            envelope.tags.insert("third".into(), (number % 3 == 0).to_string());
        });
        subject.insert(new).await;
    }
    let wide = vec![item("a.example", 1, 2), item("c.example", 200, 1), item("d.example", 300, 1)];
    subject.insert(message_of(50, 1, wide)).await;
    subject
}

fn messages(list: &[ItemSummary]) -> Vec<u128> {
    list.iter().map(|item| item.envelope.id.as_uuid().as_u128()).collect()
}

pub(super) async fn a_message_lists_its_items<F: StorageUnderTest>() {
    let subject = filled::<F>().await;
    subject.claim(A, due("c.example", 200, 1)).await;
    for limit in [1, 2, 9] {
        let list = pages(&subject, Filter::Message(id(50)), limit).await;
        let seen: Vec<_> = list.iter().map(|item| (item.lane.clone(), item.due, item.leased)).collect();
        let expected = [("a.example", 1, false), ("c.example", 200, true), ("d.example", 300, false)]
            .map(|(d, due, l)| (lane(d), at(due), l));
        assert_eq!(seen, expected);
        assert_eq!(list[0].recipients.len(), 2);
        assert_eq!(messages(&pages(&subject, Filter::Message(id(3)), limit).await), [3]);
    }
    assert!(pages(&subject, Filter::Message(id(99)), 9).await.is_empty());
    assert!(subject.storage().list(Filter::Message(id(3)), None, 0).await.works().is_empty());
}

pub(super) async fn a_lane_lists_in_pages<F: StorageUnderTest>() {
    let subject = filled::<F>().await;
    // Due first are those that came last.
    let expected: Vec<u128> = [50].into_iter().chain((1..=10).rev().map(|n| n * 2)).collect();
    for limit in [1, 3, 100] {
        let list = pages(&subject, Filter::Lane(lane("a.example")), limit).await;
        assert_eq!(messages(&list), expected);
    }
    assert!(pages(&subject, Filter::Lane(lane("z.example")), 9).await.is_empty());
    // The item before a page may have gone meanwhile.
    let lane = || Filter::Lane(lane("a.example"));
    let first = subject.storage().list(lane(), None, 4).await.works();
    let gone = subject.claim(A, ClaimPart::Items(vec![first[3].id])).await;
    subject.change(settle(&gone[0], &[0])).await;
    let rest = subject.storage().list(lane(), Some(first[3].position()), 100).await.works();
    assert_eq!(messages(&rest), expected[4..]);
}

/// Whatever it takes to find an item otherwise: deferred, with an expiry of its own, leased.
pub(super) async fn a_lane_lists_and_counts_all_it_holds<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    for (number, due, expiry) in [(1, 5, None), (2, 9, None), (3, 5, Some(50)), (4, 9, Some(50))] {
        let new = message_of(number, 5, vec![item("a.example", due, 2), item("b.example", due, 1)]);
        subject.insert(with(new, |envelope| envelope.expires_at = expiry.map(at))).await;
    }
    let held = subject.claim(A, due("a.example", 9, 3)).await;
    let listed = || async { pages(&subject, Filter::Lane(lane("a.example")), 3).await };
    let list = listed().await;
    assert_eq!(messages(&list), [1, 3, 2, 4]);
    assert_eq!(list.iter().filter(|item| item.leased).count(), 3);
    assert_eq!((count(&subject, "a.example").await, count(&subject, "b.example").await), (4, 4));
    // One is settled; one falls into two with their own due times.
    subject.change(settle(&held[0], &[0, 1])).await;
    let (item, lease, recipients) = (held[1].id, held[1].lease, &held[1].recipients);
    let part = |due, index: usize| Release { due: at(due), recipients: vec![recipients[index].clone()] };
    let released = vec![part(70, 0), part(80, 1)];
    subject.change(Change::Update { item, lease, settled: vec![], released }).await;
    assert_eq!((count(&subject, "a.example").await, count(&subject, "b.example").await), (4, 4));
    assert_eq!(listed().await.len(), 4);
    assert_eq!(count(&subject, "z.example").await, 0);
}

pub(super) async fn a_rare_tag_is_found_far_away<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    let batch = (1..=2_500).map(|number| {
        let rare = [1_024, 1_025, 2_500].contains(&number);
        with(message(number, "a.example", 1), |envelope| {
            envelope.tags.insert("rare".into(), rare.to_string());
        })
    });
    subject.storage().insert(batch.collect()).await.works();
    let list = |value: &str, limit| {
        let filter = Filter::Tag { name: "rare".into(), value: value.into() };
        subject.storage().list(filter, None, limit)
    };
    assert_eq!(messages(&list("true", 9).await.works()), [1_024, 1_025, 2_500]);
    assert_eq!(messages(&list("true", 2).await.works()), [1_024, 1_025]);
    assert_eq!(list("false", 2_000).await.works().len(), 2_000, "a page is full if it can be");
    assert!(list("maybe", 9).await.works().is_empty());
    assert_eq!(count(&subject, "a.example").await, 2_500);
}

pub(super) async fn a_tag_lists_what_has_it<F: StorageUnderTest>() {
    let subject = filled::<F>().await;
    let tag = |value: &str| Filter::Tag { name: "third".into(), value: value.into() };
    for limit in [1, 4, 100] {
        assert_eq!(messages(&pages(&subject, tag("true"), limit).await), [3, 6, 9, 12, 15, 18]);
    }
    assert!(pages(&subject, tag("maybe"), 9).await.is_empty());
}

pub(super) async fn all_lists_all<F: StorageUnderTest>() {
    let subject = filled::<F>().await;
    for limit in [1, 5, 100] {
        assert_eq!(pages(&subject, Filter::All, limit).await.len(), 23);
    }
    // A page may start after an item that has gone meanwhile.
    let first = subject.storage().list(Filter::All, None, 5).await.works();
    let gone = subject.claim(A, ClaimPart::Items(vec![first[4].id])).await;
    subject.change(settle(&gone[0], &[0])).await;
    let rest = subject.storage().list(Filter::All, Some(first[4].position()), 100).await.works();
    assert_eq!(rest.len(), 18);
    let last = ListPosition { due: at(0), id: ItemId(u64::MAX) };
    assert!(subject.storage().list(Filter::All, Some(last), 9).await.works().is_empty());
}
