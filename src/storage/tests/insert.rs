use super::*;
use crate::storage::{ClaimPart, Filter, ID_MEMORY, Inserted, StorageErrorKind};
use bytes::Bytes;

pub(super) async fn bodies_come_back_as_they_were<F: Fixture>() {
    let bodies: Vec<Bytes> = [
        Bytes::new(),
        Bytes::from_static(b"\0\0\r\n\0"),
        Bytes::from_static(b"x\r\n"),
        (0..1 << 20).map(|n: u32| (n % 251) as u8).collect(),
    ]
    .into();
    let mut fixture = F::open().await;
    let messages = bodies.iter().enumerate().map(|(number, body)| {
        let mut message = message(number as u128 + 1, "a.example", 1);
        message.body = body.clone();
        message
    });
    fixture.store().insert(messages.collect()).await.unwrap();
    for _ in 0..2 {
        for (number, body) in bodies.iter().enumerate() {
            assert_eq!(fixture.body(id(number as u128 + 1)).await.unwrap(), body);
        }
        fixture = fixture.reopen().await;
    }
    assert_eq!(fixture.body(id(99)).await.unwrap_err().kind(), StorageErrorKind::NotFound);
}

pub(super) async fn what_is_acknowledged_survives_a_reopen<F: Fixture>() {
    let fixture = F::open().await;
    let sent = with(message_of(7, 5, vec![item("a.example", 9, 3)]), |envelope| {
        envelope.tags.insert("job".into(), "x".into());
        envelope.expires_at = Some(at(70));
    });
    let (item, _) = stored(fixture.insert(sent.clone()).await)[0];
    let fixture = fixture.reopen().await;
    let claimed = fixture.claim(A, due("a.example", 9, 10)).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!((claimed[0].id, claimed[0].due, &claimed[0].lane), (item, at(9), &lane("a.example")));
    assert_eq!((&claimed[0].envelope, &claimed[0].recipients), (&sent.envelope, &sent.items[0].recipients));
}

pub(super) async fn an_id_is_stored_once<F: Fixture>() {
    let fixture = F::open().await;
    let batch = vec![message(1, "a.example", 1), message(1, "a.example", 1), message(2, "a.example", 1)];
    let answers = fixture.store().insert(batch).await.unwrap();
    assert!(matches!(answers[..], [Inserted::Stored(_), Inserted::Duplicate, Inserted::Stored(_)]));
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.insert(message(2, "b.example", 1)).await, Inserted::Duplicate);
    assert_eq!(fixture.store().usage().await.unwrap().items, 2);
}

pub(super) async fn a_host_id_is_remembered_for_a_day_after_the_end<F: Fixture>() {
    let mut fixture = F::open().await;
    for (number, host_id) in [(1, true), (2, false)] {
        let mut message = message(number, "a.example", 1);
        message.host_id = host_id;
        fixture.insert(message).await;
    }
    for item in fixture.claim(A, due("a.example", 1, 10)).await {
        fixture.change(settle(&item, &[0])).await;
    }
    fixture = fixture.reopen().await;
    let mut again = message(1, "a.example", 1);
    again.host_id = true;
    let end = at(1_000_000);
    let an_hour = std::time::Duration::from_secs(3600);
    let a_second = std::time::Duration::from_secs(1);
    for now in [end, end + an_hour, end + (ID_MEMORY - a_second)] {
        fixture.store().maintain(now).await.unwrap();
        assert_eq!(fixture.insert(again.clone()).await, Inserted::Duplicate, "{now}");
        assert_eq!(fixture.store().list(Filter::All, None, 9).await.unwrap(), [], "nothing is stored for it");
    }
    for hours in 0..4 {
        fixture.store().maintain(end + ID_MEMORY + an_hour * hours).await.unwrap();
    }
    assert!(matches!(fixture.insert(again).await, Inserted::Stored(_)), "an old id is forgotten");
    assert!(matches!(fixture.insert(message(2, "a.example", 1)).await, Inserted::Stored(_)));
}

pub(super) async fn empty_messages_are_invalid<F: Fixture>() {
    let fixture = F::open().await;
    for bad in [message_of(1, 1, vec![]), message_of(1, 1, vec![item("a.example", 1, 0)])] {
        let error = fixture.store().insert(vec![message(2, "a.example", 1), bad]).await.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Invalid);
    }
    assert_eq!(fixture.store().usage().await.unwrap().items, 0);
}

pub(super) async fn items_claimed_at_insert_are_leased_to_their_owner<F: Fixture>() {
    let fixture = F::open().await;
    let mut items = vec![item("a.example", 1, 1), item("b.example", 1, 1)];
    items[0].claim_for = Some(A);
    let answer = stored(fixture.insert(message_of(1, 1, items)).await);
    assert!(answer[0].1.is_some() && answer[1].1.is_none());
    assert!(fixture.claim(B, due("a.example", 1, 9)).await.is_empty());
    let heads = fixture.store().heads(None, 9).await.unwrap();
    assert_eq!(heads.iter().map(|head| &head.lane).collect::<Vec<_>>(), [&lane("b.example")]);
    let change = crate::storage::Change::Update {
        item: answer[0].0,
        lease: answer[0].1.unwrap(),
        settled: vec![0],
        released: vec![],
    };
    assert_eq!(fixture.change(change).await, crate::storage::ChangeOutcome::Applied);
    let fixture = fixture.reopen().await;
    assert_eq!(fixture.store().usage().await.unwrap().items, 1);
}

pub(super) async fn item_ids_are_not_used_twice<F: Fixture>() {
    let mut fixture = F::open().await;
    let mut last = None;
    for number in 1..5 {
        let (item, _) = stored(fixture.insert(message(number, "a.example", 1)).await)[0];
        assert!(Some(item) > last);
        last = Some(item);
        let claimed = fixture.claim(A, ClaimPart::Items(vec![item])).await;
        fixture.change(settle(&claimed[0], &[0])).await;
        fixture = fixture.reopen().await;
    }
}
