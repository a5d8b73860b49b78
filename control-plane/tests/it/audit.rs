//! The audit log: sealed without gaps, verified, read, and kept apart.

use control_plane::{
    ControlPlane,
    audit::{
        self,
        heads::{self, Heads},
        verify::{Report, Wrong, verify},
    },
    state::App,
};
use reqwest::Method;
use rstest::rstest;
use sea_orm::{ConnectionTrait, Statement};
use serde_json::{Value, json};
use shared::ids::{SessionId, TenantId};

use crate::{
    fleet::Program,
    harness::{Answer, Engine, TestApp},
    operators,
    parts::{Parts, eventually, execute, number},
};

/// Rows of the installation's log, by a way that needs no server.
async fn some_rows(app: &App, count: usize) {
    for n in 0..count {
        audit::system(&app.audit, app.db.autocommit(), &TenantId::nil(), "test", ("thing", &n.to_string()))
            .await
            .unwrap();
    }
}

async fn checked(app: &App, heads: &Heads) -> Report {
    verify(app.db.read(), &app.audit, None, heads).await.unwrap()
}

async fn wrong(app: &App, heads: &Heads) -> Vec<Wrong> {
    checked(app, heads).await.wrong.into_iter().map(|(_, wrong)| wrong).collect()
}

async fn id_at(app: &App, position: i64) -> String {
    let of = format!("SELECT id FROM audit_log WHERE position = {position}");
    let row = app.db.read().query_one_raw(Statement::from_string(app.db.engine(), of)).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

async fn exported(app: &App) -> Heads {
    heads::export(app).await.unwrap();
    let heads = Heads::of_last_days(&app.audit, &app.objects, 1).await.unwrap();
    assert_eq!(heads.files, 1);
    heads
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_seal_at_once_leave_one_chain_without_gaps(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let replicas = [parts.replica().await, parts.replica().await, parts.replica().await];
    for round in 0..3 {
        some_rows(&replicas[0], 400).await;
        eventually("all is sealed", async || {
            for sealed in futures_util::future::join_all(replicas.iter().map(audit::seal)).await {
                // SQLite has one writer; PostgreSQL's waits end.
                sealed.unwrap();
            }
            number(&replicas[0], "SELECT COUNT(*) FROM audit_log WHERE position IS NULL").await == 0
        })
        .await;
        let expected = 400 * (round + 1);
        let app = &replicas[0];
        assert_eq!(number(app, "SELECT COUNT(DISTINCT position) FROM audit_log").await, expected);
        assert_eq!(number(app, "SELECT MAX(position) FROM audit_log").await, expected);
        let report = checked(app, &Heads::default()).await;
        assert_eq!((report.rows, report.wrong.len()), (u64::try_from(expected).unwrap(), 0), "{report:?}");
    }
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_changed_removed_or_inserted_is_found(#[case] engine: Engine) {
    for change in [
        "UPDATE audit_log SET resource_id = 'other' WHERE position = 5",
        "UPDATE audit_log SET at = at + 1 WHERE position = 5",
        "UPDATE audit_log SET actor_type = 'user' WHERE position = 5",
        "UPDATE audit_log SET replayed = TRUE WHERE position = 5",
        "UPDATE audit_log SET status = 200 WHERE position = 5",
        "UPDATE audit_log SET link = (SELECT link FROM audit_log WHERE position = 4) WHERE position = 5",
    ] {
        let Some(parts) = Parts::new(engine).await else { return };
        let app = parts.replica().await;
        some_rows(&app, 12).await;
        audit::seal(&app).await.unwrap();
        assert_eq!(wrong(&app, &Heads::default()).await, []);
        assert_eq!(execute(&app, change, []).await, 1);
        let found = wrong(&app, &Heads::default()).await;
        assert!(found.contains(&Wrong::Changed(5, id_at(&app, 5).await)), "{change}: {found:?}");
        drop(app);
        parts.remove().await;
    }
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    some_rows(&app, 12).await;
    audit::seal(&app).await.unwrap();

    execute(&app, "DELETE FROM audit_log WHERE position = 1", []).await;
    execute(&app, "DELETE FROM audit_log WHERE position IN (5, 6)", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Removed(1, 1), Wrong::Removed(5, 6)]);
    drop(app);
    parts.remove().await;

    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    some_rows(&app, 12).await;
    audit::seal(&app).await.unwrap();
    // Whoever can write into the table makes room and puts a copy there.
    execute(&app, "UPDATE audit_log SET position = -position - 1 WHERE position >= 6", []).await;
    execute(&app, "UPDATE audit_log SET position = -position WHERE position < 0", []).await;
    let columns = "tenant_id, actor_type, operation, resource_type, resource_id, result, replayed, at, mac, link";
    let copy = |id: &str, position: &str| {
        format!(
            "INSERT INTO audit_log (id, phase, position, {columns}) SELECT '{id}', phase, {position}, {columns} \
             FROM audit_log WHERE position = 2"
        )
    };
    execute(&app, &copy("aud_inserted", "6"), []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Inserted(Some(6), "aud_inserted".into())]);
    execute(&app, "DELETE FROM audit_log WHERE id = 'aud_inserted'", []).await;
    execute(&app, "UPDATE audit_log SET position = 1 - position WHERE position >= 7", []).await;
    execute(&app, "UPDATE audit_log SET position = -position WHERE position < 0", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, []);

    // Where the chain isn't walked.
    for position in ["0", "-5"] {
        execute(&app, &copy("aud_below", position), []).await;
        let below = Wrong::Inserted(Some(position.parse().unwrap()), "aud_below".into());
        assert_eq!(wrong(&app, &Heads::default()).await, [below]);
        execute(&app, "DELETE FROM audit_log WHERE id = 'aud_below'", []).await;
    }
    execute(&app, &copy("", "NULL"), []).await;
    execute(&app, "UPDATE audit_log SET phase = '' WHERE id = ''", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Inserted(None, String::new())]);
    execute(&app, "DELETE FROM audit_log WHERE id = ''", []).await;

    // One that waits to be sealed, before and after it is.
    execute(&app, &copy("aud_waiting", "NULL"), []).await;
    execute(&app, "UPDATE audit_log SET link = NULL WHERE id = 'aud_waiting'", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Inserted(None, "aud_waiting".into())]);
    audit::seal(&app).await.unwrap();
    some_rows(&app, 3).await;
    audit::seal(&app).await.unwrap();
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Inserted(Some(13), "aud_waiting".into())]);
    drop(app);
    parts.remove().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_cut_off_is_found_by_the_heads(#[case] engine: Engine) {
    let Some(parts) = Parts::new(engine).await else { return };
    let app = parts.replica().await;
    some_rows(&app, 10).await;
    audit::seal(&app).await.unwrap();
    let heads = exported(&app).await;
    assert_eq!(wrong(&app, &heads).await, []);
    some_rows(&app, 2).await;
    audit::seal(&app).await.unwrap();
    assert_eq!(wrong(&app, &heads).await, []);

    // Cut off, and the database's own word of where it ends changed to fit.
    execute(&app, "DELETE FROM audit_log WHERE position > 7", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Removed(8, 12)]);
    execute(&app, "UPDATE audit_heads SET position = 7, link = (SELECT link FROM audit_log WHERE position = 7)", [])
        .await;
    assert_eq!(wrong(&app, &Heads::default()).await, [], "nothing in the database tells");
    assert_eq!(wrong(&app, &heads).await, [Wrong::Removed(8, 10)]);
    // And going on from there doesn't hide it.
    some_rows(&app, 9).await;
    audit::seal(&app).await.unwrap();
    assert_eq!(wrong(&app, &Heads::default()).await, []);
    assert_eq!(wrong(&app, &heads).await, [Wrong::Replaced(10)]);

    let folder = parts.folder().join("objects/audit/heads");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    let mut forged = Heads::default();
    forged.add(&app.audit, text.replace("\"position\":10", "\"position\":7").as_bytes()).unwrap();
    assert_eq!(wrong(&app, &forged).await, [Wrong::Heads(1)]);
    execute(&app, "DELETE FROM audit_heads", []).await;
    assert_eq!(wrong(&app, &Heads::default()).await, [Wrong::Head(0)]);
    drop(app);
    parts.remove().await;
}

