//! `kill -9` at any point: what a call returned for is there afterwards.
//!
//! The test starts itself as another process, which writes and says after each step that it is done; the parent kills
//! it in mid-flight, claims the session and looks.

use std::{process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::Utc;
use data_plane::store::{Claim, StoreOptions};
use rand::{Rng, RngExt, SeedableRng};
use rstest::rstest;
use shared::{
    ids::SessionId,
    seal::DataKey,
    wire::outbox::{OutboxEvent, Party, ReceiptKind},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};
use wacore::store::traits::{ProtocolStore, SignalStore};

use crate::harness::{On, PATIENCE, Run, TestDatabase, options, until};

/// The child writes this many rows to the outbox in each step.
const ROWS: usize = 3;

/// No lease ends by itself while a test runs.
fn long() -> StoreOptions {
    StoreOptions { lease_ttl: Duration::from_secs(3_600), ..options() }
}

fn address(step: u64) -> String {
    format!("1555{step:07}@s.whatsapp.net")
}

/// Not a test by itself: the process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests below, as another process"]
async fn child() {
    let given = |name: &str| std::env::var(name).unwrap();
    let session: SessionId = given("KILL_SESSION").parse().unwrap();
    let key = DataKey::from_base64(&given("KILL_KEY")).unwrap();
    let store = data_plane::store::Store::open_with(&given("KILL_URL"), long()).await.unwrap();
    let lease = data_plane::store::Lease::acquire(&store, "child".parse().unwrap(), shared::ids::Incarnation::new());
    let run = Run { store: store.clone(), lease: lease.await.unwrap() };
    let generation = given("KILL_GENERATION").parse().unwrap();
    let backend = run.open(&session, generation, &key).await;
    let renewing = run.lease.clone();
    tokio::spawn(async move {
        while renewing.renew().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let chat = Party { id: "1@lid".into(), pn: None, lid: None };
    let at = Utc::now();
    for step in 1_u64.. {
        let sessions = [(Arc::from(address(step)), Bytes::from(step.to_be_bytes().to_vec()))];
        backend.put_sessions_batch(&sessions).await.unwrap();
        println!("session {step}");
        backend.store_pending_inbound("1@lid", "1@lid", &step.to_string(), &step.to_be_bytes()).await.unwrap();
        println!("pending {step}");
        let receipt =
            OutboxEvent::Receipt { chat: chat.clone(), wa_ids: vec![step.to_string()], receipt: ReceiptKind::Read, at };
        backend.commit_events(&vec![receipt; ROWS]).await.unwrap();
        println!("rows {step}");
    }
}

#[rstest]
#[case::sqlite(On::Sqlite)]
#[case::postgres(On::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_call_returned_for_survives_kill_9(#[case] on: On) {
    let Some(database) = TestDatabase::new(on).await else { return };
    let key = DataKey::generate();
    let mut rng = rand::rngs::StdRng::seed_from_u64(20_260_301);
    let parent = Run::start_with(&database, "parent", long()).await;
    for _ in 0..6 {
        let session = SessionId::new();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("KILL_URL", &database.url)
            .env("KILL_SESSION", session.as_str())
            .env("KILL_KEY", key.to_base64())
            .env("KILL_GENERATION", "1")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut done: [u64; 3] = [0; 3];
        let note = |done: &mut [u64; 3], line: &str| {
            let Some((name, step)) = line.split_once(' ') else { return };
            let which = ["session", "pending", "rows"].iter().position(|known| *known == name);
            if let (Some(which), Ok(step)) = (which, step.parse()) {
                done[which] = step;
            }
        };
        let steps = rng.random_range(5..60);
        while done[2] < steps {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
            note(&mut done, &line.expect("the child lives"));
        }
        // Anywhere within the next step.
        tokio::time::sleep(Duration::from_micros(u64::from(rng.next_u32() % 3_000))).await;
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            note(&mut done, &line);
        }

        // What it wrote last may be committed only now. Time passes, and its lease has ended.
        let fence = until("the dead child's lease ends", || async {
            database.meddle("UPDATE worker_lease SET until = 0 WHERE worker_id = 'child'").await;
            match parent.claim(&session, 2).await {
                Claim::Held(fence) => Some(fence),
                Claim::Busy { .. } => None,
                Claim::Stale { .. } => panic!("stale"),
            }
        })
        .await;
        let backend = parent.store.backend(fence, key.clone(), parent.lease.clone());
        let [sessions, pending, rows] = done;
        for step in 1..=sessions {
            let record = backend.get_session(&address(step)).await.unwrap();
            assert_eq!(record.as_deref(), Some(&step.to_be_bytes()[..]), "session {step} of {sessions}");
        }
        for step in 1..=pending {
            let stored = backend.get_pending_inbound("1@lid", "1@lid", &step.to_string()).await.unwrap();
            assert_eq!(stored.as_deref(), Some(&step.to_be_bytes()[..]), "message {step} of {pending}");
        }
        let stored = parent.store.outbox_len(&session).await.unwrap();
        let batch = ROWS as u64;
        assert!(stored >= rows * batch, "{stored} rows after {rows} batches");
        assert!(stored <= (rows + 1) * batch && stored.is_multiple_of(batch), "a batch is there as a whole: {stored}");
        backend.put_session("1@s.whatsapp.net", b"goes on").await.unwrap();
    }
}
