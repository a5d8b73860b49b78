//! API keys.

use reqwest::Method;
use rstest::rstest;
use serde_json::json;
use shared::ids::KeyId;

use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_works_in_both_headers_and_ends_when_deleted(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"name": "shop", "network": "whatsapp", "scopes": ["messages:send", "sessions:read"]});
    let made = Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let (key, id) = (made.json()["key"].as_str().unwrap().to_owned(), made.json()["id"].as_str().unwrap().to_owned());
    assert!(key.starts_with("sb_live_"));
    assert_eq!(made.json()["last_four"], key[key.len() - 4..]);

    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    assert_eq!(Answer::of(app.get("/api/v1/tenant").header("X-Api-Key", &key)).await.status, 200);

    let list = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&owner.access_token)).await;
    assert_eq!(list.json()["data"][0]["id"], id);
    assert!(list.json()["data"][0]["last_used_at"].is_string(), "{list:?}");
    assert!(!list.text.contains(&key), "the key itself is shown once");

    let path = format!("/api/v1/api-keys/{id}");
    let gone = Answer::of(app.request(Method::DELETE, &path).bearer_auth(&owner.access_token)).await;
    assert_eq!(gone.status, 204, "{gone:?}");
    Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.assert_problem(401, "unauthenticated");
    let again = Answer::of(app.request(Method::DELETE, &path).bearer_auth(&owner.access_token)).await;
    again.assert_problem(404, "not-found");
    let list = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&owner.access_token)).await;
    assert_eq!(list.json(), json!({"data": [], "next_cursor": null}));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_cannot_make_list_or_delete_keys_nor_change_people(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let all = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
    let key = app.api_key(&owner, "whatsapp", &all).await;
    let body = json!({"name": "more", "network": "whatsapp", "scopes": ["messages:send"]});
    let attempts = [
        app.post("/api/v1/api-keys", &body),
        app.get("/api/v1/api-keys"),
        app.request(Method::DELETE, &format!("/api/v1/api-keys/{}", KeyId::new())),
        app.get("/api/v1/me"),
        app.request(Method::PATCH, "/api/v1/me").json(&json!({"name": "Other"})),
        app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"name": "Other"})),
    ];
    for attempt in attempts {
        Answer::of(attempt.bearer_auth(&key)).await.assert_problem(403, "missing-scope");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_past_its_time_mistyped_or_unknown_is_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let other = TestApp::start(Engine::Sqlite).await.unwrap();
    let stranger = other.sign_up().await;
    let elsewhere = other.api_key(&stranger, "sandbox", &["sessions:read"]).await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let mistyped = format!("{}{}", &key[..key.len() - 1], if key.ends_with('a') { 'b' } else { 'a' });
    for token in [&elsewhere, &mistyped, &key.replace("sb_test_", "sb_live_")] {
        Answer::of(app.get("/api/v1/tenant").bearer_auth(token)).await.assert_problem(401, "unauthenticated");
    }
    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    app.sql("UPDATE api_keys SET expires_at = $1", [(shared::time::Timestamp::now().as_millis() - 1).into()]).await;
    Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.assert_problem(401, "unauthenticated");

    let past = json!({"name": "x", "network": "sandbox", "scopes": ["webhooks"], "expires_at": "2020-01-01T00:00:00Z"});
    let answer = Answer::of(app.post("/api/v1/api-keys", &past).bearer_auth(&owner.access_token)).await;
    answer.assert_problem(422, "validation");
    assert_eq!(answer.pointers(), ["/expires_at"]);
    other.stop().await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_newest_first_in_pages_and_each_tenant_sees_its_own(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    app.api_key(&stranger, "sandbox", &["webhooks"]).await;
    for _ in 0..5 {
        app.api_key(&owner, "sandbox", &["webhooks"]).await;
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/api-keys?limit=2".to_owned();
    for _ in 0..4 {
        let page = Answer::of(app.get(&path).bearer_auth(&owner.access_token)).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/api-keys?limit=2&cursor={cursor}");
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_of_a_key_is_written_once_a_minute(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    let used = async || {
        assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
        app.count("SELECT last_used_at FROM api_keys").await
    };
    let first = used().await;
    assert_eq!(used().await, first);
    app.sql("UPDATE api_keys SET last_used_at = last_used_at - 60000", []).await;
    assert!(used().await > first - 60_000);
    app.stop().await;
}
