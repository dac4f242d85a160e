use super::*;
use crate::clock::Timestamp;
use crate::event::LastFailure;
use crate::storage::{Change, ChangeOutcome, Item, Lease, Recipient, Release, StorageErrorKind};

fn charged(recipient: &Recipient, attempts: u32) -> Recipient {
    Recipient { attempts, ..recipient.clone() }
}

fn release(item: &Item, due: Timestamp, indices: &[u32]) -> Release {
    let named = item.recipients.iter().filter(|recipient| indices.contains(&recipient.index));
    Release { due, recipients: named.map(|recipient| charged(recipient, recipient.attempts + 1)).collect() }
}

fn indices(item: &Item) -> Vec<u32> {
    item.recipients.iter().map(|recipient| recipient.index).collect()
}

/// One message with `recipients`, claimed.
async fn one<F: Fixture>(recipients: u32) -> (F, Item) {
    let fixture = F::open().await;
    fixture.insert(message_of(1, 10, vec![item("a.example", 10, recipients)])).await;
    let item = fixture.claim(A, due("a.example", 10, 1)).await.remove(0);
    (fixture, item)
}

fn update(item: &Item, settled: &[u32], released: Vec<Release>) -> Change {
    Change::Update { item: item.id, lease: item.lease, settled: settled.to_vec(), released }
}

pub(super) async fn a_release_is_due_exactly_then_even_after_a_reopen<F: Fixture>() {
    let (fixture, item) = one::<F>(2).await;
    let due_then = Timestamp::from_unix_micros(77_123_457);
    let just_before = Timestamp::from_unix_micros(77_123_456);
    let mut later = release(&item, due_then, &[0, 1]);
    later.recipients[0].last = Some(Box::new(LastFailure {
        at: at(11),
        mx: Some("mx.a.example".into()),
        peer: Some("192.0.2.1:25".parse().unwrap()),
        diagnosis: crate::event::Diagnosis {
            stage: crate::reply::Stage::Rcpt,
            status: "4.2.2".parse().unwrap(),
            category: crate::event::Category::QuotaIssues,
            reason: None,
            failure: crate::event::Failure::Reply(crate::reply::Reply::new(452, [b"4.2.2 full".as_slice()])),
            rule: None,
        },
    }));
    assert_eq!(fixture.change(update(&item, &[], vec![later.clone()])).await, ChangeOutcome::Applied);
    assert_eq!(fixture.change(settle(&item, &[0])).await, ChangeOutcome::Stale, "released is given back");
    let fixture = fixture.reopen().await;
    let part = |before| crate::storage::ClaimPart::Due { lane: lane("a.example"), before, limit: 9 };
    let early = fixture.claimed(A, at(70), part(just_before)).await;
    assert!(early.items.is_empty());
    assert_eq!((early.heads[0].next_due, early.heads[0].oldest), (Some(due_then), Some(at(10))));
    let back = fixture.claimed(A, at(80), part(due_then)).await.items;
    assert_eq!((back[0].due, &back[0].recipients), (due_then, &later.recipients));
}

pub(super) async fn settling_twice_does_no_harm<F: Fixture>() {
    let (fixture, item) = one::<F>(3).await;
    for _ in 0..2 {
        assert_eq!(fixture.change(settle(&item, &[0, 7])).await, ChangeOutcome::Applied);
        assert_eq!(fixture.store().usage().await.unwrap().items, 1);
    }
    let twice = fixture.store().commit(vec![settle(&item, &[1, 1, 2]), settle(&item, &[2])]).await.unwrap();
    assert_eq!(twice, [ChangeOutcome::Applied, ChangeOutcome::Stale]);
    assert_eq!(fixture.store().usage().await.unwrap().items, 0);
}

pub(super) async fn those_not_named_stay_under_the_lease<F: Fixture>() {
    let (fixture, item) = one::<F>(4).await;
    let change = update(&item, &[2], vec![release(&item, at(50), &[0])]);
    assert_eq!(fixture.change(change).await, ChangeOutcome::Applied);
    let other = fixture.claim(B, due("a.example", 1_000, 9)).await;
    assert_eq!(other.iter().map(indices).collect::<Vec<_>>(), [[0]], "1 and 3 are still held");
    assert_eq!(fixture.change(settle(&item, &[1])).await, ChangeOutcome::Applied);
    let fixture = fixture.reopen().await;
    let all = fixture.claim(B, due("a.example", 1_000, 9)).await;
    assert_eq!(all.iter().map(indices).collect::<Vec<_>>(), [[3], [0]]);
    assert_eq!((all[0].id, all[0].due, all[1].recipients[0].attempts), (item.id, at(10), 1));
}

