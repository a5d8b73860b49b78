//! The library's in-memory store is the measure: whatever is done to both, both answer the same.
//!
//! One difference is on purpose, and kept out of the sequences: when a LID moves to another phone number, the in-memory
//! store forgets which other LID the old number had; ours still knows (tested by itself below).

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use rstest::rstest;
use serde_json::{Value, json};
use shared::{ids::SessionId, seal::DataKey};
use wacore::{
    appstate::{hash::HashState, processor::AppStateMutationMAC},
    store::{
        Device,
        error::Result,
        in_memory::InMemoryBackend,
        traits::{
            AppStateSyncKey, Backend, DeviceInfo, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry,
            PendingInboundKey, PendingInboundRow, TcTokenEntry,
        },
    },
};

use crate::harness::{On, Run, TestDatabase, look};

/// What can be done to a store. Numbers choose from small sets of names, so that steps meet.
#[derive(Debug, Clone)]
enum Step {
    PutIdentity(u8, u8),
    PutIdentities(Vec<(u8, u8)>),
    DeleteIdentity(u8),
    PutSession(u8, Vec<u8>),
    PutSessions(Vec<(u8, Vec<u8>)>),
    DeleteSession(u8),
    StorePrekeys(Vec<(u8, u8)>, bool),
    MarkPrekeys(Vec<u8>),
    RemovePrekey(u8),
    StoreSignedPrekey(u8, u8),
    RemoveSignedPrekey(u8),
    PutSenderKeys(Vec<(u8, u8)>),
    DeleteSenderKey(u8),
    SetSyncKey(u8, u8),
    SetVersion(u8, u8),
    PutMacs(u8, Vec<(u8, u8)>),
    DeleteMacs(u8, Vec<u8>),
    ClearMacs(u8),
    SetSenderKeyStatus(u8, Vec<(u8, bool)>),
    ClearSenderKeyDevices(u8),
    DeleteSenderKeyDevices(Vec<u8>),
    ClearAllSenderKeyDevices,
    PutLids(Vec<u8>),
    SaveBaseKey(u8, u8),
    DeleteBaseKey(u8),
    UpdateDeviceLists(Vec<(u8, u8)>),
    DeleteDevices(u8),
    PutGroup(u8, u8),
    DeleteGroup(u8),
    PutToken(u8, u8, i64, Option<i64>),
    DeleteToken(u8),
    ExpireTokens(i64, i64),
    TouchToken(u8, i64),
    ReceiveToken(u8, u8, i64),
    StoreSent(u8, u8, u8),
    TakeSent(u8, u8),
    ExpireSent(bool),
    StorePending(Vec<(u8, u8)>),
    DeletePending(Vec<u8>),
    ExpirePending(bool),
    PutSecrets(Vec<(u8, u8, i64, i64)>),
    ExpireSecrets(i64),
    CreateDevice,
    SaveDevice(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::*;
    let n = || 0_u8..6;
    let b = any::<u8>;
    let time = || select(vec![0_i64, 1, 2, 5, 9]);
    let pairs = || prop::collection::vec((n(), b()), 0..6);
    let step = prop_oneof![
        (n(), b()).prop_map(|(a, k)| PutIdentity(a, k)),
        pairs().prop_map(PutIdentities),
        n().prop_map(DeleteIdentity),
        (n(), prop::collection::vec(b(), 0..40)).prop_map(|(a, r)| PutSession(a, r)),
        prop::collection::vec((n(), prop::collection::vec(b(), 0..40)), 0..6).prop_map(PutSessions),
        n().prop_map(DeleteSession),
        (prop::collection::vec((0_u8..20, b()), 0..8), any::<bool>()).prop_map(|(k, up)| StorePrekeys(k, up)),
        prop::collection::vec(0_u8..20, 0..8).prop_map(MarkPrekeys),
        (0_u8..20).prop_map(RemovePrekey),
        (n(), b()).prop_map(|(a, k)| StoreSignedPrekey(a, k)),
        n().prop_map(RemoveSignedPrekey),
        pairs().prop_map(PutSenderKeys),
        n().prop_map(DeleteSenderKey),
        (n(), b()).prop_map(|(a, k)| SetSyncKey(a, k)),
        (n(), b()).prop_map(|(a, k)| SetVersion(a, k)),
        (n(), pairs()).prop_map(|(a, m)| PutMacs(a, m)),
        (n(), prop::collection::vec(n(), 0..4)).prop_map(|(a, m)| DeleteMacs(a, m)),
        n().prop_map(ClearMacs),
        (n(), prop::collection::vec((n(), any::<bool>()), 0..6)).prop_map(|(a, d)| SetSenderKeyStatus(a, d)),
        n().prop_map(ClearSenderKeyDevices),
        prop::collection::vec(n(), 0..4).prop_map(DeleteSenderKeyDevices),
        Just(ClearAllSenderKeyDevices),
        prop::collection::vec(n(), 0..4).prop_map(PutLids),
        (n(), b()).prop_map(|(a, k)| SaveBaseKey(a, k)),
        n().prop_map(DeleteBaseKey),
        pairs().prop_map(UpdateDeviceLists),
        n().prop_map(DeleteDevices),
        (n(), b()).prop_map(|(a, k)| PutGroup(a, k)),
        n().prop_map(DeleteGroup),
        (n(), 0_u8..3, time(), prop::option::of(time())).prop_map(|(a, k, t, s)| PutToken(a, k, t, s)),
        n().prop_map(DeleteToken),
        (time(), time()).prop_map(|(t, s)| ExpireTokens(t, s)),
        (n(), time()).prop_map(|(a, t)| TouchToken(a, t)),
        (n(), 0_u8..3, time()).prop_map(|(a, k, t)| ReceiveToken(a, k, t)),
        (n(), n(), b()).prop_map(|(a, m, p)| StoreSent(a, m, p)),
        (n(), n()).prop_map(|(a, m)| TakeSent(a, m)),
        any::<bool>().prop_map(ExpireSent),
        pairs().prop_map(StorePending),
        prop::collection::vec(n(), 0..4).prop_map(DeletePending),
        any::<bool>().prop_map(ExpirePending),
        prop::collection::vec((n(), b(), time(), time()), 0..5).prop_map(PutSecrets),
        time().prop_map(ExpireSecrets),
        Just(CreateDevice),
        b().prop_map(SaveDevice),
    ];
    prop::collection::vec(step, 20..60)
}

/// Addresses of three users, some with a device.
fn address(n: u8) -> String {
    let user = 15_550_000_000_u64 + u64::from(n / 2);
    if n.is_multiple_of(2) { format!("{user}@s.whatsapp.net") } else { format!("{user}:{n}@s.whatsapp.net") }
}

fn group(n: u8) -> String {
    format!("12036302{n}@g.us")
}

fn collection(n: u8) -> &'static str {
    ["critical_block", "regular"][usize::from(n % 2)]
}

