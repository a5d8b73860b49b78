//! Events: positions without gaps, in commit order.

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

/// Every position that can be seen now, of all tenants.
async fn positions(app: &App) -> Vec<i64> {
    let sql = Statement::from_string(app.db.engine(), "SELECT position FROM events ORDER BY position");
    let rows = app.db.read().query_all_raw(sql).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn positions_have_no_gaps_and_appear_in_order_under_concurrent_writers(#[case] engine: Engine) {
    const WRITERS: u64 = 8;
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    let scope = tenant(&app).await;
    let over = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (app, over) = (parts.replica().await, Arc::clone(&over));
        async move {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                let seen = positions(&app).await;
                // A reader that has seen a position has seen all before it: a stream may resume there.
                assert!(seen.iter().copied().eq(1..=seen.len() as i64), "a gap was visible: {seen:?}");
                looks += 1;
            }
            looks
        }
    });
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (app, scope) = (parts.replica().await, scope.clone());
        writers.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(writer);
            let mut committed = 0;
            for _ in 0..12 {
                let tx = app.db.write().await.unwrap();
                let count = rng.random_range(1..4);
                events::record(&tx, &app, &scope, (0..count).map(event).collect()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..4))).await;
                if rng.random_bool(0.3) {
                    tx.rollback().await.unwrap();
                } else {
                    tx.commit().await.unwrap();
                    committed += count as i64;
                }
            }
            committed
        }));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 3, "the reader looked while there was something to see");
    assert_eq!(positions(&app).await, (1..=committed).collect::<Vec<_>>());
    assert_eq!(number(&app, "SELECT last_position FROM tenants").await, committed);
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
