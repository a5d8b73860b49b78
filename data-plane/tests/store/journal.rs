//! The send journal: nothing is sent again after its acknowledgement is recorded.

use chrono::{DateTime, Duration, TimeZone, Utc};
use data_plane::store::{
    FencedBackend, JournalAck, JournalItem, JournalOpened, JournalState, JournalWord, StoreError, StoreOptions,
};
use rstest::rstest;
use shared::{
    ids::{MessageId, SessionId},
    seal::DataKey,
    wire::{
        outbox::{OutboxEvent, Party, ReceiptKind, row_name, row_place},
        session::OnUnknown::{Hold, Resend},
    },
};

use crate::harness::{On, Run, TestDatabase, options};

const CHAT: &str = "15550001111@s.whatsapp.net";

fn noon() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, 0).unwrap()
}

/// One word of WhatsApp's.
async fn ack(
    backend: &FencedBackend,
    wa_id: &str,
    error: Option<u16>,
    at: DateTime<Utc>,
) -> Result<JournalAck, StoreError> {
    let words = [JournalWord { wa_id: wa_id.into(), error, at }];
    Ok(backend.journal_ack(&words, &[]).await?.remove(0))
}

struct Fixture {
    run: Run,
    session: SessionId,
    key: DataKey,
    messages: Vec<(MessageId, String)>,
}

impl Fixture {
    async fn new(database: &TestDatabase, options: StoreOptions) -> Self {
        let messages = (0..4).map(|n| (MessageId::new(), format!("3EB0{n}"))).collect();
        let run = Run::start_with(database, "w", options).await;
        Self { run, session: SessionId::new(), key: DataKey::generate(), messages }
    }

    async fn backend(&self, generation: i64) -> std::sync::Arc<FencedBackend> {
        self.run.open(&self.session, generation, &self.key).await
    }

