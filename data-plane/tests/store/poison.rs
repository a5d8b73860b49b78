//! After a failed write a handle refuses everything.

use data_plane::store::{Poison, StoreError};
use rstest::rstest;
use shared::{ids::SessionId, seal::DataKey};
use wacore::store::traits::{ProtocolStore, SignalStore};

use crate::harness::{On, Run, TestDatabase};

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_failed_write_poisons_for_good_and_a_new_handle_is_well(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (session, key) = (SessionId::new(), DataKey::generate());
    let run = Run::start(&database, "w").await;
    let backend = run.open(&session, 1, &key).await;
    let mut poisoned = backend.poisoned();
    backend.put_session("1@s.whatsapp.net", b"before").await.unwrap();
    assert!(!backend.is_poisoned());

    database.meddle("ALTER TABLE wa_state RENAME TO hidden").await;
    backend.put_session("1@s.whatsapp.net", b"lost").await.unwrap_err();
    database.meddle("ALTER TABLE hidden RENAME TO wa_state").await;

    poisoned.changed().await.unwrap();
    assert_eq!(*poisoned.borrow(), Some(Poison::WriteFailed));
    backend.put_session("1@s.whatsapp.net", b"late").await.unwrap_err();
    backend.get_session("1@s.whatsapp.net").await.unwrap_err();
    backend.take_sent_message("1@s.whatsapp.net", "A").await.unwrap_err();
    backend.has_signal_state_for_user("1").await.unwrap_err();
    backend.delete_sender_key_device_rows(&["1:2@s.whatsapp.net"]).await.unwrap_err();
    assert!(matches!(backend.commit_events(&[]).await, Ok(nothing) if nothing.is_empty()));
    assert!(matches!(backend.journal_find("A").await, Err(StoreError::Poisoned(Poison::WriteFailed))));

    let rebuilt = run.open(&session, 1, &key).await;
    assert_eq!(rebuilt.get_session("1@s.whatsapp.net").await.unwrap().as_deref(), Some(&b"before"[..]));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_handle_refuses_once_released_fenced_or_past_its_lease(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let key = DataKey::generate();
    let run = Run::start(&database, "w").await;

    let session = SessionId::new();
    let released = run.open(&session, 1, &key).await;
    released.put_identity("1@s.whatsapp.net", [1; 32]).await.unwrap();
    released.release().await.unwrap();
    released.put_identity("1@s.whatsapp.net", [2; 32]).await.unwrap_err();
    released.load_identity("1@s.whatsapp.net").await.unwrap_err();
    assert_eq!(*released.poisoned().borrow(), Some(Poison::Released));

    let older = run.open(&session, 2, &key).await;
    let newer = run.open(&session, 3, &key).await;
    older.put_identity("1@s.whatsapp.net", [3; 32]).await.unwrap_err();
    assert_eq!(*older.poisoned().borrow(), Some(Poison::Fenced));
    assert_eq!(newer.load_identity("1@s.whatsapp.net").await.unwrap(), Some([1; 32]));

    run.lease.release().await.unwrap();
    newer.put_identity("1@s.whatsapp.net", [4; 32]).await.unwrap_err();
    assert_eq!(*newer.poisoned().borrow(), Some(Poison::LeaseEnded));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn the_first_reason_stays(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    let backend = run.open(&SessionId::new(), 1, &DataKey::generate()).await;
    backend.poison(Poison::HookFailed);
    backend.poison(Poison::Released);
    assert_eq!(*backend.poisoned().borrow(), Some(Poison::HookFailed));
    let error = backend.put_identity("15550001111@s.whatsapp.net", [0; 32]).await.unwrap_err();
    let words = format!("{error} {error:?}");
    assert!(!words.contains("15550001111"), "{words}");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn another_sessions_key_opens_nothing(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let session = SessionId::new();
    let run = Run::start(&database, "w").await;
    let right = run.open(&session, 1, &DataKey::generate()).await;
    right.store_signed_prekey(1, b"record").await.unwrap();
    let wrong = run.open(&session, 2, &DataKey::generate()).await;
    assert_eq!(wrong.load_signed_prekey(1).await.unwrap(), None, "not even found");
    wrong.load_all_signed_prekeys().await.unwrap_err();
}