fn index_mac(n: u8) -> [u8; 32] {
    [n; 32]
}

/// A LID has one phone number for ever; two LIDs may share one.
fn lid_mapping(n: u8, now: i64) -> LidPnMappingEntry {
    LidPnMappingEntry {
        lid: format!("9900{n}"),
        phone_number: format!("1555{}", n / 2),
        created_at: i64::from(n),
        updated_at: now,
        learning_source: "usync".into(),
    }
}

fn token(n: u8) -> Vec<u8> {
    vec![7; usize::from(n)]
}

/// Chat, sender and id of an inbound message: two differ in each part only.
fn inbound(n: u8) -> (String, String, String) {
    (group(n % 2), address(n / 2 % 2), format!("3EB0{}", n / 4))
}

fn saved_device(n: u8) -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(Device::new);
    Device {
        push_name: format!("saved {n}"),
        pn: address(0).parse().ok(),
        edge_routing_info: Some(vec![n]),
        ..DEVICE.clone()
    }
}

/// Does one step. `now` rises with each.
async fn take(store: &dyn Backend, step: &Step, now: i64) -> Result<Value> {
    use Step::*;
    let mut answer = Value::Null;
    match step {
        PutIdentity(a, k) => store.put_identity(&address(*a), [*k; 32]).await?,
        PutIdentities(all) => {
            let all: Vec<_> = all.iter().map(|(a, k)| (Arc::from(address(*a)), [*k; 32])).collect();
            store.put_identities_batch(&all).await?;
        }
        DeleteIdentity(a) => store.delete_identity(&address(*a)).await?,
        PutSession(a, record) => store.put_session(&address(*a), record).await?,
        PutSessions(all) => {
            let all: Vec<_> =
                all.iter().map(|(a, record)| (Arc::from(address(*a)), Bytes::copy_from_slice(record))).collect();
            store.put_sessions_batch(&all).await?;
        }
        DeleteSession(a) => store.delete_session(&address(*a)).await?,
        StorePrekeys(keys, uploaded) => match keys.as_slice() {
            [(id, k)] => store.store_prekey(u32::from(*id), &[*k; 40], *uploaded).await?,
            keys => {
                let keys: Vec<_> = keys.iter().map(|(id, k)| (u32::from(*id), Bytes::from(vec![*k; 40]))).collect();
                store.store_prekeys_batch(&keys, *uploaded).await?;
            }
        },
        MarkPrekeys(ids) => {
            store.mark_prekeys_uploaded(&ids.iter().map(|id| u32::from(*id)).collect::<Vec<_>>()).await?;
        }
        RemovePrekey(id) => store.remove_prekey(u32::from(*id)).await?,
        StoreSignedPrekey(id, k) => store.store_signed_prekey(u32::from(*id), &[*k; 40]).await?,
        RemoveSignedPrekey(id) => store.remove_signed_prekey(u32::from(*id)).await?,
        PutSenderKeys(keys) => match keys.as_slice() {
            [(a, k)] => store.put_sender_key(&address(*a), &[*k; 8]).await?,
            keys => {
                let keys: Vec<_> =
                    keys.iter().map(|(a, k)| (Arc::from(address(*a)), Bytes::from(vec![*k; 8]))).collect();
                store.put_sender_keys_batch(&keys).await?;
            }
        },
        DeleteSenderKey(a) => store.delete_sender_key(&address(*a)).await?,
        SetSyncKey(id, k) => {
            let key = AppStateSyncKey { key_data: vec![*k; 32], fingerprint: vec![1], timestamp: i64::from(*k) };
            store.set_sync_key(&[*id; 4], key).await?;
        }
        SetVersion(name, v) => {
            let state = HashState { version: u64::from(*v), hash: [*v; 128], ..HashState::default() };
            store.set_version(collection(*name), state).await?;
        }
        PutMacs(name, macs) => {
            let macs: Vec<_> = macs
                .iter()
                .map(|(i, v)| AppStateMutationMAC { index_mac: index_mac(*i).to_vec(), value_mac: vec![*v; 32] })
                .collect();
            store.put_mutation_macs(collection(*name), 1, &macs).await?;
        }
        DeleteMacs(name, indexes) => {
            let indexes: Vec<_> = indexes.iter().map(|i| index_mac(*i).to_vec()).collect();
            store.delete_mutation_macs(collection(*name), &indexes).await?;
        }
        ClearMacs(name) => store.clear_mutation_macs(collection(*name)).await?,
        SetSenderKeyStatus(g, devices) => {
            let devices: Vec<_> = devices.iter().map(|(a, has)| (address(*a), *has)).collect();
            let devices: Vec<_> = devices.iter().map(|(a, has)| (a.as_str(), *has)).collect();
            store.set_sender_key_status(&group(*g), &devices).await?;
        }
        ClearSenderKeyDevices(g) => store.clear_sender_key_devices(&group(*g)).await?,
        DeleteSenderKeyDevices(devices) => {
            let devices: Vec<_> = devices.iter().map(|a| address(*a)).collect();
            let devices: Vec<_> = devices.iter().map(String::as_str).collect();
            store.delete_sender_key_device_rows(&devices).await?;
        }
        ClearAllSenderKeyDevices => store.clear_all_sender_key_devices().await?,
        PutLids(lids) => match lids.as_slice() {
            [lid] => store.put_lid_mapping(&lid_mapping(*lid, now)).await?,
            lids => {
                // Later ones of a batch are newer.
                let entries: Vec<_> = (0_i64..).zip(lids).map(|(i, lid)| lid_mapping(*lid, now + i)).collect();
                store.put_lid_mappings(&entries).await?;
            }
        },
        SaveBaseKey(a, k) => store.save_base_key(&address(*a), "3EB0", &[*k; 32]).await?,
        DeleteBaseKey(a) => store.delete_base_key(&address(*a), "3EB0").await?,
        UpdateDeviceLists(lists) => {
            let mut lists: Vec<_> = lists
                .iter()
                .map(|(user, d)| DeviceListRecord {
                    user: user.to_string(),
                    devices: vec![DeviceInfo::new(u32::from(*d), Some(1))],
                    timestamp: i64::from(*d),
                    phash: Some(d.to_string()),
                    raw_id: Some(u32::from(*d)),
                })
                .collect();
            if lists.len() == 1 {
                store.update_device_list(lists.remove(0)).await?;
            } else {
                store.update_device_lists(lists).await?;
            }
        }
        DeleteDevices(user) => store.delete_devices(&user.to_string()).await?,
        PutGroup(g, v) => store.put_group_metadata(&group(*g), &[*v; 16]).await?,
        DeleteGroup(g) => store.delete_group_metadata(&group(*g)).await?,
        PutToken(a, k, token_timestamp, sender_timestamp) => {
            let entry = TcTokenEntry {
                token: token(*k),
                token_timestamp: *token_timestamp,
                sender_timestamp: *sender_timestamp,
            };
            store.put_tc_token(&address(*a), &entry).await?;
        }
        DeleteToken(a) => store.delete_tc_token(&address(*a)).await?,
        ExpireTokens(t, s) => answer = json!(store.delete_expired_tc_tokens(*t, *s).await?),
        TouchToken(a, t) => store.touch_tc_token_sender_timestamp(&address(*a), *t).await?,
        ReceiveToken(a, k, t) => store.store_received_tc_token(&address(*a), &token(*k), *t).await?,
        StoreSent(a, m, p) => store.store_sent_message(&address(*a), &m.to_string(), &[*p; 20]).await?,
        TakeSent(a, m) => answer = json!(store.take_sent_message(&address(*a), &m.to_string()).await?),
        ExpireSent(all) => answer = json!(store.delete_expired_sent_messages(if *all { i64::MAX } else { 0 }).await?),
        StorePending(all) => {
            let all: Vec<_> = all.iter().map(|(n, v)| (inbound(*n), [*v; 30])).collect();
            let rows: Vec<_> = all
                .iter()
                .map(|((chat, sender, id), message)| PendingInboundRow { chat, sender, id, message })
                .collect();
            match rows.as_slice() {
                [row] => store.store_pending_inbound(row.chat, row.sender, row.id, row.message).await?,
                rows => store.store_pending_inbound_batch(rows).await?,
            }
        }
        DeletePending(all) => {
            let all: Vec<_> = all.iter().map(|n| inbound(*n)).collect();
            let keys: Vec<_> = all.iter().map(|(chat, sender, id)| PendingInboundKey { chat, sender, id }).collect();
            match keys.as_slice() {
                [key] => store.delete_pending_inbound(key.chat, key.sender, key.id).await?,
                keys => store.delete_pending_inbound_batch(keys).await?,
            }
        }
        ExpirePending(all) => {
            answer = json!(store.delete_expired_pending_inbound(if *all { i64::MAX } else { 0 }).await?);
        }
        PutSecrets(secrets) => {
            let entries = secrets
                .iter()
                .map(|(n, k, expires_at, message_ts)| {
                    let (chat, sender, id) = inbound(*n);
                    MsgSecretEntry {
                        chat: chat.into(),
                        sender: sender.into(),
                        msg_id: id.into(),
                        secret: [*k; 32],
                        expires_at: *expires_at,
                        message_ts: *message_ts,
                    }
                })
                .collect();
            answer = json!(store.put_msg_secrets(entries).await?);
        }
        ExpireSecrets(t) => answer = json!(store.delete_expired_msg_secrets(*t).await?),
        CreateDevice => {
            store.create().await?;
        }
        SaveDevice(n) => store.save(&saved_device(*n)).await?,
    }
    Ok(answer)
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort();
    all
}

