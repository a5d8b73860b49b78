//! What can be done to a store, and doing it.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};
use wacore::{
    appstate::{hash::HashState, processor::AppStateMutationMAC},
    store::{
        Device,
        error::Result,
        traits::{
            AppStateSyncKey, Backend, DeviceInfo, DeviceListRecord, LidPnMappingEntry, MsgSecretEntry,
            PendingInboundKey, PendingInboundRow, TcTokenEntry,
        },
    },
};

/// What can be done to a store. Numbers choose from small sets of names, so that steps meet.
#[derive(Debug, Clone)]
pub(super) enum Step {
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

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
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
pub(super) fn address(n: u8) -> String {
    let user = 15_550_000_000_u64 + u64::from(n / 2);
    if n.is_multiple_of(2) { format!("{user}@s.whatsapp.net") } else { format!("{user}:{n}@s.whatsapp.net") }
}

pub(super) fn group(n: u8) -> String {
    format!("12036302{n}@g.us")
}

pub(super) fn collection(n: u8) -> &'static str {
    ["critical_block", "regular"][usize::from(n % 2)]
}

pub(super) fn index_mac(n: u8) -> [u8; 32] {
    [n; 32]
}

/// A LID has one phone number for ever; two LIDs may share one.
pub(super) fn lid_mapping(n: u8, now: i64) -> LidPnMappingEntry {
    LidPnMappingEntry {
        lid: format!("9900{n}"),
        phone_number: format!("1555{}", n / 2),
        created_at: i64::from(n),
        updated_at: now,
        learning_source: "usync".into(),
    }
}

pub(super) fn token(n: u8) -> Vec<u8> {
    vec![7; usize::from(n)]
}

/// Chat, sender and id of an inbound message: two differ in each part only.
pub(super) fn inbound(n: u8) -> (String, String, String) {
    (group(n % 2), address(n / 2 % 2), format!("3EB0{}", n / 4))
}

pub(super) fn saved_device(n: u8) -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(Device::new);
    Device {
        push_name: format!("saved {n}"),
        pn: address(0).parse().ok(),
        edge_routing_info: Some(vec![n]),
        ..DEVICE.clone()
    }
}

/// Does one step. `now` rises with each.
pub(super) async fn take(store: &dyn Backend, step: &Step, now: i64) -> Result<Value> {
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
