//! Usage: every fact counts once, and sums are right by hour, day and month.

use control_plane::{
    auth::TenantScope,
    usage::{self, Fact, Meter},
};
use rstest::rstest;
use serde_json::{Value, json};
use shared::{ids::MessageId, time::Timestamp};

use crate::harness::{Answer, Engine, Owner, TestApp};

fn at(text: &str) -> Timestamp {
    serde_json::from_value(json!(text)).unwrap()
}

async fn usage_of(app: &TestApp, owner: &Owner, query: &str) -> Answer {
    Answer::of(app.get(&format!("/api/v1/usage?{query}")).bearer_auth(&owner.access_token)).await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn facts_count_once_and_sums_follow_the_calendar(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (owner, other) = (app.sign_up().await, app.sign_up().await);
    let scope = TenantScope::of_row(owner.tenant_id.parse().unwrap());
    let moments = [
        "2026-01-30T23:59:59.999Z",
        "2026-01-31T00:00:00.000Z",
        "2026-01-31T10:05:00Z",
        "2026-01-31T10:55:00Z",
        "2026-02-01T00:00:00Z",
    ];
    for moment in moments {
        let id = MessageId::new();
        for meter in [Meter::MessagesSent, Meter::MessagesReceived] {
            for repeat in 0..3 {
                let fact = Fact {
                    tenant: &scope,
                    session_id: None,
                    meter,
                    thing: id.as_str(),
                    quantity: 1,
                    occurred_at: at(moment),
                };
                let new = usage::record(app.app().db.autocommit(), fact).await.unwrap();
                assert_eq!(new, repeat == 0, "the second time it is known");
            }
        }
    }
    let january = "meter=messages_sent&from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z";
    let days = usage_of(&app, &owner, &format!("{january}&granularity=day")).await.json();
    assert_eq!(
        days["data"],
        json!([
            {"meter": "messages_sent", "start": "2026-01-30T00:00:00.000Z", "quantity": 1},
            {"meter": "messages_sent", "start": "2026-01-31T00:00:00.000Z", "quantity": 3},
        ])
    );
    assert_eq!(days["totals"], json!([{"meter": "messages_sent", "quantity": 4}]));
    let hours =
        usage_of(&app, &owner, "from=2026-01-31T10:00:00Z&to=2026-01-31T11:00:00Z&granularity=hour").await.json();
    assert_eq!(hours["data"].as_array().unwrap().len(), 2, "one hour of two meters");
    assert!(hours["data"].as_array().unwrap().iter().all(|sum| sum["quantity"] == 2));
    let months = usage_of(&app, &owner, "from=2026-01-01T00:00:00Z&to=2027-01-01T00:00:00Z&granularity=month").await;
    let sums: Vec<(Value, Value, Value)> = months.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sum| (sum["meter"].clone(), sum["start"].clone(), sum["quantity"].clone()))
        .collect();
    let expected = |meter: &str, start: &str, quantity: i64| (json!(meter), json!(start), json!(quantity));
    assert_eq!(
        sums,
        [
            expected("messages_sent", "2026-01-01T00:00:00.000Z", 4),
            expected("messages_sent", "2026-02-01T00:00:00.000Z", 1),
            expected("messages_received", "2026-01-01T00:00:00.000Z", 4),
            expected("messages_received", "2026-02-01T00:00:00.000Z", 1),
        ]
    );
    let strangers = usage_of(&app, &other, january).await.json();
    assert_eq!((&strangers["data"], &strangers["totals"]), (&json!([]), &json!([])));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test]
async fn a_question_that_makes_no_sense_is_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for query in [
        "meter=nonsense",
        "from=yesterday",
        "granularity=week",
        "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z&granularity=hour",
        "from=0001-01-01T00:00:00Z&to=9999-12-31T00:00:00Z&granularity=month",
    ] {
        usage_of(&app, &owner, query).await.assert_problem(400, "bad-request");
    }
    assert_eq!(usage_of(&app, &owner, "").await.status, 200);
    let key = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    Answer::of(app.get("/api/v1/usage").bearer_auth(key)).await.assert_problem(403, "missing-scope");
    app.stop().await;
}