/// Asks everything that can be asked.
async fn observe(store: &dyn Backend) -> Result<BTreeMap<String, Value>> {
    let mut seen = BTreeMap::new();
    for n in 0..6_u8 {
        let mut see = |what: &str, value: Value| seen.insert(format!("{what} {n}"), value);
        let a = address(n);
        see("identity", json!(store.load_identity(&a).await?));
        see("session", json!(store.get_session(&a).await?.map(|record| record.to_vec())));
        see("has session", json!(store.has_session(&a).await?));
        see(
            "has state",
            json!(store.has_signal_state_for_user(&format!("{}", 15_550_000_000_u64 + u64::from(n))).await?),
        );
        see("signed prekey", json!(store.load_signed_prekey(u32::from(n)).await?));
        see("sender key", json!(store.get_sender_key(&a).await?));
        see("sync key", json!(store.get_sync_key(&[n; 4]).await?));
        see("version", json!(store.get_version(collection(n)).await?));
        see("mac", json!(store.get_mutation_mac(collection(0), &index_mac(n)).await?));
        see("devices", json!(sorted(store.get_sender_key_devices(&group(n)).await?)));
        see("lid", json!(store.get_lid_mapping(&format!("9900{n}")).await?));
        see("phone", json!(store.get_pn_mapping(&format!("1555{n}")).await?));
        see("base key", json!(store.has_same_base_key(&a, "3EB0", &[n; 32]).await?));
        see("device list", json!(store.get_devices(&n.to_string()).await?));
        see("group", json!(store.get_group_metadata(&group(n)).await?));
        see("token", json!(store.get_tc_token(&a).await?));
        let (chat, sender, id) = inbound(n);
        see("pending", json!(store.get_pending_inbound(&chat, &sender, &id).await?));
        see("secret", json!(store.get_msg_secret(&chat, &sender, &id).await?));
        see("secret with time", json!(store.get_msg_secret_with_ts(&chat, &sender, &id).await?));
    }
    let mut see = |what: &str, value: Value| seen.insert(what.to_owned(), value);
    let ids: Vec<u32> = (0..20).collect();
    let prekeys = store.load_prekeys_batch(&ids).await?;
    see("prekeys", json!(sorted(prekeys.into_iter().map(|(id, record)| (id, record.to_vec())).collect())));
    see("prekey", json!(store.load_prekey(3).await?.map(|record| record.to_vec())));
    see("newest prekey", json!(store.get_max_prekey_id().await?));
    see("signed prekeys", json!(sorted(store.load_all_signed_prekeys().await?)));
    see("newest sync key", json!(store.get_latest_sync_key_id().await?));
    let macs = store.get_mutation_macs(collection(1), &[index_mac(0), index_mac(1), index_mac(2)]).await?;
    see("macs", json!(sorted(macs.into_iter().collect())));
    let lids = store.get_all_lid_mappings().await?;
    see("lids", json!(lids.into_iter().map(|entry| (entry.lid.clone(), entry)).collect::<BTreeMap<_, _>>()));
    see("token jids", json!(sorted(store.get_all_tc_token_jids().await?)));
    see("device exists", json!(store.exists().await?));
    let device = store.load().await?;
    // A created device is random; a saved one is as it was saved.
    see(
        "device",
        match device {
            Some(device) if device.push_name.starts_with("saved") => json!(device),
            Some(_) => json!("created"),
            None => Value::Null,
        },
    );
    Ok(seen)
}

