//! Many callers at once, on threads of their own.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::Timestamp;
use crate::storage::{Change, ChangeOutcome, ClaimRequest, Filter, Item, Owner, StateRow};

/// Callers at once.
const CALLERS: u64 = 16;
const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];

pub(super) async fn concurrent_claimers_never_share_an_item<F: StorageUnderTest>() {
    const ITEMS: u128 = 480;
    let subject = Subject::<F>::open().await;
    let messages = (1..=ITEMS).map(|n| message(n, DOMAINS[n as usize % DOMAINS.len()], n as u64 % 7));
    subject.storage().insert(messages.collect()).await.works();
    let mut old = Vec::new();
    // The second time, all leases of the first have run out.
    for now in [at(100), at(1_000)] {
        let owners = (0..CALLERS).map(|number| Owner(now.as_unix_micros() + number));
        let claimers: Vec<_> = owners
            .map(|owner| {
                subject.on_a_thread(async move |store: &F::Store| claim_all(store, owner, now, ITEMS).await)
            })
            .collect();
        let mut items = Vec::new();
        for claimer in claimers {
            items.extend(joined(claimer).await);
        }
        let mut seen = HashSet::new();
        for item in &items {
            assert!(seen.insert(item.id), "two claimers hold {:?} at {now}", item.id);
        }
        assert_eq!(items.len() as u128, ITEMS, "all were to be claimed");
        for item in old {
            assert_eq!(
                subject.change(settle(&item, &[0])).await,
                ChangeOutcome::Stale,
                "somebody else has it"
            );
        }
        old = items;
    }
    // Each settles what it holds, at once.
    let settling: Vec<_> = old
        .chunks(old.len() / CALLERS as usize)
        .map(|items| {
            let changes: Vec<_> = items.iter().map(|item| settle(item, &[0])).collect();
            subject.on_a_thread(async move |store: &F::Store| store.commit(changes).await.works())
        })
        .collect();
    for outcomes in settling {
        assert!(joined(outcomes).await.iter().all(|outcome| *outcome == ChangeOutcome::Applied));
    }
    assert_eq!(subject.storage().usage().await.works().items, 0);
}

/// Claims a few at a time, by due time and by age, until nothing is left.
async fn claim_all(store: &impl Storage, owner: Owner, now: Timestamp, most: u128) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    loop {
        let parts = DOMAINS
            .map(|domain| if owner.0.is_multiple_of(2) { due(domain, 9, 2) } else { age(domain, 9, 2) });
        let request =
            ClaimRequest { owner, now, until: now + std::time::Duration::from_secs(60), what: parts.into() };
        let claimed = store.claim(request).await.works().items;
        if claimed.is_empty() {
            return items;
        }
        items.extend(claimed);
        assert!(items.len() as u128 <= most, "one claimer was given more items than there are");
    }
}

pub(super) async fn nobody_sees_half_a_batch<F: StorageUnderTest>() {
    const ROUNDS: u8 = 40;
    let subject = Subject::<F>::open().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let is_over = is_over.clone();
            subject.on_a_thread(async move |store: &F::Store| {
                while !is_over.load(Ordering::Acquire) {
                    let rows = store.state(None, 99).await.works();
                    let values: HashSet<_> = rows.iter().map(|row| row.value.clone()).collect();
                    assert!(values.len() <= 1, "one commit writes all rows alike, a reader saw {rows:?}");
                    assert!([0, 20].contains(&rows.len()), "20 rows are written at once, not {}", rows.len());
                    let list = store.list(Filter::Message(id(1)), None, 99).await.works();
                    assert!(
                        [0, 20].contains(&list.len()),
                        "20 items are inserted at once, not {}",
                        list.len()
                    );
                }
            })
        })
        .collect();
    let written: Vec<_> = (0..ROUNDS)
        .map(|round| {
            (0..20).map(|key| Change::PutState(StateRow { key: vec![key], value: vec![round] })).collect()
        })
        .collect();
    let writer = subject.on_a_thread(async move |store: &F::Store| {
        for changes in written {
            store.commit(changes).await.works();
        }
        let items = (0..20).map(|n| item(DOMAINS[n % DOMAINS.len()], 1, 1)).collect();
        store.insert(vec![message_of(1, 1, items)]).await.works();
    });
    let written = writer.await;
    is_over.store(true, Ordering::Release);
    for reader in readers {
        joined(reader).await;
    }
    assert!(written.is_ok(), "the writer failed");
}
