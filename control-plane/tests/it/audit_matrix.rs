//! Every operation of the OpenAPI document that may change something leaves its record in the audit log, and nothing else does.
//!
//! Made from the document (see [`crate::operations`]): an operation that is added is driven too, as its caller may and as one who may not,
//! and the test fails when it can't be driven to a success.

use std::collections::BTreeSet;

use control_plane::{
    auth::{Role, Scope},
    operators::{self, NewOperator},
};
use reqwest::RequestBuilder;
use rstest::rstest;
use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use serde_json::{Value, json};
use shared::{
    identity::SigningKey,
    ids::{EventId, TenantId, UserId},
    time::Timestamp,
    wire::{
        linking::Passkey,
        session::Observed,
        worker::{Join, ReAttach},
    },
};

use crate::{
    fleet::FakeWorker,
    harness::{Answer, Engine, TestApp, mail_links},
    mail,
    operations::{Access, Mint, Operation, World, key_body, operations, unknown},
    parts::eventually,
    second_factor::Device,
};

/// What callers send that must never be found in the log.
const SENTINELS: [&str; 12] = [
    "15550001234",
    "Your table is ready",
    "correct horse",
    "@example.com",
    "sbr_",
    "sbm_",
    "sbi_",
    "sbo_",
    "sb_live_",
    "sb_test_",
    "sentinel",
    "eyJ",
];

#[derive(Debug, FromQueryResult)]
struct Row {
    id: String,
    phase: String,
    tenant_id: String,
    actor_type: Option<String>,
    actor_id: Option<String>,
    operation: String,
    resource_type: Option<String>,
    resource_id: Option<String>,
    result: Option<String>,
    status: Option<i32>,
    problem: Option<String>,
    address: Option<String>,
    replayed: bool,
}

async fn rows(app: &TestApp, request: &str) -> Vec<Row> {
    let db = &app.app().db;
    let of = "SELECT * FROM audit_log WHERE request_id = $1 ORDER BY phase";
    let statement = Statement::from_sql_and_values(db.engine(), of, [request.into()]);
    Row::find_by_statement(statement).all(db.read()).await.unwrap()
}

/// The rows of a request, once all are there.
async fn recorded(app: &TestApp, request: &str, expected: usize) -> Vec<Row> {
    let mut found = Vec::new();
    eventually("the rows of a request are written", async || {
        found = rows(app, request).await;
        found.len() >= expected
    })
    .await;
    assert_eq!(found.len(), expected, "{found:?}");
    found
}

