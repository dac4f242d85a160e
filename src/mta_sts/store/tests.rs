use super::*;
use crate::mta_sts::Mode;
use crate::mta_sts::store::uses::{MOST_DOMAINS, MOST_FAILURES};

const AGE: u64 = 1_000_000;
const DAY: u64 = 86_400;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn kept(id: &str, max_age: u64, fetched: u64) -> Arc<KnownPolicy> {
    let text = format!("version: STSv1\nmode: enforce\nmx: mx.example.net\nmax_age: {max_age}");
    Arc::new(KnownPolicy {
        domain: "a.example".to_owned(),
        id: id.to_owned(),
        policy: StsPolicy::parse(text.as_bytes()).unwrap(),
        fetched: at(fetched),
    })
}

fn failure() -> PolicyFailure {
    PolicyFailure::for_tests()
}

fn holds(kept: Option<&Arc<KnownPolicy>>, failure: Option<PolicyFailure>, again_in: u64) -> Decision {
    Decision { kept: kept.cloned(), failure, again_in: Duration::from_secs(again_in), fetch: Fetch::No }
}

fn fetch(store: &mut Store, domain: &str, id: Option<&str>, now: u64) -> Fetch {
    store.decide(domain, id, at(now)).fetch
}

/// The rows that go, and no other change.
fn deleted(store: &mut Store) -> Vec<String> {
    let changes = store.take_changes().into_iter();
    let key = |change| match change {
        Change::DeleteState(key) => String::from_utf8(key).unwrap(),
        other => panic!("{other:?}"),
    };
    changes.map(key).collect()
}

#[test]
fn a_policy_is_fetched_when_the_id_is_new() {
    let mut store = Store::default();
    assert_eq!(store.decide("a.example", None, at(0)), Decision::nothing());
    assert_eq!(fetch(&mut store, "a.example", Some("1"), 0), Fetch::New);
    let one = kept("1", AGE, 0);
    store.fetched("a.example", one.clone());
    assert_eq!(store.decide("a.example", Some("1"), at(10)), holds(Some(&one), None, DAY - 10));
    assert_eq!(store.decide("a.example", Some("2"), at(299)), holds(Some(&one), None, 1));
    assert_eq!(fetch(&mut store, "a.example", Some("2"), 300), Fetch::New);
    assert_eq!(fetch(&mut store, "b.example", Some("1"), 10), Fetch::New);
}

/// RFC 8461 §3.3.
#[test]
fn a_policy_holds_without_record_until_its_time_is_over() {
    let mut store = Store::default();
    let one = kept("1", 100, 0);
    store.fetched("a.example", one.clone());
    assert_eq!(store.take_changes().len(), 1);
    assert_eq!(store.decide("a.example", None, at(49)), holds(Some(&one), None, 1));
    for (now, record) in [(50, None), (99, None), (99, Some("1"))] {
        let decision = store.decide("a.example", record, at(now));
        assert_eq!((decision.kept, decision.fetch), (Some(one.clone()), Fetch::Refresh), "{now} {record:?}");
    }
    assert_eq!(store.decide("a.example", None, at(100)), Decision::nothing());
    assert_eq!(deleted(&mut store), ["mta-sts/a.example"]);
    assert!(store.entries.values().all(|entry| entry.kept.is_none()));
    assert_eq!(fetch(&mut store, "a.example", Some("1"), 100), Fetch::New, "no rest without a policy");
}

/// A store that refuses for a while costs no policy over a restart.
#[test]
fn what_could_not_be_written_comes_with_the_next_changes() {
    let mut store = Store::default();
    store.fetched("a.example", kept("1", AGE, 0));
    store.fetched("b.example", kept("1", AGE, 0));
    let refused = store.take_changes();
    store.fetched("a.example", kept("2", AGE, 0));
    let newer = store.take_changes();
    store.fetched("a.example", kept("2", AGE, 0));
    store.put_back_changes(refused.clone());
    let expected = [&refused[1], &newer[0]];
    assert_eq!(
        format!("{:?}", store.take_changes()),
        format!("{expected:?}"),
        "of one domain the newer counts"
    );
    assert!(store.take_changes().is_empty());
}

