//! Operators: who they are, and what they see and change.

use control_plane::{
    bootstrap,
    operators::{self, NewOperator, OperatorError},
    seed,
};
use reqwest::Method;
use rstest::rstest;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use shared::{
    identity::SigningKey,
    wire::session::{Desired, Observed},
};

use crate::{
    fleet::{FakeWorker, Program},
    harness::{Answer, Engine, TestApp},
};

pub const EMAIL: &str = "operator@example.com";
const PASSWORD: &str = "correct horse battery";

fn new(replace: bool, password: &str) -> NewOperator {
    NewOperator { email: " Operator@Example.com".into(), name: "Grace".into(), password: password.into(), replace }
}

async fn log_in_with(app: &TestApp, password: &str) -> Answer {
    let body = json!({"email": EMAIL, "password": password});
    Answer::of(app.post("/api/v1/admin/auth/login", &body)).await
}

/// An operator's token.
pub async fn operator(app: &TestApp) -> String {
    operators::create(app.app(), new(true, PASSWORD)).await.unwrap();
    let answer = log_in_with(app, PASSWORD).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

async fn get(app: &TestApp, token: &str, path: &str) -> Value {
    let answer = Answer::of(app.get(&format!("/api/v1/admin/{path}")).bearer_auth(token)).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

async fn post(app: &TestApp, token: &str, path: &str) -> Answer {
    Answer::of(app.request(Method::POST, &format!("/api/v1/admin/{path}")).bearer_auth(token)).await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_logs_in_and_every_end_ends_the_token_at_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    log_in_with(&app, PASSWORD).await.assert_problem(401, "invalid-credentials");
    let token = operator(&app).await;
    assert!(token.starts_with("sbo_"));
    log_in_with(&app, "correct horse batter").await.assert_problem(401, "invalid-credentials");
    let me = get(&app, &token, "me").await;
    assert_eq!((me["email"].as_str(), me["name"].as_str()), (Some(EMAIL), Some("Grace")));
    let refused = async |token: &str| {
        Answer::of(app.get("/api/v1/admin/me").bearer_auth(token)).await.assert_problem(401, "unauthenticated");
    };

    assert_eq!(post(&app, &token, "auth/logout").await.status, 204);
    refused(&token).await;

    assert!(matches!(operators::create(app.app(), new(false, PASSWORD)).await, Err(OperatorError::Exists)));
    let token = operator(&app).await;
    operators::create(app.app(), new(true, "another long password")).await.unwrap();
    refused(&token).await;
    log_in_with(&app, PASSWORD).await.assert_problem(401, "invalid-credentials");

    let token = operator(&app).await;
    app.sql("UPDATE operator_logins SET expires_at = $1", [1_i64.into()]).await;
    refused(&token).await;
    operators::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM operator_logins").await, 0);

    let token = operator(&app).await;
    operators::remove(app.app(), EMAIL.into()).await.unwrap();
    refused(&token).await;
    assert!(matches!(operators::remove(app.app(), EMAIL.into()).await, Err(OperatorError::Unknown)));
    for (email, password) in [("nobody", PASSWORD), (EMAIL, "short")] {
        let new = NewOperator { email: email.into(), name: "x".into(), password: password.into(), replace: false };
        operators::create(app.app(), new).await.unwrap_err();
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn operators_attempts_are_limited(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, |config| config.auth.throttle = true).await else { return };
    operators::create(app.app(), new(true, PASSWORD)).await.unwrap();
    for _ in 0..10 {
        log_in_with(&app, "wrong").await.assert_problem(401, "invalid-credentials");
    }
    let refused = log_in_with(&app, PASSWORD).await;
    refused.assert_problem(429, "rate-limited");
    assert!(refused.header("retry-after").is_some());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn neither_kind_of_credential_is_one_to_the_other_api(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let token = operator(&app).await;
    let forged = format!("sbo_{}", &owner.access_token);
    for credential in [&owner.access_token, &owner.refresh_token, &key, &forged] {
        let answer = Answer::of(app.get("/api/v1/admin/tenants").bearer_auth(credential)).await;
        answer.assert_problem(401, "unauthenticated");
    }
    for path in ["/api/v1/sessions", "/api/v1/tenant", "/api/v1/me"] {
        Answer::of(app.get(path).bearer_auth(&token)).await.assert_problem(401, "unauthenticated");
    }
    let both = app.get("/api/v1/admin/tenants").bearer_auth(&token).header("x-api-key", &key);
    Answer::of(both).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_reads_and_does_not_write_until_it_is_resumed(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (owner, other) = (app.sign_up().await, app.sign_up().await);
    let token = operator(&app).await;
    let write = async |who: &crate::harness::Owner| {
        Answer::of(app.post("/api/v1/sessions", &json!({"name": "x"})).bearer_auth(&who.access_token)).await
    };
    let path = format!("tenants/{}", owner.tenant_id);
    for _ in 0..2 {
        let answer = post(&app, &token, &format!("{path}/suspend")).await;
        assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (200, Some("suspended")), "{answer:?}");
    }
    write(&owner).await.assert_problem(403, "tenant-suspended");
    assert_ne!(write(&other).await.status, 403);
    assert_eq!(Answer::of(app.get("/api/v1/sessions").bearer_auth(&owner.access_token)).await.status, 200);
    let listed = get(&app, &token, "tenants?status=suspended").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["id"], owner.tenant_id.as_str());
    assert_eq!(get(&app, &token, "overview").await["tenants"], json!({"active": 1, "suspended": 1}));
    assert_eq!(post(&app, &token, &format!("{path}/resume")).await.json()["status"], "active");
    assert_ne!(write(&owner).await.status, 403);

    let first = get(&app, &token, "tenants?limit=1").await;
    assert_eq!(first["data"][0]["id"], other.tenant_id.as_str(), "the newest first");
    let next = format!("tenants?limit=1&cursor={}", first["next_cursor"].as_str().unwrap());
    assert_eq!(get(&app, &token, &next).await["data"][0]["id"], owner.tenant_id.as_str());
    for unknown in [shared::ids::TenantId::new().to_string(), "x".into()] {
        for action in ["suspend", "resume"] {
            post(&app, &token, &format!("tenants/{unknown}/{action}")).await.assert_problem(404, "not-found");
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_drained_gives_its_sessions_to_another_and_gets_none(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let token = operator(&app).await;
    let one = FakeWorker::active(&app, "w1").await;
    one.beat().await;
    let program = Program::new(&app).await;
    let put = program.connected(&one).await;
    let id = &put.session_id;
    let worker = async |name: &str| {
        let workers = get(&app, &token, "workers").await;
        workers["data"].as_array().unwrap().iter().find(|worker| worker["id"] == name).unwrap().clone()
    };

    // Nowhere to go: it stays where it runs.
    let answer = post(&app, &token, "workers/w1/drain").await;
    assert_eq!((answer.status.as_u16(), answer.json()["schedulability"].as_str()), (200, Some("draining")));
    let waiting = program.session().await;
    program.status(&waiting, "starting").await;
    assert_eq!(program.get(&format!("sessions/{id}/status")).await.json()["status"], "connected");

    let two = FakeWorker::listening(&app, "w2", SigningKey::generate().unwrap(), one.store.clone()).await;
    two.come().await;
    two.beat().await;
    one.told(id, |put| put.desired == Desired::Stopped).await;
    one.report(id, Observed::Stopped { reason: None }).await;
    let moved = two.told(id, |put| put.desired == Desired::Running).await;
    assert!(moved.generation > put.generation);
    two.told(&waiting, |put| put.desired == Desired::Running).await;
    two.report(id, Observed::Connected).await;
    program.status(id, "connected").await;
    let drained = worker("w1").await;
    assert_eq!((drained["drained"].as_bool(), drained["assigned"].as_i64()), (Some(true), Some(0)), "{drained}");
    let on_two = get(&app, &token, "sessions?worker_id=w2").await;
    assert_eq!(on_two["data"].as_array().unwrap().len(), 2);
    assert_eq!(on_two["data"][1]["id"], id.as_str());
    assert_eq!(on_two["data"][1]["tenant_id"], program.tenant.as_str());

    assert_eq!(post(&app, &token, "workers/w1/uncordon").await.json()["schedulability"], "schedulable");
    assert_eq!(post(&app, &token, "workers/w2/cordon").await.json()["schedulability"], "cordoned");
    let third = program.session().await;
    one.told(&third, |put| put.desired == Desired::Running).await;
    assert_eq!(worker("w2").await["assigned"], 2, "a cordoned worker keeps what it has");
    post(&app, &token, "workers/w9/drain").await.assert_problem(404, "not-found");

    let overview = get(&app, &token, "overview").await;
    assert_eq!(overview["workers"]["assigned"], 3, "{overview}");
    assert_eq!(overview["sessions"]["connected"], 1, "{overview}");
    let detail = get(&app, &token, &format!("tenants/{}", program.tenant)).await;
    let counted = ["members", "api_keys", "sessions", "placed_sessions"].map(|name| detail[name].as_i64().unwrap());
    assert_eq!(counted, [1, 1, 3, 3], "{detail}");
    app.stop().await;
}

const WEBHOOK_SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_small_installation_has_its_tenant_from_settings(#[case] engine: Engine) {
    let keys = ["000", "111"].map(|_| shared_key());
    let Some(mut app) = TestApp::start_with(engine, |config| {
        config.bootstrap.api_key = Some(keys[0].as_str().into());
        config.bootstrap.webhook_url = Some("https://hooks.example.com/a".parse().unwrap());
        config.bootstrap.webhook_secret = Some(WEBHOOK_SECRET.into());
    })
    .await
    else {
        return;
    };
    let tenant = async |app: &TestApp, key: &str| Answer::of(app.get("/api/v1/tenant").bearer_auth(key)).await;
    let first = tenant(&app, &keys[0]).await;
    assert_eq!((first.status.as_u16(), first.json()["name"].as_str()), (200, Some("default")), "{first:?}");
    let hooks = Answer::of(app.get("/api/v1/webhooks").bearer_auth(&keys[0])).await.json();
    assert_eq!(hooks["data"].as_array().unwrap().len(), 1);
    assert_eq!(hooks["data"][0]["url"], "https://hooks.example.com/a");
    assert_eq!(hooks["data"][0]["event_types"], json!([]), "all");

    // Another start changes nothing.
    app.replica().await;
    bootstrap::establish(app.app()).await.unwrap();
    for table in ["tenants", "api_keys", "webhooks"] {
        assert_eq!(app.count(&format!("SELECT COUNT(*) FROM {table}")).await, 1, "{table}");
    }

    // Another key takes its place, another URL too, and going back works.
    for (key, other, url) in
        [(&keys[1], &keys[0], "https://hooks.example.com/b"), (&keys[0], &keys[1], "https://c.example")]
    {
        app.replica_with(|config| {
            config.bootstrap.api_key = Some(key.as_str().into());
            config.bootstrap.webhook_url = Some(url.parse().unwrap());
        })
        .await;
        assert_eq!(tenant(&app, key).await.json()["id"], first.json()["id"]);
        tenant(&app, other).await.assert_problem(401, "unauthenticated");
        let hooks = Answer::of(app.get("/api/v1/webhooks").bearer_auth(key)).await.json();
        assert!(hooks["data"][0]["url"].as_str().unwrap().starts_with(url), "{hooks}");
    }
    app.stop().await;
}

fn shared_key() -> String {
    control_plane::keys::new_key(shared::wire::session::Network::Sandbox).expose_secret().to_owned()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_seeded_works_and_is_seeded_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let planted = seed::plant(app.app()).await.unwrap().unwrap();
    let body = json!({"email": seed::EMAIL, "password": planted.password.expose_secret()});
    assert_eq!(Answer::of(app.post("/api/v1/auth/login", &body)).await.status, 200);
    let key = planted.api_key.expose_secret();
    assert_eq!(Answer::of(app.get("/api/v1/sessions").bearer_auth(key)).await.status, 200);
    assert!(seed::plant(app.app()).await.unwrap().is_none());
    app.stop().await;
}

/// On SQLite nothing of a log-in goes on while somebody else writes, so this can be arranged on PostgreSQL only.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_the_old_password_that_is_under_way_does_not_outlive_the_change() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    operator(&app).await;
    let tx = app.app().db.write().await.unwrap();
    let change = "UPDATE operators SET password_hash = password_hash || 'x'";
    sea_orm::ConnectionTrait::execute_unprepared(&tx, change).await.unwrap();
    let committed = async {
        // Passwords are compared in turns: after so many others, that one was compared.
        for _ in 0..8 {
            log_in_with(&app, "not the password").await.assert_problem(401, "invalid-credentials");
        }
        tx.commit().await.unwrap();
    };
    let (late, ()) = tokio::join!(log_in_with(&app, PASSWORD), committed);
    late.assert_problem(401, "invalid-credentials");
    app.stop().await;
}
