//! The outbox: whole batches in order, bounded, shipped by whoever may.

use chrono::Utc;
use data_plane::store::{FencedBackend, StoreError, StoreOptions};
use rstest::rstest;
use shared::{
    ids::SessionId,
    seal::DataKey,
    wire::outbox::{MAX_BYTES, OutboxEvent, Party, ReceiptKind, row_name, row_place},
};

use crate::harness::{On, Run, TestDatabase, options};

fn receipt(id: &str) -> OutboxEvent {
    let chat = Party { id: "1@lid".into(), pn: None, lid: None };
    OutboxEvent::Receipt { chat, wa_ids: vec![id.into()], receipt: ReceiptKind::Read, at: Utc::now() }
}

fn id_of(event: &OutboxEvent) -> &str {
    match event {
        OutboxEvent::Receipt { wa_ids, .. } => &wa_ids[0],
        OutboxEvent::Message(_) | OutboxEvent::ServerAck { .. } => panic!("not a receipt"),
    }
}

async fn commit(backend: &FencedBackend, ids: std::ops::Range<usize>) -> std::ops::RangeInclusive<i64> {
    let events: Vec<_> = ids.map(|id| receipt(&id.to_string())).collect();
    backend.commit_events(&events).await.unwrap()
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn rows_come_out_in_order_and_open_with_the_sessions_key_in_their_place_only(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (session, key) = (SessionId::new(), DataKey::generate());
    let run = Run::start(&database, "w").await;
    let backend = run.open(&session, 1, &key).await;
    assert!(commit(&backend, 0..0).await.is_empty());
    assert_eq!(commit(&backend, 0..1).await, 1..=1);
    assert_eq!(commit(&backend, 1..1_200).await, 2..=1_200);
    assert_eq!(run.store.outbox_len(&session).await.unwrap(), 1_200);
    assert_eq!(run.store.outbox_total().await.unwrap(), 1_200);

    let mut seen = Vec::new();
    while let Some(slice) = run.store.next_batch(&session, usize::MAX).await.unwrap() {
        assert!(slice.rows.len() <= 256 && slice.epoch == 1);
        for row in &slice.rows {
            let name = row_name(slice.epoch, row.seq);
            let plain = key.open(&row_place(&session, &name), &row.sealed).unwrap();
            seen.push(id_of(&serde_json::from_slice(&plain).unwrap()).to_owned());
            let elsewhere = row_name(slice.epoch, row.seq + 1);
            key.open(&row_place(&session, &elsewhere), &row.sealed).unwrap_err();
        }
        let last = slice.rows.last().unwrap().seq;
        let gone = run.store.delete_through(&session, slice.epoch, last).await.unwrap();
        assert_eq!(gone, slice.rows.len() as u64);
    }
    assert_eq!(seen, (0..1_200).map(|id| id.to_string()).collect::<Vec<_>>());
    assert_eq!(commit(&backend, 0..1).await, 1_201..=1_201, "a number is never used again");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_full_outbox_refuses_the_whole_batch_and_poisons_nothing(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let small = StoreOptions { outbox_max_rows: 10, ..options() };
    let run = Run::start_with(&database, "w", small).await;
    let backend = run.open(&session, 1, &DataKey::generate()).await;
    commit(&backend, 0..8).await;
    let events: Vec<_> = (0..3).map(|id| receipt(&id.to_string())).collect();
    let refused = backend.commit_events(&events).await;
    assert!(matches!(refused, Err(StoreError::OutboxFull { rows: 8 })));
    assert!(!backend.is_poisoned());
    assert_eq!(run.store.outbox_len(&session).await.unwrap(), 8);
    assert_eq!(commit(&backend, 0..2).await, 9..=10);
    run.store.delete_through(&session, 1, 5).await.unwrap();
    assert_eq!(commit(&backend, 0..5).await, 11..=15);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_batch_that_fails_half_way_leaves_nothing(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (session, key) = (SessionId::new(), DataKey::generate());
    let run = Run::start(&database, "w").await;
    let backend = run.open(&session, 1, &key).await;
    // Rows go in by hundreds; the last of them collides.
    database
        .meddle(&format!(
            "INSERT INTO outbox (session_id, epoch, seq, sealed, created_at) VALUES ('{session}', 1, 1100, '', 0)"
        ))
        .await;
    let events: Vec<_> = (0..1_200).map(|id| receipt(&id.to_string())).collect();
    backend.commit_events(&events).await.unwrap_err();
    assert!(backend.is_poisoned());
    assert_eq!(run.store.outbox_len(&session).await.unwrap(), 1);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_new_epoch_counts_from_one_and_ships_after_the_old(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (session, key) = (SessionId::new(), DataKey::generate());
    let run = Run::start(&database, "w").await;
    let old = run.open(&session, 1, &key).await;
    commit(&old, 0..3).await;
    let claim = run.store.claim(&run.lease, &session, 2, 2).await.unwrap();
    let data_plane::store::Claim::Held(fence) = claim else { panic!("not held") };
    assert_eq!(fence.epoch(), 2);
    let new = run.store.backend(fence, key.clone(), run.lease.clone());
    assert_eq!(commit(&new, 0..2).await, 1..=2);
    assert_eq!(run.hold(&session, 3).await.epoch(), 2, "an epoch never falls");

    let first = run.store.next_batch(&session, 256).await.unwrap().unwrap();
    assert_eq!((first.epoch, first.rows.len()), (1, 3));
    run.store.delete_through(&session, 1, 3).await.unwrap();
    let second = run.store.next_batch(&session, 256).await.unwrap().unwrap();
    assert_eq!((second.epoch, second.rows.len()), (2, 2));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn rows_without_a_living_holder_are_adopted_by_one_worker_at_a_time(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let key = DataKey::generate();
    let (a, b) = (Run::start(&database, "a").await, Run::start(&database, "b").await);
    let dead = Run::start(&database, "dead").await;
    let (held, released, orphan, empty) = (SessionId::new(), SessionId::new(), SessionId::new(), SessionId::new());
    commit(&*a.open(&held, 1, &key).await, 0..2).await;
    let letting_go = a.open(&released, 1, &key).await;
    commit(&letting_go, 0..2).await;
    commit(&*dead.open(&orphan, 1, &key).await, 0..2).await;
    dead.open(&empty, 1, &key).await;
    assert_eq!(a.store.sessions_with_rows(10).await.unwrap().len(), 3);
    assert_eq!(a.store.sessions_with_rows(2).await.unwrap().len(), 2);
    assert!(b.store.adopt_orphans(&b.lease, 10).await.unwrap().is_empty());

    letting_go.release().await.unwrap();
    dead.lease.release().await.unwrap();
    let mut adopted = b.store.adopt_orphans(&b.lease, 1).await.unwrap();
    adopted.extend(a.store.adopt_orphans(&a.lease, 10).await.unwrap());
    adopted.sort();
    let mut expected = vec![released.clone(), orphan.clone()];
    expected.sort();
    assert_eq!(adopted, expected, "each by one of the two");
    assert_eq!(b.store.adopt_orphans(&b.lease, 10).await.unwrap().len(), 1, "and kept by asking again");

    database.meddle("UPDATE ship_lease SET until = 0").await;
    assert_eq!(b.store.adopt_orphans(&b.lease, 10).await.unwrap().len(), 2, "all, once the other's term is over");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_batch_is_bounded_in_bytes_too_and_a_row_that_is_larger_goes_alone(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let run = Run::start(&database, "w").await;
    let backend = run.open(&session, 1, &DataKey::generate()).await;
    // The longest texts that WhatsApp takes, as they come when a control plane was away; one is too large for any batch.
    let mut events: Vec<_> = (0..40).map(|_| receipt(&"x".repeat(256 << 10))).collect();
    events[20] = receipt(&"x".repeat(MAX_BYTES + 1));
    backend.commit_events(&events).await.unwrap();
    let mut sizes = Vec::new();
    let mut seqs = Vec::new();
    while let Some(slice) = run.store.next_batch(&session, usize::MAX).await.unwrap() {
        sizes.push((slice.rows.len(), slice.rows.iter().map(|row| row.sealed.len()).sum::<usize>()));
        seqs.extend(slice.rows.iter().map(|row| row.seq));
        run.store.delete_through(&session, 1, slice.rows.last().unwrap().seq).await.unwrap();
    }
    assert_eq!(seqs, (1..=40).collect::<Vec<_>>(), "each once, in order");
    assert!(sizes.iter().all(|(rows, bytes)| *rows == 1 || *bytes <= MAX_BYTES), "{sizes:?}");
    assert!(sizes.iter().any(|(rows, bytes)| *rows == 1 && *bytes > MAX_BYTES), "{sizes:?}");
    assert!(sizes.iter().any(|(rows, _)| *rows > 1), "{sizes:?}");
}