/// RFC 8461 §3.3: five minutes, whatever a record says that may change with every answer.
#[test]
fn after_a_fetch_there_is_rest_whatever_the_id() {
    let mut store = Store::default();
    store.failed("a.example", at(0), failure());
    for id in ["1", "2"] {
        assert_eq!(store.decide("a.example", Some(id), at(299)), holds(None, Some(failure()), 1));
        assert_eq!(fetch(&mut store, "a.example", Some(id), 300), Fetch::New);
    }
    let one = kept("1", AGE, 400);
    store.fetched("a.example", one.clone());
    assert_eq!(store.decide("a.example", Some("2"), at(500)), holds(Some(&one), None, 200));
    store.failed("a.example", at(700), failure());
    assert_eq!(store.decide("a.example", Some("3"), at(710)), holds(Some(&one), Some(failure()), 290));
    assert_eq!(store.decide("a.example", Some("1"), at(710)), holds(Some(&one), None, DAY - 310));
    assert_eq!(fetch(&mut store, "a.example", Some("3"), 1), Fetch::New, "a clock stepped back");
}

#[test]
fn a_policy_is_seen_again_before_it_runs_out() {
    let mut store = Store::default();
    for (max_age, refresh) in [(AGE, DAY), (100, 50)] {
        let one = kept("1", max_age, 0);
        store.fetched("a.example", one.clone());
        for id in [Some("1"), None] {
            assert_eq!(store.decide("a.example", id, at(refresh - 1)), holds(Some(&one), None, 1));
            assert_eq!(fetch(&mut store, "a.example", id, refresh), Fetch::Refresh);
        }
        store.failed("a.example", at(refresh), failure());
        for id in [Some("1"), None] {
            let left = (max_age - refresh).min(300);
            assert_eq!(store.decide("a.example", id, at(refresh)), holds(Some(&one), Some(failure()), left));
        }
    }
}

#[test]
fn rows_come_back() {
    let mut store = Store::default();
    let one = kept("1", AGE, 0);
    store.fetched("a.example", one.clone());
    let Some(Change::PutState(row)) = store.take_changes().pop() else { panic!() };
    let mut again = Store::default();
    assert!(again.restore(&row, at(10)));
    assert_eq!(again.decide("a.example", None, at(10)), holds(Some(&one), None, DAY - 10));
    assert!(again.take_changes().is_empty());
    // Over, damaged, of another version: away with it.
    for (row, now) in [
        (row.clone(), AGE),
        (StateRow { value: row.value[..9].to_vec(), ..row.clone() }, 0),
        (StateRow { value: Vec::new(), ..row.clone() }, 0),
    ] {
        let mut store = Store::default();
        assert!(store.restore(&row, at(now)));
        assert_eq!(deleted(&mut store), ["mta-sts/a.example"]);
        assert!(store.entries.is_empty());
    }
    assert!(!again.restore(&StateRow { key: b"other".to_vec(), ..row }, at(0)));
}

fn lenient() -> Arc<KnownPolicy> {
    KnownPolicy::for_tests("1", "version: STSv1\nmode: testing\nmx: mx.example.net\nmax_age: 1000000")
}

fn is_consistent(store: &Store) -> bool {
    let mut rest = store.uses.clone();
    store.entries.iter().for_each(|(domain, entry)| rest.remove(&entry.used(domain)));
    store.entries.len() == store.uses.len() && rest.is_empty()
}

/// Who has names without end displaces nobody else's policies, be it in a zone of its own or in one that a registry shares out.
#[test]
fn an_owner_with_many_names_displaces_its_own_policies() {
    for suffix in ["flood.example", "flood.co.example"] {
        let mut store = Store::default();
        let others: Vec<String> = (0..4_000)
            .map(|n| format!("d{n}.test"))
            .chain((0..150).map(|n| format!("d{n}.co.example")))
            .collect();
        others.iter().for_each(|domain| store.fetched(domain, kept("1", AGE, 0)));
        for n in 0..2 * MOST_DOMAINS {
            store.fetched(&format!("s{n}.{suffix}"), kept("1", AGE, 0));
        }
        let lost = others.iter().filter(|domain| store.known(domain, at(1)).is_none()).count();
        assert_eq!((lost, store.entries.len()), (0, MOST_DOMAINS), "{suffix}");
        assert!(store.known(&format!("s0.{suffix}"), at(1)).is_none());
        // Room for more is made at its cost too.
        (0..4_000).for_each(|n| store.fetched(&format!("e{n}.test"), kept("1", AGE, 0)));
        assert!((0..4_000).all(|n| store.known(&format!("d{n}.test"), at(1)).is_some()));
        assert!(is_consistent(&store));
    }
}