    fn items(&self, which: impl IntoIterator<Item = usize>) -> Vec<JournalItem<'_>> {
        which
            .into_iter()
            .map(|n| JournalItem { message_id: &self.messages[n].0, wa_id: &self.messages[n].1, chat: CHAT })
            .collect()
    }

    async fn shipped(&self) -> Vec<OutboxEvent> {
        let Some(slice) = self.run.store.next_batch(&self.session, 256).await.unwrap() else { return Vec::new() };
        let open = |seq: i64, sealed: &[u8]| {
            let name = row_name(slice.epoch, seq);
            let plain = self.key.open(&row_place(&self.session, &name), sealed).unwrap();
            serde_json::from_slice(&plain).unwrap()
        };
        slice.rows.iter().map(|row| open(row.seq, &row.sealed)).collect()
    }
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn an_acknowledged_message_is_never_opened_again(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, options()).await;
    let backend = f.backend(1).await;
    let opened = backend.journal_open(&f.items([0, 1, 2, 1]), Resend).await.unwrap();
    let first = JournalOpened::Opened { tries: 1 };
    assert_eq!(opened, [first.clone(), first.clone(), first, JournalOpened::Held { tries: 1 }]);

    let acked = ack(&backend, "3EB00", None, noon()).await.unwrap();
    assert_eq!(acked, JournalAck::Recorded { message_id: f.messages[0].0.clone(), tries: 1 });
    let stands = JournalAck::Already { error: None, at: noon() };
    assert_eq!(ack(&backend, "3EB00", None, noon() + Duration::days(1)).await.unwrap(), stands);
    assert_eq!(ack(&backend, "3EB00", Some(500), noon()).await.unwrap(), stands);
    assert_eq!(ack(&backend, "FOREIGN", None, noon()).await.unwrap(), JournalAck::Unknown);
    let nacked = ack(&backend, "3EB01", Some(463), noon()).await.unwrap();
    assert!(matches!(nacked, JournalAck::Recorded { .. }));

    // Another run of another generation, after a crash.
    let backend = f.backend(2).await;
    let opened = backend.journal_open(&f.items([0, 1, 2, 3]), Resend).await.unwrap();
    assert_eq!(
        opened,
        [
            JournalOpened::AlreadyAcked { at: noon() },
            JournalOpened::AlreadyNacked { code: 463, at: noon() },
            JournalOpened::WasOpen { tries: 2 },
            JournalOpened::Opened { tries: 1 },
        ]
    );
    let held = backend.journal_open(&f.items([2]), Hold).await.unwrap();
    assert_eq!(held, [JournalOpened::Held { tries: 2 }]);
    let acked = ack(&backend, "3EB02", None, noon()).await.unwrap();
    assert_eq!(acked, JournalAck::Recorded { message_id: f.messages[2].0.clone(), tries: 2 });

    let ack = |n: usize, error, tries| OutboxEvent::ServerAck {
        message_id: f.messages[n].0.clone(),
        wa_id: f.messages[n].1.clone(),
        error,
        at: noon(),
        tries,
    };
    assert!(f.shipped().await == [ack(0, None, 1), ack(1, Some(463), 1), ack(2, None, 2)], "one row for each word");
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn words_and_receipts_that_come_together_are_one_commit(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, StoreOptions { outbox_max_rows: 3, ..options() }).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1]), Resend).await.unwrap();
    let word = |wa_id: &str, error| JournalWord { wa_id: wa_id.into(), error, at: noon() };
    let receipt = OutboxEvent::Receipt {
        chat: Party { id: CHAT.into(), pn: None, lid: None },
        wa_ids: vec!["3EB00".into()],
        receipt: ReceiptKind::Delivered,
        at: noon(),
    };
    // The same word twice, a refusal that is taken back, and one of a message that isn't ours.
    let words = [word("3EB00", None), word("3EB00", None), word("3EB01", Some(500)), word("FOREIGN", None)];
    let many = vec![receipt.clone(); 2];
    let full = backend.journal_ack(&words, &many).await;
    assert!(matches!(full, Err(StoreError::OutboxFull { .. })));
    assert_eq!(backend.journal_find("3EB00").await.unwrap().unwrap().state, JournalState::Open, "all or nothing");

    let acks = backend.journal_ack(&words, &many[..1]).await.unwrap();
    let recorded = |n: usize| JournalAck::Recorded { message_id: f.messages[n].0.clone(), tries: 1 };
    assert_eq!(acks, [recorded(0), JournalAck::Already { error: None, at: noon() }, recorded(1), JournalAck::Unknown]);
    let shipped = f.shipped().await;
    assert_eq!(shipped.len(), 3);
    assert!(shipped[2] == receipt, "what WhatsApp said of a message comes before what its recipient says");
    assert!(backend.journal_ack(&[], &[]).await.unwrap().is_empty());
    f.run.store.delete_through(&f.session, 1, 3).await.unwrap();
    assert!(backend.journal_ack(&[], &many).await.unwrap().is_empty());
    assert!(f.shipped().await == many);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn an_acknowledgement_moves_a_refused_message_forward_and_never_back(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, options()).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0]), Resend).await.unwrap();
    ack(&backend, "3EB00", Some(429), noon()).await.unwrap();
    assert_eq!(
        ack(&backend, "3EB00", Some(475), noon()).await.unwrap(),
        JournalAck::Already { error: Some(429), at: noon() }
    );
    let later = noon() + Duration::seconds(5);
    assert!(matches!(ack(&backend, "3EB00", None, later).await.unwrap(), JournalAck::Recorded { .. }));
    assert_eq!(ack(&backend, "3EB00", Some(429), later).await.unwrap(), JournalAck::Already { error: None, at: later });
    let entry = backend.journal_find("3EB00").await.unwrap().unwrap();
    assert_eq!((entry.state, entry.tries), (JournalState::Acked { at: later }, 1));
    assert_eq!(f.shipped().await.len(), 2);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_try_that_never_reached_the_transport_is_taken_back(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, options()).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1, 2]), Resend).await.unwrap();
    backend.journal_open(&f.items([1]), Resend).await.unwrap();
    ack(&backend, "3EB02", None, noon()).await.unwrap();
    backend.journal_withdraw(&["3EB00", "3EB01", "3EB02"]).await.unwrap();
    assert_eq!(backend.journal_find("3EB00").await.unwrap(), None);
    let unknown = backend.journal_find("3EB01").await.unwrap().unwrap();
    assert_eq!((unknown.state, unknown.tries), (JournalState::Open, 1), "the earlier try stays unknown");
    let acked = backend.journal_find("3EB02").await.unwrap().unwrap();
    assert_eq!(acked.state, JournalState::Acked { at: noon() });
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn an_acknowledgement_is_not_recorded_without_its_outbox_row(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, StoreOptions { outbox_max_rows: 1, ..options() }).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1]), Resend).await.unwrap();
    ack(&backend, "3EB00", None, noon()).await.unwrap();
    let full = ack(&backend, "3EB01", None, noon()).await;
    assert!(matches!(full, Err(StoreError::OutboxFull { .. })));
    assert_eq!(backend.journal_find("3EB01").await.unwrap().unwrap().state, JournalState::Open);
    f.run.store.delete_through(&f.session, 1, 1).await.unwrap();
    assert!(matches!(ack(&backend, "3EB01", None, noon()).await.unwrap(), JournalAck::Recorded { .. }));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn nothing_is_opened_whose_word_might_find_no_room(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, StoreOptions { outbox_max_rows: 100, ..options() }).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1]), Resend).await.unwrap();
    let receipt = OutboxEvent::Receipt {
        chat: Party { id: CHAT.into(), pn: None, lid: None },
        wa_ids: vec!["3EB00".into()],
        receipt: ReceiptKind::Delivered,
        at: noon(),
    };
    let full = |done: Result<_, StoreError>| matches!(done, Err(StoreError::OutboxFull { .. }));
    assert!(full(backend.commit_events(&vec![receipt.clone(); 99]).await.map(drop)), "a fiftieth is reserved");
    backend.commit_events(&vec![receipt.clone(); 95]).await.unwrap();
    backend.journal_open(&f.items([2]), Resend).await.unwrap();
    backend.commit_events(std::slice::from_ref(&receipt)).await.unwrap();
    assert!(full(backend.journal_open(&f.items([3]), Resend).await.map(drop)), "what comes meanwhile still fits");
    backend.commit_events(&vec![receipt.clone(); 2]).await.unwrap();
    assert!(full(backend.journal_ack(&[], std::slice::from_ref(&receipt)).await.map(drop)));
    for wa_id in ["3EB00", "3EB01"] {
        assert!(matches!(ack(&backend, wa_id, None, noon()).await.unwrap(), JournalAck::Recorded { .. }));
    }
    f.run.store.delete_through(&f.session, 1, 50).await.unwrap();
    let opened = backend.journal_open(&f.items([3]), Resend).await.unwrap();
    assert_eq!(opened, [JournalOpened::Opened { tries: 1 }]);
    assert!(!backend.is_poisoned());
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_session_that_is_linked_anew_remembers_what_it_sent(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, options()).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1]), Resend).await.unwrap();
    ack(&backend, "3EB00", None, noon()).await.unwrap();
    backend.erase_state().await.unwrap();
    let opened = backend.journal_open(&f.items([0, 1]), Hold).await.unwrap();
    assert_eq!(opened, [JournalOpened::AlreadyAcked { at: noon() }, JournalOpened::Held { tries: 1 }]);
    backend.erase_session().await.unwrap();
    assert_eq!(backend.journal_find("3EB00").await.unwrap(), None);
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn pruning_takes_old_settled_rows_only(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let f = Fixture::new(&database, options()).await;
    let backend = f.backend(1).await;
    backend.journal_open(&f.items([0, 1, 2]), Resend).await.unwrap();
    ack(&backend, "3EB00", None, noon()).await.unwrap();
    ack(&backend, "3EB01", None, noon() + Duration::days(8)).await.unwrap();
    assert_eq!(f.run.store.journal_prune(noon() + Duration::days(7)).await.unwrap(), 1);
    assert_eq!(backend.journal_find("3EB00").await.unwrap(), None);
    assert!(backend.journal_find("3EB01").await.unwrap().is_some());
    assert!(backend.journal_find("3EB02").await.unwrap().is_some(), "a try that was opened since is kept");
    assert_eq!(f.run.store.journal_prune(noon() + Duration::days(36_500)).await.unwrap(), 2);
    assert_eq!(backend.journal_find("3EB02").await.unwrap(), None, "no message is tried for that long");

    let too_many: Vec<_> = std::iter::repeat_n(f.items([0]).remove(0), 65).collect();
    assert!(matches!(backend.journal_open(&too_many, Resend).await, Err(StoreError::BatchTooLarge { .. })));
    assert!(!backend.is_poisoned());
}