/// Who is to be named.
struct Who {
    token: Option<String>,
    tenant: String,
    actor: Option<(&'static str, String)>,
}

/// Sends a request with an id of its own and things that must not be recorded.
async fn ask(request: RequestBuilder) -> (Answer, String) {
    let id = uuid::Uuid::now_v7().to_string();
    let request = request
        .header("x-request-id", &id)
        .header("user-agent", "sentinel +15550001234")
        .header("x-forwarded-for", "203.0.113.77");
    (Answer::of(request).await, id)
}

/// Looks at the record of one request.
async fn check(app: &TestApp, operation: &Operation, who: &Who, answer: &Answer, (path, request): (&str, &str)) {
    let what = &operation.id;
    let is_open = matches!(operation.access, Access::Open);
    let rows = recorded(app, request, if what == "send_message" { 1 } else { 2 }).await;
    let last = rows.last().unwrap();
    let status = answer.status.as_u16();
    let result = if status < 400 { "succeeded" } else { "refused" };
    if what == "send_message" {
        assert_eq!(last.phase, "sole", "{rows:?}");
    } else {
        let [intent, outcome] = &rows[..] else { panic!("{rows:?}") };
        let outcomes = if intent.tenant_id == outcome.tenant_id { "outcome" } else { "outcome_elsewhere" };
        assert_eq!((intent.phase.as_str(), outcome.phase.as_str()), ("intent", outcomes), "{rows:?}");
        assert_eq!(intent.id, outcome.id);
        assert_eq!((&intent.result, intent.status, &intent.problem), (&None, None, &None), "{what}");
        let expected = if is_open { TenantId::nil().to_string() } else { who.tenant.clone() };
        assert_eq!(intent.tenant_id, expected, "{what}");
        if !is_open {
            assert_eq!(intent.actor_id, who.actor.as_ref().map(|(_, id)| id.clone()), "{what}");
        }
    }
    assert_eq!(last.tenant_id, who.tenant, "{what}: {rows:?}");
    let actor = last.actor_type.clone().zip(last.actor_id.clone());
    assert_eq!(actor, who.actor.as_ref().map(|(kind, id)| ((*kind).to_owned(), id.clone())), "{what}: {rows:?}");
    assert_eq!((last.status, last.result.as_deref()), (Some(i32::from(status)), Some(result)), "{what}: {answer:?}");
    let problem = (status >= 400).then(|| answer.json()["type"].as_str().unwrap().replace("/problems/", ""));
    assert_eq!(last.problem, problem, "{what}");
    assert!(!last.replayed);
    for row in &rows {
        assert_eq!(&row.operation, what);
        assert_eq!(row.address.as_deref(), Some("127.0.0.0/24"), "{what}");
    }
    // What the path names, or else the answer.
    let named = operation.path.split('/').zip(path.split('/')).find(|(part, _)| part.starts_with('{'));
    let named = match named {
        Some((_, id)) => Some(id.to_owned()),
        None if status < 400 && !answer.text.is_empty() => answer.json()["id"].as_str().map(str::to_owned),
        None => None,
    };
    if let Some(named) = named {
        assert_eq!(last.resource_id.as_deref(), Some(named.as_str()), "{what}: {rows:?}");
        assert!(last.resource_type.is_some());
    }
}

/// The token of the mail that a request asks for.
async fn mailed(app: &TestApp, asking: impl Future<Output = ()>) -> String {
    mail::settled(app).await;
    let before = mail_links().len();
    asking.await;
    eventually("the mail is written", async || mail_links().len() > before).await;
    let link = mail_links().pop().unwrap();
    link.split("token=").nth(1).unwrap().trim_matches('"').to_owned()
}

/// Readies a world for an operation to succeed in, and says who calls it with what.
async fn ready(mint: &Mint<'_>, worker: &FakeWorker, world: &World, operation: Operation) -> (Operation, Who) {
    let app = mint.app;
    let (owner, tenant) = (&world.owner, world.tenant.as_str());
    let email = format!("{}@example.com", owner.user_id);
    let password = "correct horse battery";
    let log_in = async || {
        let body = json!({"email": email, "password": password});
        let answer = Answer::of(app.post("/api/v1/auth/login", &body)).await;
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json()
    };
    let post = async |path: &str, body: Value| {
        let answer = Answer::of(app.post(path, &body).bearer_auth(&owner.token)).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        answer.json()
    };
    let enrolled = async || post("/api/v1/me/totp", json!({"password": password})).await["secret"].clone();
    let switched_on = async || {
        let device = Device::new(&enrolled().await);
        let confirm = async |code: String| {
            let request = app.post("/api/v1/me/totp/confirm", &json!({"code": code}));
            Answer::of(request.bearer_auth(&owner.token)).await
        };
        let on = device.use_up(confirm).await;
        assert!(on.status.is_success(), "{on:?}");
        device
    };
    let user = |id: &str| Some(("user", id.to_owned()));
    let as_owner = || Who { token: Some(owner.token.clone()), tenant: tenant.to_owned(), actor: user(&owner.user_id) };
    let open =
        |tenant: &str, actor: Option<&str>| Who { token: None, tenant: tenant.into(), actor: actor.and_then(user) };
    let nobody = TenantId::nil().to_string();
    match operation.id.as_str() {
        "create_webhook" => {
            app.sql("DELETE FROM deliveries WHERE tenant_id = $1", [tenant.into()]).await;
            app.sql("DELETE FROM webhooks WHERE tenant_id = $1", [tenant.into()]).await;
            (operation, as_owner())
        }
        "create_pairing_code" | "answer_session_passkey" => {
            let session = world.id("ses").parse().unwrap();
            post(&format!("/api/v1/sessions/{session}/start"), json!(null)).await;
            worker.told(&session, |_| true).await;
            let (observed, wanted) = if operation.id == "create_pairing_code" {
                (Observed::Pairing, "pairing")
            } else {
                (Observed::PasskeyRequired, "passkey_required")
            };
            worker.report(&session, observed).await;
            let path = format!("/api/v1/sessions/{session}/status");
            eventually(wanted, async || {
                Answer::of(app.get(&path).bearer_auth(&owner.token)).await.json()["status"] == wanted
            })
            .await;
            worker.link_with(|linking| linking.asked = Some(Passkey::Confirmation { code: "ABCD-1234".into() }));
            if wanted == "pairing" {
                return (operation, as_owner());
            }
            (operation.with_body(json!({"stage": "confirmation"})), as_owner())
        }
        "send_message" | "restart_session" => {
            app.sql("UPDATE sessions SET desired = 'running' WHERE tenant_id = $1", [tenant.into()]).await;
            (operation, as_owner())
        }
        "log_in" => {
            let body = json!({"email": email, "password": password});
            (operation.with_body(body), open(tenant, Some(&owner.user_id)))
        }
        "log_in_with_code" => {
            let device = switched_on().await;
            let body = json!({"challenge_token": log_in().await["challenge_token"], "code": device.code(0)});
            (operation.with_body(body), open(tenant, Some(&owner.user_id)))
        }
        "refresh_tokens" | "log_out" => {
            let body = json!({"refresh_token": log_in().await["refresh_token"]});
            (operation.with_body(body), open(tenant, Some(&owner.user_id)))
        }
        "forgot_password" => (operation.with_body(json!({"email": email})), open(&nobody, None)),
        "reset_password" => {
            let asking = async || {
                let answer = Answer::of(app.post("/api/v1/auth/password/forgot", &json!({"email": email}))).await;
                assert_eq!(answer.status, 202, "{answer:?}");
            };
            let body = json!({"token": mailed(app, asking()).await, "password": "another horse battery"});
            (operation.with_body(body), open(&nobody, Some(&owner.user_id)))
        }
        "verify_email" => {
            let asking = async || {
                let ask = app.request(reqwest::Method::POST, "/api/v1/me/verify-email").bearer_auth(&owner.token);
                assert_eq!(Answer::of(ask).await.status, 202);
            };
            let body = json!({"token": mailed(app, asking()).await});
            (operation.with_body(body), open(&nobody, Some(&owner.user_id)))
        }
        "sign_up" => {
            let email = format!("{}@example.com", UserId::new());
            let body = json!({"email": email, "password": password, "name": "sentinel", "tenant_name": "sentinel"});
            // Who that is, the answer says.
            (operation.with_body(body), open("", None))
        }
        "accept_invitation" => {
            let asking = async || {
                post("/api/v1/invitations", json!({"email": "lin@example.com", "role": "viewer"})).await;
            };
            let body = json!({"token": mailed(app, asking()).await, "name": "sentinel", "password": password});
            (operation.with_body(body), open(tenant, None))
        }
        "keep_tenant" => {
            post("/api/v1/tenant/deletion", json!({"password": password})).await;
            (operation, as_owner())
        }
        "confirm_second_factor" => {
            let device = Device::new(&enrolled().await);
            (operation.with_body(json!({"code": device.code(0)})), as_owner())
        }
        "disable_second_factor" | "renew_recovery_codes" => {
            switched_on().await;
            (operation, as_owner())
        }
        "accept_ownership" | "leave_tenant" => {
            let colleague = world.id("usr");
            let login = mint.login(tenant, &colleague).await;
            let token = Some(mint.token(tenant, &colleague, &login, 900));
            (operation, Who { token, tenant: tenant.into(), actor: user(&colleague) })
        }
        name if name.contains("operator") || matches!(operation.access, Access::Others) => {
            let (email, token, actor) = operator(app).await;
            let post = async |path: &str, body: Value| {
                let answer = Answer::of(app.post(&format!("/api/v1/admin/{path}"), &body).bearer_auth(&token)).await;
                assert!(answer.status.is_success(), "{path}: {answer:?}");
                answer.json()
            };
            let enrolled = async || Device::new(&post("me/totp", json!({"password": password})).await["secret"]);
            let switched_on = async || {
                let device = enrolled().await;
                let confirm = async |code: String| {
                    let request = app.post("/api/v1/admin/me/totp/confirm", &json!({"code": code}));
                    Answer::of(request.bearer_auth(&token)).await
                };
                let on = device.use_up(confirm).await;
                assert!(on.status.is_success(), "{on:?}");
                device
            };
            let log_in = json!({"email": email, "password": password});
            let operation = match name {
                "log_in_operator" => operation.with_body(log_in),
                "log_in_operator_with_code" => {
                    let device = switched_on().await;
                    let challenge = post("auth/login", log_in).await["challenge_token"].clone();
                    operation.with_body(json!({"challenge_token": challenge, "code": device.code(0)}))
                }
                "confirm_operator_second_factor" => {
                    let device = enrolled().await;
                    operation.with_body(json!({"code": device.code(0)}))
                }
                "disable_operator_second_factor" | "renew_operator_recovery_codes" => {
                    switched_on().await;
                    operation
                }
                "redrive_job" => {
                    // Only a delivery whose event is kept can be made.
                    let event = EventId::new();
                    let insert = "INSERT INTO events (id, tenant_id, type, occurred_at, sealed_data) \
                                  VALUES ($1, $2, 'message.received', $3, $4)";
                    let now = Timestamp::now().as_millis();
                    app.sql(insert, [event.as_str().into(), tenant.into(), now.into(), vec![0_u8].into()]).await;
                    let its = "UPDATE deliveries SET event_id = $1 WHERE id = $2";
                    app.sql(its, [event.as_str().into(), world.id("dlv").into()]).await;
                    operation
                }
                "cancel_job" => {
                    let wait =
                        "UPDATE jobs SET state = 'ready', attempts = 0, run_at = $1, finished_at = NULL WHERE id = $2";
                    let late = Timestamp::now().as_millis() + 3_600_000;
                    app.sql(wait, [late.into(), world.id("job").into()]).await;
                    operation
                }
                "move_session" => {
                    let session = world.id("ses").parse().unwrap();
                    let start = format!("/api/v1/sessions/{session}/start");
                    let start = app.request(reqwest::Method::POST, &start).bearer_auth(&owner.token);
                    assert!(Answer::of(start).await.status.is_success());
                    worker.told(&session, |_| true).await;
                    // A worker that takes this tenant's sessions only.
                    let key = SigningKey::generate().unwrap();
                    let other = FakeWorker::listening(app, "worker-2", key, worker.store.clone()).await;
                    let pool = Some("of-one".to_owned());
                    assert_eq!(other.join(&Join { pool, ..other.join_body() }).await.status, 200);
                    let attached = other.post("re-attach", &ReAttach { incarnation: other.incarnation() }).await;
                    assert_eq!(attached.status, 200, "{attached:?}");
                    let path = format!("/api/v1/admin/tenants/{tenant}/overrides");
                    let its = app.request(reqwest::Method::PUT, &path).json(&json!({"pool": "of-one"}));
                    assert_eq!(Answer::of(its.bearer_auth(&token)).await.status, 200);
                    operation
                }
                _ => operation,
            };
            let token = matches!(operation.access, Access::Others).then_some(token);
            (operation, Who { token, tenant: nobody, actor })
        }
        _ => (operation, as_owner()),
    }
}

/// A new operator: address, token, and who that is.
async fn operator(app: &TestApp) -> (String, String, Option<(&'static str, String)>) {
    let email = format!("{}@example.com", UserId::new());
    let password = "correct horse battery";
    let new = NewOperator { email: email.clone(), name: "sentinel".into(), password: password.into(), replace: false };
    let id = operators::create(app.app(), new).await.unwrap();
    let body = json!({"email": email, "password": password});
    let answer = Answer::of(app.post("/api/v1/admin/auth/login", &body)).await.json();
    (email, answer["access_token"].as_str().unwrap().to_owned(), Some(("operator", id.to_string())))
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn audit_matrix_every_operation_that_may_change_something_is_recorded_with_what_came_of_it(
    #[case] engine: Engine,
) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "worker-1").await;
    let mint = Mint::new(&app).await;
    let mut driven = BTreeSet::new();
    let mut failed = Vec::new();
    for operation in operations().into_iter().filter(Operation::writes) {
        driven.insert(operation.id.clone());
        // The whole takes longer than a worker may be silent.
        worker.beat().await;
        let world = World::new(&mint).await;
        let (operation, mut who) = ready(&mint, &worker, &world, operation).await;
        let id = |prefix: &str| world.id(prefix);
        let path = operation.request_parts(&id).0;
        let (answer, request) = ask(operation.request(&app, &id, who.token.as_deref())).await;
        if operation.id == "sign_up" {
            let text = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
            who = Who { token: None, tenant: text("tenant_id"), actor: Some(("user", text("user_id"))) };
        }
        if operation.id == "accept_invitation" {
            who.actor = Some(("user", answer.json()["user_id"].as_str().unwrap().to_owned()));
        }
        if !answer.status.is_success() {
            failed.push(operation.id.clone());
        }
        check(&app, &operation, &who, &answer, (&path, &request)).await;
    }
    assert!(driven.len() >= 50, "{driven:?}");
    assert!(failed.is_empty(), "not driven to a success, so `ready` has to: {failed:?}");
    nothing_but_ids(&app).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn audit_matrix_what_is_refused_is_recorded_too(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let viewer = mint.actor(&world.tenant, Role::Viewer).await;
    let (key_id, key) = world.api_key(&app, key_body(&[Scope::UsageRead])).await;
    let (_, of_operator, operator) = operator(&app).await;
    let mut forbidden = 0;
    for operation in operations().into_iter().filter(Operation::writes) {
        let who = match &operation.access {
            Access::Open => Who { token: None, tenant: TenantId::nil().to_string(), actor: None },
            Access::Others => {
                Who { token: Some(of_operator.clone()), tenant: TenantId::nil().to_string(), actor: operator.clone() }
            }
            Access::Tenant { roles, .. } if !roles.contains(&Role::Viewer) => Who {
                token: Some(viewer.token.clone()),
                tenant: world.tenant.clone(),
                actor: Some(("user", viewer.user_id.clone())),
            },
            Access::Tenant { .. } => {
                Who { token: Some(key.clone()), tenant: world.tenant.clone(), actor: Some(("key", key_id.clone())) }
            }
        };
        // Nothing that an operator asks for is forbidden, but it needn't exist; nor is anything to those who are nobody yet.
        let operation = match &operation.access {
            Access::Open => operation.with_body(json!({"sentinel": "+15550001234"})),
            _ => operation,
        };
        if matches!(operation.access, Access::Others) && !operation.path.contains('{') {
            continue;
        }
        let none = unknown("ten");
        let id = |prefix: &str| match operation.access {
            Access::Others => none.replace("ten", prefix),
            _ => world.id(prefix),
        };
        let path = operation.request_parts(&id).0;
        let (answer, request) = ask(operation.request(&app, &id, who.token.as_deref())).await;
        assert!(answer.status.is_client_error(), "{}: {answer:?}", operation.id);
        if matches!(operation.access, Access::Tenant { .. }) {
            assert_eq!(answer.status, 403, "{}: {answer:?}", operation.id);
            forbidden += 1;
        }
        check(&app, &operation, &who, &answer, (&path, &request)).await;
    }
    assert!(forbidden >= 30, "{forbidden}");
    // A path that is no id is not taken over, whatever it is.
    for method in [reqwest::Method::PATCH, reqwest::Method::DELETE] {
        let request = app.request(method, "/api/v1/sessions/+15550001234?q=sentinel").bearer_auth(&world.owner.token);
        let (answer, request) =
            ask(request.header("idempotency-key", "sentinel").json(&json!({"name": "sentinel"}))).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        let rows = recorded(&app, &request, 2).await;
        assert!(rows.iter().all(|row| row.resource_id.is_none()), "{rows:?}");
    }
    nothing_but_ids(&app).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn audit_matrix_reads_and_credentials_that_do_not_hold_leave_nothing(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let count = async || app.count("SELECT COUNT(*) FROM audit_log").await;
    // What making the world left.
    eventually("all outcomes are written", async || {
        app.count("SELECT COUNT(*) FROM audit_log WHERE phase = 'intent'").await
            == app.count("SELECT COUNT(*) FROM audit_log WHERE phase LIKE 'outcome%'").await
    })
    .await;
    let before = count().await;
    for operation in operations() {
        let real = |prefix: &str| world.id(prefix);
        if operation.writes() {
            if !matches!(operation.access, Access::Open) {
                for token in [None, Some("sb_live_sentinel"), Some("garbage")] {
                    operation.call(&app, &real, token).await;
                }
            }
        } else if !operation.path.ends_with("/metrics") {
            Answer::of(operation.request(&app, &real, Some(&world.owner.token))).await;
        }
    }
    // Whoever is recorded after them shows that theirs would have been written.
    let last = app.post("/api/v1/api-keys", &key_body(&[Scope::UsageRead])).bearer_auth(&world.owner.token);
    let (_, request) = ask(last).await;
    recorded(&app, &request, 2).await;
    assert_eq!(count().await, before + 2);
    app.stop().await;
}

/// No row holds anything of what callers sent.
async fn nothing_but_ids(app: &TestApp) {
    let db = &app.app().db;
    let all = "SELECT id, phase, tenant_id, actor_type, actor_id, operation, resource_type, resource_id, request_id, address, \
               result, problem FROM audit_log";
    let rows = db.read().query_all_raw(Statement::from_string(db.engine(), all)).await.unwrap();
    assert!(rows.len() > 50);
    for row in rows {
        for column in 0..12 {
            let text: Option<String> = row.try_get_by_index(column).unwrap();
            let text = text.unwrap_or_default();
            for sentinel in SENTINELS {
                assert!(!text.contains(sentinel), "{sentinel} in {text}");
            }
        }
    }
}
