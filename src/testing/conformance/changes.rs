use std::sync::Arc;

use super::*;
use crate::clock::Timestamp;
use crate::storage::{ChangeOutcome, ClaimPart, Filter, Recipient, StorageErrorKind};

pub(super) async fn a_release_is_due_exactly_then_even_after_a_reopen<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(2).await;
    let due_then = Timestamp::from_unix_micros(77_123_457);
    let just_before = Timestamp::from_unix_micros(77_123_456);
    let mut later = release(&item, due_then, &[0, 1]);
    later.recipients[0] =
        Recipient { attempts: 7, last: Some(Arc::new(failure())), ..later.recipients[0].clone() };
    assert_eq!(subject.change(update(&item, &[], vec![later.clone()])).await, ChangeOutcome::Applied);
    assert_eq!(subject.change(settle(&item, &[0])).await, ChangeOutcome::Stale, "released is given back");
    let subject = subject.reopen().await;
    let part = |before| ClaimPart::Due { lane: lane("a.example"), before, limit: 9 };
    let early = subject.claimed(A, at(70), part(just_before)).await;
    assert!(early.items.is_empty());
    assert_eq!((early.heads[0].next_due, early.heads[0].oldest), (Some(due_then), Some(at(10))));
    let back = subject.claimed(A, at(80), part(due_then)).await.items;
    assert_eq!((back[0].due, &back[0].recipients), (due_then, &later.recipients));
}

pub(super) async fn settling_twice_does_no_harm<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(3).await;
    for _ in 0..2 {
        assert_eq!(subject.change(settle(&item, &[0, 7])).await, ChangeOutcome::Applied);
        assert_eq!(subject.storage().usage().await.works().items, 1);
    }
    let twice = subject.storage().commit(vec![settle(&item, &[1, 1, 2]), settle(&item, &[2])]).await.works();
    assert_eq!(twice, [ChangeOutcome::Applied, ChangeOutcome::Stale]);
    assert_eq!(subject.storage().usage().await.works().items, 0);
}

pub(super) async fn those_not_named_stay_under_the_lease<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(4).await;
    let change = update(&item, &[2], vec![release(&item, at(50), &[0])]);
    assert_eq!(subject.change(change).await, ChangeOutcome::Applied);
    let other = subject.claim(B, due("a.example", 1_000, 9)).await;
    assert_eq!(other.iter().map(indices).collect::<Vec<_>>(), [[0]], "1 and 3 are still held");
    assert_eq!(subject.change(settle(&item, &[1])).await, ChangeOutcome::Applied);
    let subject = subject.reopen().await;
    let all = subject.claim(B, due("a.example", 1_000, 9)).await;
    assert_eq!(all.iter().map(indices).collect::<Vec<_>>(), [[3], [0]]);
    assert_eq!((all[0].id, all[0].due, all[1].recipients[0].attempts), (item.id, at(10), 1));
}

pub(super) async fn an_item_splits_in_groups_of_one_due_each<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(5).await;
    let groups = vec![
        release(&item, at(60), &[4, 1]),
        release(&item, at(50), &[0]),
        release(&item, at(55), &[1]),
        release(&item, at(70), &[]),
    ];
    assert_eq!(subject.change(update(&item, &[2, 3], groups)).await, ChangeOutcome::Applied);
    let subject = subject.reopen().await;
    let parts = subject.claim(A, due("a.example", 60, 9)).await;
    let seen: Vec<_> = parts.iter().map(|item| (item.due, indices(item))).collect();
    assert_eq!(seen, [(at(50), vec![0]), (at(60), vec![1, 4])], "a recipient is in one group, the first");
    assert_ne!(parts[0].id, parts[1].id);
    assert!(subject.body(id(1)).await.is_ok());
    for part in &parts {
        subject.change(settle(part, &indices(part))).await;
    }
    assert_eq!(subject.body(id(1)).await.fails(), StorageErrorKind::NotFound);
    assert_eq!(subject.storage().usage().await.works().items, 0);
}

pub(super) async fn many_recipients_settle_in_one_change<F: StorageUnderTest>() {
    let (subject, item) = one::<F>(20_000).await;
    let even: Vec<u32> = (0..20_000).step_by(2).collect();
    subject.change(settle(&item, &even)).await;
    let odd: Vec<u32> = (0..20_000).skip(1).step_by(2).collect();
    let listed = subject.storage().list(Filter::All, None, 1).await.works();
    assert_eq!(listed[0].recipients.iter().map(|recipient| recipient.index).collect::<Vec<_>>(), odd);
    subject.change(settle(&item, &odd)).await;
    assert_eq!(subject.storage().usage().await.works().items, 0);
}
