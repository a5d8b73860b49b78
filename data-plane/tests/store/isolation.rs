//! Sessions that hear the same words keep them apart.

use rstest::rstest;
use shared::{
    ids::{MessageId, SessionId},
    seal::DataKey,
    wire::session::OnUnknown,
};
use wacore::store::traits::{DeviceStore, MsgSecretStore, ProtocolStore, SignalStore};

use data_plane::store::{JournalItem, JournalOpened};

use crate::harness::{On, Run, TestDatabase};

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn the_same_chat_sender_and_id_in_two_sessions_stay_separate(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    // Even under one key, which never happens, sessions would be apart.
    let key = DataKey::generate();
    let one = run.open(&SessionId::new(), 1, &key).await;
    let two = run.open(&SessionId::new(), 1, &key).await;
    let (chat, sender, id) = ("123@g.us", "15550001111@s.whatsapp.net", "3EB0AA");

    one.store_pending_inbound(chat, sender, id, b"one").await.unwrap();
    assert_eq!(two.get_pending_inbound(chat, sender, id).await.unwrap(), None);
    two.store_pending_inbound(chat, sender, id, b"two").await.unwrap();
    assert_eq!(one.get_pending_inbound(chat, sender, id).await.unwrap().as_deref(), Some(&b"one"[..]));
    two.delete_pending_inbound(chat, sender, id).await.unwrap();
    assert_eq!(one.get_pending_inbound(chat, sender, id).await.unwrap().as_deref(), Some(&b"one"[..]));

    one.put_msg_secret(chat, sender, id, &[1; 32]).await.unwrap();
    assert_eq!(two.get_msg_secret(chat, sender, id).await.unwrap(), None);
    one.store_sent_message(chat, id, b"sent").await.unwrap();
    assert_eq!(two.take_sent_message(chat, id).await.unwrap(), None);
    one.create().await.unwrap();
    assert!(!two.exists().await.unwrap());

    let message = MessageId::new();
    let item = [JournalItem { message_id: &message, wa_id: id, chat }];
    for session in [&one, &two] {
        let opened = session.journal_open(&item, OnUnknown::Hold).await.unwrap();
        assert_eq!(opened, [JournalOpened::Opened { tries: 1 }]);
    }

    one.put_session(sender, b"kept").await.unwrap();
    two.erase_session().await.unwrap();
    assert_eq!(one.get_session(sender).await.unwrap().as_deref(), Some(&b"kept"[..]));
    assert!(one.journal_find(id).await.unwrap().is_some());
    assert!(two.journal_find(id).await.unwrap().is_none());
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_row_copied_to_another_session_or_kind_does_not_open(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    let key = DataKey::generate();
    let (from, to) = (SessionId::new(), SessionId::new());
    let one = run.open(&from, 1, &key).await;
    one.put_sender_key("1@g.us::2@lid", b"theirs").await.unwrap();
    let two = run.open(&to, 1, &key).await;
    database.meddle(&format!("UPDATE wa_state SET session_id = '{to}' WHERE session_id = '{from}'")).await;
    two.get_sender_key("1@g.us::2@lid").await.unwrap_err();
}
