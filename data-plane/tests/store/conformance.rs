//! The library's in-memory store is the measure: whatever is done to both, both answer the same.
//!
//! One difference is on purpose, and kept out of the sequences: when a LID moves to another phone number, the in-memory
//! store forgets which other LID the old number had; ours still knows (tested by itself below).

mod steps;

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rstest::rstest;
use serde_json::{Value, json};
use shared::{ids::SessionId, seal::DataKey};
use wacore::store::{
    error::Result,
    in_memory::InMemoryBackend,
    traits::{Backend, LidPnMappingEntry},
};

use self::steps::{Step, address, collection, group, inbound, index_mac, steps, take};
use crate::harness::{On, Run, TestDatabase, look};

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
