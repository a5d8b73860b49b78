//! What lies in the database says nothing about anybody.

use std::sync::Arc;

use bytes::Bytes;
use chrono::Utc;
use data_plane::store::{FencedBackend, JournalItem};
use rstest::rstest;
use sea_orm::ConnectionTrait;
use shared::{
    ids::{MessageId, SessionId},
    seal::DataKey,
    wire::{
        outbox::{InboundBody, InboundMessage, OutboxEvent, Party},
        send::Content,
        session::OnUnknown,
    },
};
use wacore::store::{
    Device,
    traits::{
        AppStateSyncKey, AppSyncStore, DeviceInfo, DeviceListRecord, DeviceStore, LidPnMappingEntry, MsgSecretStore,
        ProtocolStore, SignalStore, TcTokenEntry,
    },
};

use crate::harness::{On, Run, TestDatabase, files, look};

const DIGITS: &str = "15559871234";
const LID: &str = "88001122334455";
const TEXT: &str = "planted words of a message";
const KEY: [u8; 32] = *b"planted-key-planted-key-planted!";

/// Writes sentinels through every writing method.
async fn plant(backend: &FencedBackend) {
    let jid = format!("{DIGITS}@s.whatsapp.net");
    let lid = format!("{LID}@lid");
    let (jid, lid) = (jid.as_str(), lid.as_str());
    backend.put_identity(jid, KEY).await.unwrap();
    backend.put_sessions_batch(&[(Arc::from(jid), Bytes::from_static(&KEY))]).await.unwrap();
    backend.store_prekey(7, &KEY, false).await.unwrap();
    backend.store_signed_prekey(7, &KEY).await.unwrap();
    backend.put_sender_key(jid, &KEY).await.unwrap();
    let sync_key = AppStateSyncKey { key_data: KEY.to_vec(), fingerprint: KEY.to_vec(), timestamp: 1 };
    backend.set_sync_key(&KEY, sync_key).await.unwrap();
    backend.set_sender_key_status(jid, &[(lid, true)]).await.unwrap();
    let mapping = LidPnMappingEntry {
        lid: LID.into(),
        phone_number: DIGITS.into(),
        created_at: 1,
        updated_at: 1,
        learning_source: "usync".into(),
    };
    backend.put_lid_mapping(&mapping).await.unwrap();
    backend.save_base_key(jid, "A", &KEY).await.unwrap();
    let devices = vec![DeviceInfo::new(0, None)];
    let list = DeviceListRecord { user: DIGITS.into(), devices, timestamp: 1, phash: None, raw_id: None };
    backend.update_device_list(list).await.unwrap();
    backend.put_group_metadata(jid, TEXT.as_bytes()).await.unwrap();
    let token = TcTokenEntry { token: KEY.to_vec(), token_timestamp: 1, sender_timestamp: None };
    backend.put_tc_token(lid, &token).await.unwrap();
    backend.store_sent_message(jid, "A", TEXT.as_bytes()).await.unwrap();
    backend.store_pending_inbound(jid, lid, "A", TEXT.as_bytes()).await.unwrap();
    backend.put_msg_secret(jid, lid, "A", &KEY).await.unwrap();
    let device = Device { push_name: TEXT.into(), adv_secret_key: KEY, pn: jid.parse().ok(), ..Device::new() };
    backend.save(&device).await.unwrap();
    let party = Party { id: lid.into(), pn: Some(jid.into()), lid: Some(lid.into()) };
    let message = InboundMessage {
        wa_id: "A".into(),
        chat: party.clone(),
        sender: party,
        from_me: false,
        push_name: Some(TEXT.into()),
        sent_at: Utc::now(),
        body: InboundBody::Content { content: Content::Text { body: TEXT.into() } },
    };
    backend.commit_events(&[OutboxEvent::Message(message)]).await.unwrap();
    let message_id = MessageId::new();
    let item = JournalItem { message_id: &message_id, wa_id: "A", chat: jid };
    backend.journal_open(&[item], OnUnknown::Hold).await.unwrap();
}

/// Each sentinel as it would look in the clear: as bytes, in hexadecimal, in JSON's arrays of numbers.
fn sentinels() -> Vec<Vec<u8>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes();
    let json = serde_json::to_vec(&KEY[..8]).unwrap();
    let mut all = vec![json[1..json.len() - 1].to_vec()];
    for plain in [DIGITS.as_bytes(), LID.as_bytes(), TEXT.as_bytes(), &KEY] {
        all.push(plain.to_vec());
        all.push(hex(plain));
    }
    all
}

fn finds(dump: &[u8]) -> bool {
    sentinels().iter().any(|sentinel| dump.windows(sentinel.len()).any(|window| window == sentinel.as_slice()))
}

/// Everything there is: SQLite's files with the log, PostgreSQL's tables as text with bytes in hexadecimal.
async fn dump(database: &TestDatabase) -> Vec<u8> {
    if database.on == On::Sqlite {
        let outside = database.outside().await;
        outside.execute_unprepared("PRAGMA wal_checkpoint(PASSIVE)").await.unwrap();
        return files(database);
    }
    let mut text = Vec::new();
    let tables = "SELECT tablename AS it FROM pg_tables WHERE schemaname = 'public'";
    for table in look(database, tables).await {
        let table: String = table.try_get("", "it").unwrap();
        for row in look(database, &format!("SELECT CAST(t AS TEXT) AS it FROM \"{table}\" t")).await {
            text.extend(row.try_get::<String>("", "it").unwrap().into_bytes());
            text.push(b'\n');
        }
    }
    text
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn no_jid_key_or_text_stands_in_the_database_in_the_clear(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let (session, key) = (SessionId::new(), DataKey::generate());
    let run = Run::start(&database, "w").await;
    let backend = run.open(&session, 1, &key).await;
    plant(&backend).await;

    let everything = dump(&database).await;
    assert!(everything.windows(session.as_str().len()).any(|window| window == session.as_str().as_bytes()));
    assert!(!finds(&everything));

    for planted in [DIGITS, TEXT] {
        database.meddle(&format!("INSERT INTO store_meta (name, value) VALUES ('{planted}', 'x')")).await;
        assert!(finds(&dump(&database).await), "the search finds what is there");
        database.meddle(&format!("DELETE FROM store_meta WHERE name = '{planted}'")).await;
    }
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn two_sessions_that_know_one_person_share_no_value(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    for _ in 0..2 {
        let backend = run.open(&SessionId::new(), 1, &DataKey::generate()).await;
        plant(&backend).await;
    }
    for column in ["key", "group_hash", "member_hash", "sealed"] {
        let shared = format!(
            "SELECT 1 AS it FROM wa_state a JOIN wa_state b ON a.{column} = b.{column} AND a.session_id < b.session_id"
        );
        assert!(look(&database, &shared).await.is_empty(), "{column}");
    }
}
