//! The power goes while many work with a store, whose own threads run on and see what comes of it.

use std::collections::{BTreeMap, BTreeSet};

use super::cuts::{claim_all, dump, open, sized};
use super::simulated::{Disk, Survival};
use super::*;
use crate::message::MessageId;
use crate::testing::conformance::{at, due, id, settle};

/// What those who worked with a store know when it fails them.
#[derive(Default)]
struct Known {
    /// Handed in, whatever the answer.
    tried: BTreeMap<MessageId, NewMessage>,
    stored: BTreeSet<MessageId>,
    settling: BTreeSet<MessageId>,
    settled: BTreeSet<MessageId>,
}

/// Inserts and settles until a call fails.
async fn work(store: Arc<DiskStorage>, worker: u64, known: Arc<Mutex<Known>>) -> Result<()> {
    let domain = format!("d{worker}.example");
    for number in 1.. {
        let message = sized(u128::from(worker) * 10_000 + number, &domain, 700);
        let id = message.envelope.id;
        lock(&known).tried.insert(id, message.clone());
        store.insert(vec![message]).await?;
        lock(&known).stored.insert(id);
        if number % 3 == 0 {
            let what = vec![due(&domain, 1_000, 1)];
            let request = ClaimRequest { owner: Owner(worker), now: at(1), until: at(2), what };
            for item in store.claim(request).await?.items {
                lock(&known).settling.insert(item.envelope.id);
                store.commit(vec![settle(&item, &[0])]).await?;
                lock(&known).settled.insert(item.envelope.id);
            }
        }
        if number % 7 == worker.into() {
            store.maintain(at(5)).await?;
        }
    }
    Ok(())
}

async fn cut(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = Disk::default();
    let store = Arc::new(open(&disk).await);
    let last = disk.steps() + random.usize(1..400);
    disk.plan(|plan| plan.off_at = Some(last));
    let known = Arc::new(Mutex::new(Known::default()));
    let workers = (0..4).map(|worker| tokio::spawn(work(store.clone(), worker, known.clone())));
    for ended in futures::future::join_all(workers).await {
        let error = ended.unwrap().unwrap_err();
        assert_ne!(error.kind(), StorageErrorKind::Corrupt, "seed {seed}: {error}");
    }
    let refused = store.insert(vec![sized(1, "a.example", 10)]).await.unwrap_err();
    assert!(!matches!(refused.kind(), StorageErrorKind::Corrupt | StorageErrorKind::Full), "{refused}");
    drop(store);
    assert_eq!(disk.steps(), last, "seed {seed}: nothing came after it");
    let known = std::mem::take(&mut *lock(&known));
    for survival in Survival::ALL {
        let what = format!("seed {seed}, {survival:?}");
        let disk = disk.reboot(survival, seed);
        let store = open(&disk).await;
        let found = dump(&store).await.unwrap();
        let ids: BTreeSet<_> = found.items.iter().map(|item| item.envelope.id).collect();
        let lost: Vec<_> = known.stored.difference(&known.settling).filter(|id| !ids.contains(id)).collect();
        assert!(lost.is_empty(), "{what}: acknowledged and lost: {lost:?}");
        let again: Vec<_> = known.settled.intersection(&ids).collect();
        assert!(again.is_empty(), "{what}: settled and there again: {again:?}");
        claim_all(&store, &found, &known.tried).await;
        store.insert(vec![sized(1, "a.example", 10)]).await.unwrap();
        assert_eq!(store.bodies(vec![BodyKey(id(1))]).await.unwrap().iter().flatten().count(), 1);
    }
}

#[test]
fn a_cut_under_load_loses_nothing_that_was_acknowledged() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        for seed in 0..40 {
            cut(seed).await;
        }
    });
}
