//! Many callers at once, on threads of their own.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use super::*;
use crate::clock::Timestamp;
use crate::message::EventId;
use crate::storage::{
    Change, ChangeOutcome, ClaimRequest, Filter, Inserted, Item, OutboxPosition, Owner, StateRow,
};

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

pub(super) async fn a_reader_of_the_outbox_misses_nothing<F: StorageUnderTest>() {
    let mut subject = Subject::<F>::open().await;
    let mut last = OutboxPosition::default();
    // With what was read left in the outbox, then taken out of it, so that it is empty time and again.
    for (round, acknowledges) in (1..).zip([false, true, true]) {
        last = all_report(&subject, round, last, acknowledges).await;
        subject = subject.reopen().await;
        let left = subject.storage().outbox(last, 9).await.works();
        assert!(left.is_empty(), "after what was read, once all had reported: {left:?}");
        assert_eq!(subject.storage().usage().await.works().outbox == 0, acknowledges);
        // Somebody reports after all is quiet.
        subject.change(report(round * 100_000)).await;
        let next = only(subject.storage().outbox(last, 9).await.works());
        last = next.position;
        if acknowledges {
            subject.change(Change::Acknowledge(last)).await;
        }
    }
}

/// Many report at once while one reads on from `last`. Where the reader got to.
async fn all_report<F: StorageUnderTest>(
    subject: &Subject<F>,
    round: u128,
    mut last: OutboxPosition,
    acknowledges: bool,
) -> OutboxPosition {
    const EACH: u128 = 20;
    let writers: Vec<_> = (0..CALLERS)
        .map(|writer| {
            let first = round * 100_000 + u128::from(writer) * 1_000;
            let commits: Vec<Vec<_>> = (1..=EACH)
                .map(|n| (1..=n % 3 + 1).map(|part| report(first + n * 10 + part)).collect())
                .collect();
            subject.on_a_thread(async move |store: &F::Store| {
                let mut reported = 0;
                for reports in commits {
                    reported += store.commit(reports).await.works().len();
                }
                reported
            })
        })
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let reader = subject.on_a_thread(async move |store: &F::Store| {
        let mut seen: Vec<EventId> = Vec::new();
        loop {
            let were_done = over.load(Ordering::Acquire);
            let entries = store.outbox(last, 7).await.works();
            let Some(end) = entries.last() else {
                if were_done {
                    return (seen, last);
                }
                std::thread::yield_now();
                continue;
            };
            assert!(entries.is_sorted_by(|a, b| a.position < b.position) && entries[0].position > last);
            last = end.position;
            seen.extend(entries.iter().map(|entry| entry.event));
            if acknowledges {
                store.commit(vec![Change::Acknowledge(last)]).await.works();
            }
        }
    });
    let mut reported = Vec::new();
    for writer in writers {
        reported.push(writer.await);
    }
    is_over.store(true, Ordering::Release);
    let (seen, last) = joined(reader).await;
    assert!(reported.iter().all(Result::is_ok), "a writer failed");
    let reported: usize = reported.into_iter().flatten().sum();
    let distinct: HashSet<&EventId> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "an entry was met twice");
    assert_eq!(seen.len(), reported, "entries that appeared at or before what was read are missed");
    last
}

pub(super) async fn an_id_inserted_by_many_at_once_is_stored_once<F: StorageUnderTest>() {
    const ROUNDS: u128 = 30;
    let subject = Subject::<F>::open().await;
    for round in 1..=ROUNDS {
        let barrier = Arc::new(Barrier::new(4));
        let inserting: Vec<_> = (0..4)
            .map(|caller| {
                let barrier = barrier.clone();
                // The shared one, and one of its own.
                let messages =
                    vec![message(round, DOMAINS[0], 1), message(1_000 + round * 10 + caller, DOMAINS[1], 1)];
                subject.on_a_thread(async move |store: &F::Store| {
                    barrier.wait();
                    store.insert(messages).await.works()
                })
            })
            .collect();
        let mut stored = 0;
        for answers in inserting {
            let answers = joined(answers).await;
            assert_eq!(answers.len(), 2);
            stored += usize::from(matches!(answers[0], Inserted::Stored(_)));
            assert!(matches!(answers[1], Inserted::Stored(_)), "of an id that nobody else has");
        }
        assert_eq!(stored, 1, "callers that were told their message of the same id was stored");
        let list = subject.storage().list(Filter::Message(id(round)), None, 9).await.works();
        assert_eq!(list.len(), 1, "items of message {round}");
    }
    let usage = subject.storage().usage().await.works();
    assert_eq!(u128::from(usage.items), ROUNDS * 5, "items of all messages");
}

pub(super) async fn a_change_and_a_claim_at_once_do_not_both_win<F: StorageUnderTest>() {
    let subject = Subject::<F>::open().await;
    for round in 1..=40 {
        subject.insert(message_of(round, 1, vec![item(DOMAINS[0], 1, 2)])).await;
        let now = |seconds| at(1_000 * round as u64 + seconds);
        let late = only(subject.claimed(A, now(0), due(DOMAINS[0], 9, 9)).await.items);
        let barrier = Arc::new(Barrier::new(2));
        let (waits, change) = (barrier.clone(), settle(&late, &[0, 1]));
        let changing = subject.on_a_thread(async move |store: &F::Store| {
            waits.wait();
            store.commit(vec![change]).await.works()
        });
        let (now, until) = (now(61), now(121));
        let claiming = subject.on_a_thread(async move |store: &F::Store| {
            barrier.wait();
            let what = vec![due(DOMAINS[0], 9, 9)];
            store.claim(ClaimRequest { owner: B, now, until, what }).await.works().items
        });
        let (changed, claimed) = (only(joined(changing).await), joined(claiming).await);
        let left = subject.storage().list(Filter::Message(id(round)), None, 9).await.works();
        match (changed, &claimed[..]) {
            (ChangeOutcome::Applied, []) => assert!(left.is_empty(), "it was settled: {left:?}"),
            (ChangeOutcome::Stale, [claimed]) => {
                assert_eq!(indices(claimed), [0, 1], "as it was");
                assert_eq!(only(left).recipients.len(), 2);
                assert_eq!(subject.change(settle(claimed, &[0, 1])).await, ChangeOutcome::Applied);
            }
            (changed, claimed) => panic!("the change was {changed:?}, and claimed was {claimed:?}"),
        }
    }
}