/// An owner below a registry has a share of its own, however much the registry's others have.
#[test]
fn names_of_a_registry_are_not_one_owner_s() {
    let mut store = Store::default();
    let others: Vec<String> = (0..2_000).map(|n| format!("d{n}.co.uk")).collect();
    others.iter().for_each(|domain| store.fetched(domain, kept("1", AGE, 0)));
    (0..8_000).for_each(|n| store.fetched(&format!("e{n}.test"), kept("1", AGE, 0)));
    others.iter().for_each(|domain| drop(store.decide(domain, None, at(1))));
    (0..100).for_each(|n| store.fetched(&format!("f{n}.test"), kept("1", AGE, 0)));
    assert!(others.iter().all(|domain| store.known(domain, at(1)).is_some()));
    assert!(is_consistent(&store));
}

/// Whoever has more than its share of what is in force loses none of it while there is something that is not.
#[test]
fn what_is_not_in_force_goes_first_whoever_has_it() {
    let mut store = Store::default();
    let enforced: Vec<String> = (0..1_000).map(|n| format!("d{n}.co.example")).collect();
    enforced.iter().for_each(|domain| store.fetched(domain, kept("1", AGE, 0)));
    for n in 0..MOST_DOMAINS {
        store.fetched(&format!("e{n}.test"), lenient());
    }
    assert!(enforced.iter().all(|domain| store.known(domain, at(1)).is_some()));
    // Of what is alike, what is beyond a share.
    let share = MOST_DOMAINS / 16;
    (share..MOST_DOMAINS).for_each(|n| store.fetched(&format!("f{n}.test"), kept("1", AGE, 0)));
    let left = enforced.iter().filter(|domain| store.known(domain, at(1)).is_some()).count();
    assert_eq!((left, store.entries.len()), (share, MOST_DOMAINS));
    assert!(is_consistent(&store));
}

/// A long policy counts for what it takes.
#[test]
fn octets_have_a_bound() {
    let mut store = Store::default();
    let mx = "mx: a123456789.b123456789.c123456789.d123456789.example\n".repeat(128);
    let policy =
        KnownPolicy::for_tests("1", &format!("version: STSv1\nmode: enforce\nmax_age: 1000000\n{mx}"));
    for n in 0..MOST_DOMAINS {
        store.fetched(&format!("d{n}.example"), policy.clone());
    }
    let octets: usize = store.entries.len() * policy.weight();
    assert!((31 << 20..=32 << 20).contains(&octets), "{octets}");
    assert_eq!(policy.policy().mode(), Mode::Enforce);
    assert!(is_consistent(&store));
}

#[test]
fn the_least_recently_used_goes_at_the_bound() {
    let mut store = Store::default();
    for n in 0..MOST_DOMAINS {
        store.fetched(&format!("d{n}.example"), kept("1", AGE, 0));
    }
    store.decide("d0.example", None, at(1));
    store.take_changes();
    store.fetched("new.example", kept("1", AGE, 0));
    let gone = |change: &Change| matches!(change, Change::DeleteState(key) if key == b"mta-sts/d1.example");
    assert!(store.take_changes().iter().any(gone));
    assert!(store.decide("d0.example", None, at(1)).kept.is_some());
    assert_eq!(store.entries.len(), MOST_DOMAINS);
    assert!(is_consistent(&store));
}

#[test]
fn what_is_in_force_goes_last() {
    let mut store = Store::default();
    store.fetched("enforced.example", kept("1", AGE, 0));
    for n in 0..MOST_DOMAINS {
        store.fetched(&format!("d{n}.example"), lenient());
    }
    store.take_changes();
    for n in 0..MOST_FAILURES + 7 {
        store.failed(&format!("junk{n}.example"), at(1), failure());
    }
    assert!(store.take_changes().is_empty(), "failures cost no policy");
    assert_eq!(store.entries.len(), MOST_DOMAINS + MOST_FAILURES);
    assert!(store.decide("enforced.example", None, at(1)).kept.is_some());
    assert!(store.decide("d0.example", None, at(1)).kept.is_none());
    assert!(is_consistent(&store));
}
