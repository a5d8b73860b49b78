//! One key, one effect, one answer.

use std::collections::HashSet;

use reqwest::{Method, RequestBuilder};
use rstest::rstest;
use sea_orm::ConnectionTrait;
use serde_json::{Value, json};

use crate::{
    fleet::until,
    harness::{Answer, Engine, Owner, PATIENCE, TestApp},
};

const KEYS: &str = "/api/v1/api-keys";

fn new_key(app: &TestApp, base: &str, owner: &Owner, key: &str, body: &Value) -> RequestBuilder {
    app.http.post(format!("{base}{KEYS}")).bearer_auth(&owner.access_token).header("Idempotency-Key", key).json(body)
}

fn wanted(name: &str) -> Value {
    json!({"name": name, "network": "sandbox", "scopes": ["webhooks"]})
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn identical_requests_at_once_have_one_effect_and_equal_answers(#[case] engine: Engine) {
    const CALLERS: usize = 24;
    let Some(mut app) = TestApp::start(engine).await else { return };
    let mut bases = vec![app.base_url()];
    // Two processes' worth on PostgreSQL; a SQLite file belongs to one.
    if engine != Engine::Sqlite {
        bases.push(app.replica().await);
    }
    let owner = app.sign_up().await;
    let body = wanted("one");
    let callers = (0..CALLERS).map(|caller| {
        let (app, owner, body, base) = (&app, &owner, &body, &bases[caller % bases.len()]);
        async move {
            // As the document tells callers to: ask again after 409, until there is an answer.
            until("there is an answer", async || {
                let answer = Answer::of(new_key(app, base, owner, "order-1", body)).await;
                if answer.status != 409 {
                    return Some(answer);
                }
                answer.assert_problem(409, "idempotency-in-flight");
                assert_eq!(answer.header("retry-after"), Some("1"));
                None
            })
            .await
        }
    });
    let answers = futures_util::future::join_all(callers).await;
    for answer in &answers {
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let bodies: HashSet<_> = answers.iter().map(|answer| &answer.text).collect();
    assert_eq!(bodies.len(), 1, "every caller has the same key in hand");
    let first: Vec<_> = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).collect();
    assert_eq!(first.len(), 1, "one answer is not a replay");
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 1);
    app.stop().await;
}

/// SQLite has one writer: there the second request waits for the first, and is answered like it.
#[tokio::test(flavor = "multi_thread")]
async fn while_one_request_works_a_second_with_its_key_is_told_to_ask_again() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    let owner = app.sign_up().await;
    let (body, base) = (wanted("one"), app.base_url());
    // Holds the first request up between claiming its key and its effect.
    let held = app.app().db.write().await.unwrap();
    held.execute_unprepared("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let second = async {
        let waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'api_keys'::regclass";
        tokio::time::timeout(PATIENCE, async {
            while app.count(waiting).await == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let second = Answer::of(new_key(&app, &base, &owner, "k", &body)).await;
        held.rollback().await.unwrap();
        second
    };
    let (first, second) = tokio::join!(Answer::of(new_key(&app, &base, &owner, "k", &body)), second);
    assert_eq!(first.status, 201, "{first:?}");
    second.assert_problem(409, "idempotency-in-flight");
    assert_eq!(second.header("retry-after"), Some("1"));
    let third = Answer::of(new_key(&app, &base, &owner, "k", &body)).await;
    assert_eq!((third.status, &third.text), (first.status, &first.text));
    assert_eq!(third.header("idempotent-replayed"), Some("true"));
    assert_eq!(third.header("content-type"), Some("application/json"));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn another_body_or_another_route_under_the_same_key_is_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let base = app.base_url();
    let first = Answer::of(new_key(&app, &base, &owner, "k", &wanted("one"))).await;
    assert_eq!(first.status, 201, "{first:?}");
    Answer::of(new_key(&app, &base, &owner, "k", &wanted("two"))).await.assert_problem(422, "idempotency-mismatch");
    let elsewhere = app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"name": "Other"}));
    let elsewhere = elsewhere.bearer_auth(&owner.access_token).header("Idempotency-Key", "k");
    Answer::of(elsewhere).await.assert_problem(422, "idempotency-mismatch");
    // The same words in another order are the same request.
    let reordered = app.http.post(format!("{base}{KEYS}")).bearer_auth(&owner.access_token);
    let reordered = reordered
        .header("Idempotency-Key", "k")
        .header("content-type", "application/json")
        .body(r#"{ "scopes": ["webhooks"], "network": "sandbox", "name": "one" }"#);
    assert_eq!(Answer::of(reordered).await.text, first.text);
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 1);
    // Another tenant's key of the same name is another key.
    let stranger = app.sign_up().await;
    let theirs = Answer::of(new_key(&app, &base, &stranger, "k", &wanted("two"))).await;
    assert_eq!(theirs.status, 201, "{theirs:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_stored_and_the_key_can_be_used_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    let unknown = format!("{KEYS}/{}", shared::ids::KeyId::new());
    let delete = |path: &str| {
        app.request(Method::DELETE, path).bearer_auth(&owner.access_token).header("Idempotency-Key", "again")
    };
    Answer::of(delete(&unknown)).await.assert_problem(404, "not-found");
    assert_eq!(app.count("SELECT COUNT(*) FROM idempotency_keys").await, 0);
    let list = Answer::of(app.get(KEYS).bearer_auth(&owner.access_token)).await.json();
    let path = format!("{KEYS}/{}", list["data"][0]["id"].as_str().unwrap());
    // An answer without a body is stored too: the second delete is the first one again, not a 404.
    for replayed in [None, Some("true")] {
        let answer = Answer::of(delete(&path)).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(answer.header("idempotent-replayed"), replayed);
    }
    Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_past_its_time_is_a_new_one_and_stored_answers_are_sealed(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let base = app.base_url();
    let first = Answer::of(new_key(&app, &base, &owner, "k", &wanted("one"))).await;
    let secret = first.json()["key"].as_str().unwrap().to_owned();
    let db = &app.app().db;
    let row = sea_orm::ConnectionTrait::query_one_raw(
        db.read(),
        sea_orm::Statement::from_string(db.engine(), "SELECT sealed_body FROM idempotency_keys"),
    );
    let sealed: Vec<u8> = row.await.unwrap().unwrap().try_get("", "sealed_body").unwrap();
    assert!(!sealed.windows(8).any(|part| part == &secret.as_bytes()[..8]), "the key lies there in clear");

    app.sql("UPDATE idempotency_keys SET expires_at = 1", []).await;
    let second = Answer::of(new_key(&app, &base, &owner, "k", &wanted("two"))).await;
    assert_eq!(second.status, 201, "{second:?}");
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 2);
    app.sql("UPDATE idempotency_keys SET expires_at = 1", []).await;
    assert_eq!(control_plane::idempotency::prune(app.app()).await.unwrap(), 1);
    for bad in ["", " ", "ü", &"k".repeat(256)] {
        let request = app.http.post(format!("{base}{KEYS}")).bearer_auth(&owner.access_token);
        let request = request.header("Idempotency-Key", bad.as_bytes()).json(&wanted("three"));
        Answer::of(request).await.assert_problem(400, "bad-request");
    }
    app.stop().await;
}