pub(super) async fn an_item_splits_in_groups_of_one_due_each<F: Fixture>() {
    let (fixture, item) = one::<F>(5).await;
    let groups = vec![
        release(&item, at(60), &[4, 1]),
        release(&item, at(50), &[0]),
        release(&item, at(55), &[1]),
        release(&item, at(70), &[]),
    ];
    assert_eq!(fixture.change(update(&item, &[2, 3], groups)).await, ChangeOutcome::Applied);
    let fixture = fixture.reopen().await;
    let parts = fixture.claim(A, due("a.example", 60, 9)).await;
    let seen: Vec<_> = parts.iter().map(|item| (item.due, indices(item))).collect();
    assert_eq!(seen, [(at(50), vec![0]), (at(60), vec![1, 4])], "a recipient is in one group, the first");
    assert_ne!(parts[0].id, parts[1].id);
    assert!(fixture.body(id(1)).await.is_ok());
    for part in &parts {
        fixture.change(settle(part, &indices(part))).await;
    }
    assert_eq!(fixture.body(id(1)).await.unwrap_err().kind(), StorageErrorKind::NotFound);
    assert_eq!(fixture.store().usage().await.unwrap().items, 0);
}

pub(super) async fn a_body_dies_with_its_last_recipient<F: Fixture>() {
    let fixture = F::open().await;
    let items = vec![item("a.example", 1, 2), item("b.example", 1, 1)];
    fixture.insert(message_of(1, 1, items)).await;
    let a = fixture.claim(A, due("a.example", 1, 1)).await.remove(0);
    let b = fixture.claim(A, due("b.example", 1, 1)).await.remove(0);
    for change in [settle(&a, &[0]), settle(&b, &[0])] {
        assert_eq!(fixture.change(change).await, ChangeOutcome::Applied);
        assert!(fixture.body(id(1)).await.is_ok());
    }
    fixture.change(settle(&a, &[1])).await;
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.body(id(1)).await.unwrap_err().kind(), StorageErrorKind::NotFound);
}

pub(super) async fn a_stale_change_leaves_the_rest_of_its_batch<F: Fixture>() {
    let (fixture, item) = one::<F>(2).await;
    let stale = Change::Update { item: item.id, lease: Lease(0), settled: vec![1], released: vec![] };
    let state = crate::storage::StateRow { key: b"k".to_vec(), value: b"v".to_vec() };
    let batch = vec![stale, settle(&item, &[0]), Change::PutState(state.clone())];
    let outcomes = fixture.store().commit(batch).await.unwrap();
    assert_eq!(outcomes, [ChangeOutcome::Stale, ChangeOutcome::Applied, ChangeOutcome::Applied]);
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store().state(None, 9).await.unwrap(), [state]);
    assert_eq!(indices(&fixture.claim(A, due("a.example", 10, 1)).await[0]), [1]);
}

pub(super) async fn one_batch_can_not_change_an_item_it_gave_back<F: Fixture>() {
    let (fixture, item) = one::<F>(2).await;
    let unclaim = Change::Unclaim { item: item.id, lease: item.lease };
    let outcomes = fixture.store().commit(vec![unclaim, settle(&item, &[0])]).await.unwrap();
    assert_eq!(outcomes, [ChangeOutcome::Applied, ChangeOutcome::Stale]);
    assert_eq!(indices(&fixture.claim(B, due("a.example", 10, 1)).await[0]), [0, 1]);
}

pub(super) async fn many_recipients_settle_in_one_change<F: Fixture>() {
    let (fixture, item) = one::<F>(20_000).await;
    let even: Vec<u32> = (0..20_000).step_by(2).collect();
    fixture.change(settle(&item, &even)).await;
    let odd: Vec<u32> = (0..20_000).skip(1).step_by(2).collect();
    let listed = fixture.store().list(crate::storage::Filter::All, None, 1).await.unwrap();
    assert_eq!(listed[0].recipients.iter().map(|recipient| recipient.index).collect::<Vec<_>>(), odd);
    fixture.change(settle(&item, &odd)).await;
    assert_eq!(fixture.store().usage().await.unwrap().items, 0);
}
