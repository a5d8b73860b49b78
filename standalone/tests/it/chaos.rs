//! `kill -9` at seeded points. The network and the webhook receiver live on in this process and the simulator's.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use serde_json::json;
use standalone::tour::api::text;

use crate::{
    history::assert_complete,
    postgres::Engine,
    stack::{PATIENCE, Stack, until},
};

const TENANT: &str = "15550100031";
const CUSTOMER: &str = "15550100032";
/// Written at once before each kill.
const BURST: usize = 800;
/// Of these at least so many must be unacknowledged at the kill.
const LEFT: usize = 100;
/// How often a kill may come too late, because this process was held up.
const TOO_LATE: usize = 5;
/// A killed worker's lease runs out within 20 s; then it joins again and claims.
const RECOVERY: Duration = Duration::from_secs(60);

#[rstest]
#[case::sqlite(Engine::Sqlite, 2, 1)]
#[case::postgres(Engine::Postgres, 2, 2)]
#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_under_load_loses_nothing(#[case] engine: Engine, #[case] points: usize, #[case] seed: u64) {
    kill_workers(engine, points, seed).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a quarter of an hour: make chaos"]
async fn worker_killed_at_20_points_loses_nothing(#[case] engine: Engine) {
    kill_workers(engine, 20, 20).await;
}

async fn kill_workers(engine: Engine, points: usize, seed: u64) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    let tenant = stack.tenant(TENANT, true).await;
    stack.network.new_phone(CUSTOMER, "Customer", None).await.unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut expected = BTreeSet::new();
    let mut unacknowledged_at_kills = Vec::new();
    let mut kill_points: VecDeque<usize> = (0..points).map(|_| random.random_range(LEFT..BURST - 50)).collect();
    let mut bursts = 0;
    while let Some(kill_at) = kill_points.pop_front() {
        let words = format!("burst {bursts}");
        bursts += 1;
        expected.extend((1..=BURST).map(|n| format!("{words} #{n}")));
        // The queue must have filled before it can be said to have drained to the chosen point.
        let device = format!("{TENANT}:1@s.whatsapp.net");
        stack.network.hurt(&device, "fault", &json!({ "kind": "hold" })).await.unwrap();
        stack.network.write(CUSTOMER, TENANT, &words, BURST, None).await.unwrap();
        assert!(stack.network.unacknowledged(TENANT).await.unwrap() >= BURST);
        stack.network.hurt(&device, "fault", &json!({ "kind": "release" })).await.unwrap();
        until("the queue drains to the chosen point", PATIENCE, async || {
            (stack.network.unacknowledged(TENANT).await.unwrap() <= kill_at).then_some(())
        })
        .await;
        stack.kill_worker();
        let left = stack.network.unacknowledged(TENANT).await.unwrap();
        if left < LEFT {
            assert!(bursts < points + TOO_LATE, "too late once more: {left} left, after {unacknowledged_at_kills:?}");
            kill_points.push_back(kill_at);
        } else {
            unacknowledged_at_kills.push(left);
        }
        stack.start_worker();
        until("the queue is empty again", RECOVERY, async || {
            (stack.network.unacknowledged(TENANT).await.unwrap() == 0).then_some(())
        })
        .await;
    }
    assert_complete(&stack, &tenant, &expected).await;
    println!(
        "worker killed at {points} points on {engine:?}, seed {seed}: {} messages, 0 lost, 0 twice; unacknowledged at \
         the kills: {unacknowledged_at_kills:?}",
        expected.len()
    );
    assert_eq!(unacknowledged_at_kills.len(), points);
}

#[rstest]
#[case::sqlite(Engine::Sqlite, 3, 3)]
#[case::postgres(Engine::Postgres, 3, 4)]
#[tokio::test(flavor = "multi_thread")]
async fn control_plane_killed_between_commit_and_answer_loses_nothing(
    #[case] engine: Engine,
    #[case] points: usize,
    #[case] seed: u64,
) {
    kill_control_planes(engine, points, seed).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make chaos"]
async fn control_plane_killed_between_commit_and_answer_20_times_loses_nothing(#[case] engine: Engine) {
    kill_control_planes(engine, 20, 40).await;
}

/// The control plane kills itself (SIGKILL) after a commit and before its answer: alternately while it stores what
/// WhatsApp said, and while it takes a send.
async fn kill_control_planes(engine: Engine, points: usize, seed: u64) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    let tenant = stack.tenant(TENANT, true).await;
    stack.network.new_phone(CUSTOMER, "Customer", None).await.unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut expected = BTreeSet::new();
    let mut sent = BTreeSet::new();
    for point in 0..points {
        stack.kill_control_plane();
        let words = format!("point {point}");
        if point % 2 == 0 {
            let survives = random.random_range(0..6);
            let crash = format!("events-committed={survives}*off->1*return");
            stack.start_control_plane(&[("FAILPOINTS", &crash)]).await;
            // In slices, each written when something of the one before was committed: so there are at least as many commits.
            let mut died = false;
            for slice in 0..8 {
                let words = format!("{words}, slice {slice}");
                stack.network.write(CUSTOMER, TENANT, &words, 25, None).await.unwrap();
                let before = expected.len();
                expected.extend((1..=25).map(|n| format!("{words} #{n}")));
                until("the slice is being stored", PATIENCE, async || {
                    died = died || stack.control_plane_died();
                    let stored = "SELECT id FROM messages WHERE direction = 'inbound'";
                    (died || stack.query(stored).await.len() > before).then_some(())
                })
                .await;
            }
            until("it dies between commit and answer", PATIENCE, async || {
                died = died || stack.control_plane_died();
                died.then_some(())
            })
            .await;
            stack.start_control_plane(&[]).await;
        } else {
            stack.start_control_plane(&[("FAILPOINTS", "send-committed=1*return")]).await;
            let body = json!({
                "session_id": tenant.session,
                "to": format!("+{CUSTOMER}"),
                "type": "text",
                "text": { "body": words },
            });
            let key = format!("key-{point}");
            let refused = tenant.api.post_once("messages/send", &body, &key).await;
            assert!(refused.is_err(), "it must die before it answers");
            until("it dies between commit and answer", PATIENCE, async || stack.control_plane_died().then_some(()))
                .await;
            stack.start_control_plane(&[]).await;
            let answer = tenant.api.post_once("messages/send", &body, &key).await.unwrap();
            let message = text(&answer, "/id").unwrap();
            tenant
                .api
                .until(&format!("messages/{message}"), PATIENCE, |answer| {
                    matches!(answer["status"].as_str()?, "delivered" | "read").then_some(())
                })
                .await
                .unwrap();
            sent.insert(words);
        }
    }
    assert_complete(&stack, &tenant, &expected).await;
    let out = tenant.texts("outbound").await;
    assert_eq!(out.iter().collect::<BTreeSet<_>>(), sent.iter().collect(), "every send is in history");
    assert_eq!(out.len(), sent.len(), "and once");
    let at_phone: Vec<_> =
        stack.network.messages(CUSTOMER).await.unwrap().into_iter().map(|message| message.text).collect();
    assert_eq!(at_phone.len(), sent.len(), "and reached the phone once");
    println!(
        "control plane killed at {points} points on {engine:?}, seed {seed}: {} received, {} sent, 0 lost, 0 twice",
        expected.len(),
        sent.len()
    );
}
