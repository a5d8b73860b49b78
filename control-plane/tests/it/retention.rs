//! What messages say is kept for as long as their tenant wants it.

use control_plane::messages::retention;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    ids::{DeliveryId, EventId, MessageId, SessionId},
    time::Timestamp,
    wire::{outbox::InboundBody, send::Content},
};

use crate::harness::{Answer, Engine, Owner, TestApp};

const DAY: i64 = 86_400_000;

async fn keep(app: &TestApp, who: &Owner, days: Value) -> Answer {
    let request = app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"retention_days": days}));
    Answer::of(request.bearer_auth(&who.access_token)).await
}

async fn message(app: &TestApp, who: &Owner, status: &str, age: i64) -> String {
    let id = MessageId::new().to_string();
    let body = InboundBody::Content { content: Content::Text { body: "x".into() } };
    app.sql(
        "INSERT INTO messages (id, tenant_id, session_id, direction, wa_id, chat, sender, push_name, kind, content, status, \
         created_at) VALUES ($1, $2, $6, 'outbound', $1, 'c', 'me', 'Ada', 'text', $3, $4, $5)",
        [
            id.as_str().into(),
            who.tenant_id.as_str().into(),
            serde_json::to_string(&body).unwrap().into(),
            status.into(),
            (Timestamp::now().as_millis() - age).into(),
            SessionId::new().as_str().into(),
        ],
    )
    .await;
    id
}

