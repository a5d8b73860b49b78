//! Events: positions without gaps, in the order in which events became visible.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use control_plane::{
    events::{self, EventType, NewEvent},
    state::App,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use sea_orm::{ConnectionTrait, Statement};
use serde_json::json;
use shared::time::Timestamp;

use crate::{
    harness::{Answer, Engine, TestApp},
    parts::{Parts, number, tenant},
};

fn event(n: usize) -> NewEvent {
    let data = json!({"n": n, "text": "a sentinel"});
    NewEvent { kind: EventType::MessageReceived, session_id: None, occurred_at: Timestamp::now(), data }
}

/// The events that have a position now, of all tenants, by position.
async fn numbered(app: &App) -> Vec<(i64, String)> {
    let sql = "SELECT position, id FROM events WHERE position IS NOT NULL ORDER BY position";
    let rows = app.db.read().query_all_raw(Statement::from_string(app.db.engine(), sql)).await.unwrap();
    rows.iter().map(|row| (row.try_get_by_index(0).unwrap(), row.try_get_by_index(1).unwrap())).collect()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn positions_have_no_gaps_and_follow_each_writer_s_order_under_concurrent_writers(#[case] engine: Engine) {
    const WRITERS: u64 = 8;
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let scope = tenant(&app).await;
    let key = control_plane::tenants::data_key(&app, app.db.read(), &scope).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (app, over) = (parts.replica().await, Arc::clone(&over));
        async move {
            let mut before: Vec<(i64, String)> = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let seen = numbered(&app).await;
                // A reader that has seen a position has seen all before it: a stream may resume there.
                assert!(seen.iter().map(|(at, _)| *at).eq(1..=seen.len() as i64), "a gap was visible: {seen:?}");
                assert!(seen.starts_with(&before), "what has a position keeps it");
                before = seen;
            }
            before.len()
        }
    });
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (app, scope, key) = (parts.replica().await, scope.clone(), key.clone());
        writers.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(writer);
            let mut committed = Vec::new();
            for _ in 0..12 {
                let tx = app.db.write().await.unwrap();
                let count = rng.random_range(1..4);
                let recorded = events::record(&tx, &app, &scope, (0..count).map(event).collect()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..4))).await;
                if rng.random_bool(0.3) {
                    tx.rollback().await.unwrap();
                } else {
                    tx.commit().await.unwrap();
                    // As a delivery does: looks at one of them, which numbers what there is.
                    if rng.random_bool(0.5) {
                        let seen = events::find(&app.db, &scope, &key, &recorded.events[0]).await.unwrap().unwrap();
                        assert!(seen.position > 0);
                    }
                    committed.extend(recorded.events.iter().map(ToString::to_string));
                }
            }
            committed
        }));
    }
    let mut committed = Vec::new();
    for writer in writers {
        committed.push(writer.await.unwrap());
    }
    // One more, which has no position yet: to look at it is to number all.
    let tx = app.db.write().await.unwrap();
    let last = events::record(&tx, &app, &scope, vec![event(0)]).await.unwrap().events;
    tx.commit().await.unwrap();
    let last_seen = events::find(&app.db, &scope, &key, &last[0]).await.unwrap().unwrap().position;
    committed.push(vec![last[0].to_string()]);
    over.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 3, "the reader looked while there was something to see");
    let seen: Vec<String> = numbered(&app).await.into_iter().map(|(_, id)| id).collect();
    let total: usize = committed.iter().map(Vec::len).sum();
    assert_eq!(last_seen, total as i64);
    assert_eq!((seen.len(), number(&app, "SELECT last_position FROM tenants").await), (total, total as i64));
    for of_one in committed {
        let places: Vec<_> = of_one.iter().map(|id| seen.iter().position(|seen| seen == id).unwrap()).collect();
        assert!(places.is_sorted(), "what one writer committed first comes first");
    }
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn events_are_listed_by_position_and_lie_sealed(#[case] engine: Engine) {
    let Some(test) = TestApp::start(engine).await else { return };
    let (app, owner) = (test.app(), test.sign_up().await);
    let scope = control_plane::auth::TenantScope::of_row(owner.tenant_id.parse().unwrap());
    for n in 0..5 {
        let tx = app.db.write().await.unwrap();
        let recorded = events::record(&tx, app, &scope, vec![event(n)]).await.unwrap();
        assert!(!recorded.deliveries, "nobody is to be told");
        tx.commit().await.unwrap();
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/events?limit=2".to_owned();
    loop {
        let page = Answer::of(test.get(&path).bearer_auth(&owner.access_token)).await;
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["position"].as_i64().unwrap()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/events?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    let sql = Statement::from_string(app.db.engine(), "SELECT sealed_data FROM events");
    for row in app.db.read().query_all_raw(sql).await.unwrap() {
        let sealed: Vec<u8> = row.try_get_by_index(0).unwrap();
        assert!(!sealed.windows(8).any(|window| window == b"sentinel"));
    }
    let key = test.api_key(&owner, "sandbox", &["usage:read"]).await;
    Answer::of(test.get("/api/v1/events").bearer_auth(key)).await.assert_problem(403, "missing-scope");
    test.stop().await;
}