async fn log(app: &TestApp, token: &str, query: &str) -> Vec<Value> {
    let answer = Answer::of(app.get(&format!("/api/v1/audit-log{query}")).bearer_auth(token)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["data"].as_array().unwrap().clone()
}

async fn settled(app: &TestApp) {
    eventually("all outcomes are written", async || {
        app.count("SELECT COUNT(*) FROM audit_log WHERE phase = 'intent'").await
            == app.count("SELECT COUNT(*) FROM audit_log WHERE phase LIKE 'outcome%'").await
    })
    .await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn owners_and_admins_search_their_own_log(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let admin = app.colleague(&owner, "admin").await;
    let body = json!({"name": "k", "network": "sandbox", "scopes": ["webhooks"]});
    let create =
        |key: &str| app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token).header("idempotency-key", key);
    let made = Answer::of(create("one")).await;
    assert_eq!(made.status, 201, "{made:?}");
    let key = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(Answer::of(create("one")).await.header("idempotent-replayed"), Some("true"));
    let gone = app.request(Method::DELETE, &format!("/api/v1/api-keys/{key}")).bearer_auth(&admin.access_token);
    assert_eq!(Answer::of(gone).await.status, 204);
    let foreign = app.request(Method::DELETE, &format!("/api/v1/api-keys/{key}")).bearer_auth(&stranger.access_token);
    assert_eq!(Answer::of(foreign).await.status, 404);
    settled(&app).await;

    let all = log(&app, &owner.access_token, "").await;
    let operations: Vec<_> = all.iter().map(|entry| entry["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["delete_api_key", "create_api_key", "create_api_key", "log_in", "sign_up"]);
    let [deleted, replayed, created, logged_in, signed_up] = &all[..] else { panic!("{all:?}") };
    assert_eq!(deleted["actor"], json!({"type": "user", "id": admin.user_id}));
    assert_eq!(deleted["resource"], json!({"type": "api_key", "id": key}));
    assert_eq!((&deleted["status"], &deleted["outcome"]), (&json!(204), &json!("succeeded")));
    assert_eq!((&replayed["replayed"], &created["replayed"]), (&json!(true), &json!(false)));
    assert_eq!((&created["resource"]["id"], &created["tenant_id"]), (&json!(key), &json!(owner.tenant_id)));
    assert_eq!(logged_in["actor"]["id"], admin.user_id);
    assert_eq!(signed_up["resource"], json!({"type": "tenant", "id": owner.tenant_id}));
    assert_eq!(created["request_id"].as_str(), made.header("x-request-id"));
    eventually("they have positions", async || {
        log(&app, &owner.access_token, "").await.iter().all(|entry| entry["position"].is_i64())
    })
    .await;

    let figures = app.figures().await.text;
    for figure in ["audit_rows_to_seal", "audit_oldest_to_seal_seconds", "audit_rows_sealed_total"] {
        assert!(figures.contains(&format!("\n{figure} ")), "{figure}");
    }

    let found = async |query: String| log(&app, &owner.access_token, &query).await.len();
    assert_eq!(found(format!("?actor={}", admin.user_id)).await, 2);
    assert_eq!(found("?operation=create_api_key".into()).await, 2);
    assert_eq!(found(format!("?resource={key}")).await, 3);
    assert_eq!(found(format!("?resource={key}&operation=delete_api_key&outcome=succeeded")).await, 1);
    assert_eq!(found("?outcome=refused".into()).await, 0);
    assert_eq!(found("?outcome=unknown".into()).await, 0);
    assert_eq!(found("?to=2001-01-01T00:00:00Z".into()).await, 0);
    assert_eq!(found("?from=2001-01-01T00:00:00Z".into()).await, 5);
    let first = Answer::of(app.get("/api/v1/audit-log?limit=3").bearer_auth(&admin.access_token)).await.json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = log(&app, &admin.access_token, &format!("?limit=3&cursor={cursor}")).await;
    assert_eq!((first["data"].as_array().unwrap().len(), rest.len()), (3, 2));
    assert_eq!(log(&app, &stranger.access_token, "?outcome=refused").await.len(), 1, "in the log of who asked");

    // A process that dies between the two leaves an intent.
    app.sql("DELETE FROM audit_log WHERE operation = 'delete_api_key' AND phase = 'outcome'", []).await;
    let unknown = log(&app, &owner.access_token, "?outcome=unknown").await;
    assert_eq!(unknown.len(), 1);
    assert_eq!((&unknown[0]["outcome"], &unknown[0]["status"]), (&json!("unknown"), &Value::Null));
    assert!(unknown[0]["completed_at"].is_null());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_recorded_by_one_row_in_its_own_transaction(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let program = Program::new(&app).await;
    let session = program.session().await;
    let body = json!({"session_id": session, "to": "+15550001234", "type": "text", "text": {"body": "hello"}});
    let send = || app.post("/api/v1/messages/send", &body).bearer_auth(&program.key).header("idempotency-key", "one");
    let of_sends = "SELECT COUNT(*) FROM audit_log WHERE operation = 'send_message'";
    let taken = Answer::of(send()).await;
    assert_eq!((taken.status.as_u16(), app.count(of_sends).await), (202, 1), "{taken:?}");
    let row = format!("{of_sends} AND phase = 'sole' AND status = 202 AND resource_id");
    assert_eq!(app.count(&format!("{row} = '{}'", taken.json()["id"].as_str().unwrap())).await, 1);

    assert_eq!(Answer::of(send()).await.header("idempotent-replayed"), Some("true"));
    let replayed = format!("{of_sends} AND replayed");
    eventually("the replay is recorded", async || app.count(&replayed).await == 1).await;

    let none = SessionId::new();
    program.send(&none, "+15550001234", "hello").await.assert_problem(404, "not-found");
    let refused = format!("{of_sends} AND status = 404 AND result = 'refused'");
    eventually("the refusal is recorded", async || app.count(&refused).await == 1).await;
    assert_eq!(app.count(of_sends).await, 3);

    // Without its row no message is taken.
    app.sql("ALTER TABLE audit_log RENAME TO audit_log_away", []).await;
    assert_eq!(program.send(&session, "+15550001234", "hello").await.status, 500);
    app.sql("ALTER TABLE audit_log_away RENAME TO audit_log", []).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM messages").await, 1);
    app.stop_after_errors().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn operators_read_what_they_and_commands_did_and_who_failed_to_log_in(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"email": owner.email, "password": "not the password"});
    Answer::of(app.post("/api/v1/auth/login", &body)).await.assert_problem(401, "invalid-credentials");
    let token = operators::operator(&app).await;
    let suspend = app.request(Method::POST, &format!("/api/v1/admin/tenants/{}/suspend", owner.tenant_id));
    assert_eq!(Answer::of(suspend.bearer_auth(&token)).await.status, 200);
    audit::command::recorded(&app.app().audit, &app.app().db, "rotate_keys", async { Ok(()) }).await.unwrap();
    settled(&app).await;
    let read = async |query: &str| {
        let answer = Answer::of(app.get(&format!("/api/v1/admin/audit-log{query}")).bearer_auth(&token)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"].as_array().unwrap().clone()
    };
    let all = read("").await;
    let [command, suspended, operator_in, failed, signed_up] = &all[..] else { panic!("{all:?}") };
    assert_eq!(
        (&command["actor"], &command["operation"]),
        (&json!({"type": "command", "id": null}), &json!("rotate_keys"))
    );
    assert_eq!(suspended["actor"]["type"], "operator");
    assert_eq!(suspended["resource"], json!({"type": "tenant", "id": owner.tenant_id}));
    assert_eq!((&operator_in["operation"], &operator_in["actor"]), (&json!("log_in_operator"), &suspended["actor"]));
    assert_eq!((&failed["outcome"], &failed["problem"]), (&json!("refused"), &json!("invalid-credentials")));
    assert_eq!((&failed["actor"], &failed["resource"]["id"]), (&Value::Null, &json!(owner.user_id)));
    assert_eq!((&signed_up["tenant_id"], &signed_up["status"]), (&json!(owner.tenant_id), &json!(201)));
    let of_tenant = read(&format!("?tenant_id={}", owner.tenant_id)).await;
    assert_eq!(of_tenant.len(), 1);
    assert_eq!(of_tenant[0]["operation"], "sign_up");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_recorded_is_not_done(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    settled(&app).await;
    app.sql("ALTER TABLE audit_log RENAME TO audit_log_away", []).await;
    let body = json!({"name": "k", "network": "sandbox", "scopes": ["webhooks"]});
    let create = || app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token);
    Answer::of(create()).await.assert_problem(503, "unavailable");
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 0);
    let list = app.get("/api/v1/api-keys").bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(list).await.status, 200, "reading goes on");
    app.sql("ALTER TABLE audit_log_away RENAME TO audit_log", []).await;
    assert_eq!(Answer::of(create()).await.status, 201);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_outcomes_are_written_before_the_process_stops() {
    let Some(parts) = Parts::new(Engine::Sqlite).await else { return };
    let server = ControlPlane::start(parts.config()).await.unwrap();
    let url = format!("http://{}/api/v1/auth/signup", server.public_address());
    for n in 0..5 {
        let body = json!({"email": format!("{n}@example.com"), "password": "correct horse battery", "name": "A", "tenant_name": "A"});
        let sent = reqwest::Client::new().post(&url).json(&body).send().await.unwrap();
        assert_eq!(sent.status(), 201);
    }
    server.shutdown().await;
    let app = parts.replica().await;
    assert_eq!(number(&app, "SELECT COUNT(*) FROM audit_log WHERE phase LIKE 'outcome%'").await, 5);
    drop(app);
    parts.remove().await;
}