async fn replayed(steps: &[Step]) -> InMemoryBackend {
    let memory = InMemoryBackend::new();
    for (now, step) in clock().zip(steps) {
        take(&memory, step, now).await.unwrap();
    }
    memory
}

fn clock() -> impl Iterator<Item = i64> {
    (1_000..).step_by(10)
}

fn sequences(cases: u32, test: impl AsyncFn(Vec<Step>, u64)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let run = runner.run(&(steps(), any::<u64>()), |(steps, seed)| {
        let checked = std::panic::AssertUnwindSafe(|| runtime.block_on(test(steps, seed)));
        std::panic::catch_unwind(checked).map_err(|_| TestCaseError::fail("see the panic above"))
    });
    run.unwrap();
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
fn whatever_is_done_to_it_it_answers_as_the_in_memory_store(#[case] on: On) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::new(on)) else { return };
    sequences(16, async |steps, _| {
        let run = Run::start(&database, &SessionId::new().to_string()).await;
        let ours = run.open(&SessionId::new(), 1, &DataKey::generate()).await;
        let memory = InMemoryBackend::new();
        for (now, step) in clock().zip(&steps) {
            let (expected, got) = (take(&memory, step, now).await.unwrap(), take(&*ours, step, now).await.unwrap());
            assert_eq!(got, expected, "{step:?}");
        }
        assert_eq!(observe(&*ours).await.unwrap(), observe(&memory).await.unwrap());
        run.store.close().await.unwrap();
    });
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
fn what_returned_is_there_after_an_abort_and_what_did_not_is_there_whole_or_not_at_all(#[case] on: On) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(database) = runtime.block_on(TestDatabase::new(on)) else { return };
    sequences(10, async |steps, seed| {
        let (session, key) = (SessionId::new(), DataKey::generate());
        let last = usize::try_from(seed % steps.len() as u64).unwrap();
        let killed = {
            let run = Run::start(&database, &SessionId::new().to_string()).await;
            let ours = run.open(&session, 1, &key).await;
            for (now, step) in clock().zip(&steps[..last]) {
                take(&*ours, step, now).await.unwrap();
            }
            // The last one is given up somewhere in the middle.
            let (step, now) = (steps[last].clone(), 1_000 + 10 * i64::try_from(last).unwrap());
            let task = tokio::spawn(async move { take(&*ours, &step, now).await.unwrap() });
            tokio::time::sleep(std::time::Duration::from_micros(seed % 2_000)).await;
            task.abort();
            let killed = task.await.is_err();
            run.store.close().await.unwrap();
            killed
        };
        let run = Run::start(&database, &SessionId::new().to_string()).await;
        // The dead one never said goodbye.
        database.meddle("DELETE FROM worker_lease WHERE incarnation <> (SELECT incarnation FROM worker_lease ORDER BY renewed_at DESC LIMIT 1)").await;
        let reopened = run.open(&session, 2, &key).await;
        let found = observe(&*reopened).await.unwrap();
        let with = observe(&replayed(&steps[..=last]).await).await.unwrap();
        let without = observe(&replayed(&steps[..last]).await).await.unwrap();
        if killed {
            assert!(found == with || found == without, "{:?} left a part", steps[last]);
        } else {
            assert_eq!(found, with);
        }
        run.store.close().await.unwrap();
    });
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn a_number_keeps_its_other_lid_when_one_moves_away(#[case] on: On) {
    use wacore::store::traits::ProtocolStore;
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    let store = run.open(&SessionId::new(), 1, &DataKey::generate()).await;
    let mapping = |lid: &str, phone_number: &str, updated_at| LidPnMappingEntry {
        lid: lid.into(),
        phone_number: phone_number.into(),
        created_at: 1,
        updated_at,
        learning_source: String::new(),
    };
    let lid_of = async |phone: &str| store.get_pn_mapping(phone).await.unwrap().map(|entry| entry.lid);
    store.put_lid_mapping(&mapping("a", "1", 1)).await.unwrap();
    store.put_lid_mapping(&mapping("b", "1", 2)).await.unwrap();
    assert_eq!(lid_of("1").await.as_deref(), Some("b"), "the newer");
    store.put_lid_mapping(&mapping("b", "2", 3)).await.unwrap();
    assert_eq!(lid_of("1").await.as_deref(), Some("a"));
    assert_eq!(lid_of("2").await.as_deref(), Some("b"));
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test]
async fn eight_hundred_prekeys_go_in_and_come_out_and_a_consumed_one_stays_consumed(#[case] on: On) {
    use wacore::store::traits::SignalStore;
    let Some(database) = TestDatabase::new(on).await else { return };
    let run = Run::start(&database, "w").await;
    let store = run.open(&SessionId::new(), 1, &DataKey::generate()).await;
    let keys: Vec<_> = (1..=812_u32).map(|id| (id, Bytes::from(id.to_be_bytes().to_vec()))).collect();
    let ids: Vec<_> = (1..=812_u32).collect();
    store.store_prekeys_batch(&keys, false).await.unwrap();
    store.remove_prekey(500).await.unwrap();
    store.mark_prekeys_uploaded(&ids).await.unwrap();
    let found = store.load_prekeys_batch(&ids).await.unwrap();
    assert_eq!(found, keys.iter().filter(|(id, _)| *id != 500).cloned().collect::<Vec<_>>());
    assert_eq!(store.get_max_prekey_id().await.unwrap(), 812);
    let uploaded = look(&database, "SELECT COUNT(*) AS it FROM wa_state WHERE flag").await;
    assert_eq!(uploaded[0].try_get::<i64>("", "it").unwrap(), 811);
}