async fn event(app: &TestApp, who: &Owner, kind: &str, position: i64, age: i64, delivered: Option<bool>) {
    let id = EventId::new().to_string();
    let at = Timestamp::now().as_millis() - age;
    app.sql(
        "INSERT INTO events (id, tenant_id, type, position, occurred_at, sealed_data) VALUES ($1, $2, $3, $4, $5, $6)",
        [id.as_str().into(), who.tenant_id.as_str().into(), kind.into(), position.into(), at.into(), vec![0_u8].into()],
    )
    .await;
    let Some(delivered) = delivered else { return };
    app.sql(
        "INSERT INTO deliveries (id, tenant_id, webhook_id, event_id, event_type, status, created_at, completed_at) \
         VALUES ($1, $2, 'w', $3, $4, 'x', $5, $6)",
        [
            DeliveryId::new().as_str().into(),
            who.tenant_id.as_str().into(),
            id.into(),
            kind.into(),
            at.into(),
            delivered.then_some(at).into(),
        ],
    )
    .await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_messages_say_is_erased_after_the_tenants_days_and_nobody_elses_is(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let other = app.sign_up().await;
    for who in [&owner, &other] {
        for (status, age) in [("sent", 31 * DAY), ("queued", 31 * DAY), ("failed", 40 * DAY), ("read", 29 * DAY)] {
            message(&app, who, status, age).await;
        }
        event(&app, who, "message.received", 1, 31 * DAY, None).await;
        event(&app, who, "message.received", 2, 31 * DAY, Some(true)).await;
        event(&app, who, "message.received", 3, 31 * DAY, Some(false)).await;
        event(&app, who, "message.received", 4, 29 * DAY, Some(true)).await;
        event(&app, who, "session.status", 5, 31 * DAY, None).await;
    }
    let with_content = async |who: &Owner| {
        let of = |table: &str, more: &str| {
            format!("SELECT COUNT(*) FROM {table} WHERE tenant_id = '{}'{more}", who.tenant_id)
        };
        (
            app.count(&of("messages", " AND content IS NOT NULL")).await,
            app.count(&of("messages", " AND push_name IS NOT NULL")).await,
            app.count(&of("messages", "")).await,
            app.count(&of("events", "")).await,
            app.count(&of("deliveries", "")).await,
        )
    };
    retention::erase(app.app()).await.unwrap();
    assert_eq!(with_content(&owner).await, (4, 4, 4, 5, 3), "for ever, unless somebody says");

    keep(&app, &owner, json!(3651)).await.assert_problem(422, "validation");
    let kept = keep(&app, &owner, json!(30)).await;
    assert_eq!((kept.status.as_u16(), &kept.json()["retention_days"]), (200, &json!(30)), "{kept:?}");
    for _ in 0..2 {
        retention::erase(app.app()).await.unwrap();
        // The waiting message is to be sent, and an endpoint is still to be told of one event.
        assert_eq!(with_content(&owner).await, (2, 2, 4, 3, 2));
        assert_eq!(with_content(&other).await, (4, 4, 4, 5, 3));
    }
    let seen = Answer::of(app.get("/api/v1/messages").bearer_auth(&owner.access_token)).await.json();
    let texts: Vec<_> = seen["data"].as_array().unwrap().iter().map(|one| one["text"].is_null()).collect();
    assert_eq!(texts.iter().filter(|erased| **erased).count(), 2, "{seen}");

    keep(&app, &owner, json!(0)).await;
    retention::erase(app.app()).await.unwrap();
    assert_eq!(with_content(&owner).await, (1, 1, 4, 2, 1), "what waits stays");
    let never = keep(&app, &owner, Value::Null).await;
    assert!(never.json()["retention_days"].is_null(), "{never:?}");
    app.sql("UPDATE messages SET content = 'x', status = 'sent'", []).await;
    retention::erase(app.app()).await.unwrap();
    assert_eq!(with_content(&owner).await.0, 4);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn one_sweep_takes_all_that_is_past_its_time_however_much_there_is(#[case] engine: Engine) {
    const PAST: [(&str, &str, i64); 6] = [
        (
            "idempotency_keys",
            "(tenant_id, principal, idempotency_key, operation, request_hash, status, sealed_body, created_at, expires_at) \
             SELECT '{tenant}', 'p', CAST(i AS TEXT), 'o', $1, 200, $1, 1, 1 FROM n",
            3_001,
        ),
        ("throttles", "(bucket, tat) SELECT {bytes}, 1 FROM n WHERE $1 IS NOT NULL", 3_001),
        (
            "login_challenges",
            "(token_hash, user_id, tries, expires_at) SELECT {bytes}, '{user}', 0, 1 FROM n WHERE $1 IS NOT NULL",
            1_501,
        ),
        (
            "events",
            "(id, tenant_id, type, position, occurred_at, sealed_data) SELECT CAST(i AS TEXT), '{tenant}', 't', i + 1000, 1, $1 FROM n",
            25_000,
        ),
        (
            "deliveries",
            "(id, tenant_id, webhook_id, event_id, event_type, status, created_at, completed_at) \
             SELECT CAST(i AS TEXT), '{tenant}', 'w', CAST(i AS TEXT), 't', 'x', 1, 1 FROM n WHERE $1 IS NOT NULL",
            25_000,
        ),
        (
            "jobs",
            "(id, tenant_id, kind, lane, state, run_at, max_attempts, subject, created_at, finished_at) \
             SELECT CAST(i AS TEXT), 'ten', 'mail.send', 'l', 'done', 1, 1, 's', 1, 1 FROM n WHERE $1 IS NOT NULL",
            3_001,
        ),
    ];
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let bytes =
        if engine == Engine::Sqlite { "CAST(CAST(i AS TEXT) AS BLOB)" } else { "CAST(CAST(i AS TEXT) AS BYTEA)" };
    let given = if engine == Engine::Sqlite { "CAST($1 AS BLOB)" } else { "CAST($1 AS BYTEA)" };
    for (table, rows, count) in PAST {
        let rows = rows.replace("{bytes}", bytes).replace("$1", given);
        let rows = rows.replace("{user}", &owner.user_id).replace("{tenant}", &owner.tenant_id);
        let statement = format!(
            "INSERT INTO {table} {}",
            rows.replace(
                "FROM n",
                &format!("FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n) AS n")
            )
        );
        assert_eq!(app.sql(&statement, [vec![0_u8].into()]).await, u64::try_from(count).unwrap(), "{table}");
    }
    // As the schedule does. Another replica, whose first sweep of jobs is at once.
    for name in ["expired", "retention"] {
        let job = control_plane::jobs::NewJob {
            tenant_id: control_plane::jobs::schedule::installation(),
            kind: control_plane::jobs::JobKind::Upkeep,
            lane: format!("upkeep:{name}"),
            subject: name.into(),
            run_at: Timestamp::now(),
            max_attempts: 1,
        };
        control_plane::jobs::enqueue(app.app().db.autocommit(), job).await.unwrap();
    }
    app.app().bell.ring(control_plane::jobs::JobKind::Upkeep);
    let mut app = app;
    app.replica().await;
    let left = async || {
        let mut left = Vec::new();
        for (table, ..) in PAST {
            let past = if table == "jobs" { " WHERE lane = 'l'" } else { "" };
            if app.count(&format!("SELECT COUNT(*) FROM {table}{past}")).await > 0 {
                left.push(table);
            }
        }
        left
    };
    crate::parts::eventually("nothing is left", async || {
        let left = left().await;
        eprintln!("left: {left:?}");
        left.is_empty()
    })
    .await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_fails_keeps_no_other_from_its_work(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    app.sql("INSERT INTO throttles (bucket, tat) VALUES ($1, 1)", [vec![7_u8].into()]).await;
    app.sql("ALTER TABLE idempotency_keys RENAME TO hidden", []).await;
    let job = control_plane::jobs::NewJob {
        tenant_id: control_plane::jobs::schedule::installation(),
        kind: control_plane::jobs::JobKind::Upkeep,
        lane: "upkeep:expired".into(),
        subject: "expired".into(),
        run_at: Timestamp::now(),
        max_attempts: 1,
    };
    control_plane::jobs::enqueue(app.app().db.autocommit(), job).await.unwrap();
    app.app().bell.ring(control_plane::jobs::JobKind::Upkeep);
    crate::parts::eventually("the others were swept", async || app.count("SELECT COUNT(*) FROM throttles").await == 0)
        .await;
    app.sql("ALTER TABLE hidden RENAME TO idempotency_keys", []).await;
    app.stop().await;
}
