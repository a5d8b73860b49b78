//! Deleting a tenant.

use control_plane::{
    audit::{
        self,
        heads::{self, Heads},
        verify::verify,
    },
    jobs::JobKind,
};
use reqwest::Method;
use rstest::rstest;
use sea_orm::{ConnectionTrait, Statement};
use serde_json::{Value, json};
use shared::{
    ids::ExportId,
    time::Timestamp,
    wire::session::{Desired, Observed, PutSession},
};

use crate::{
    exports::lines,
    fleet::FakeWorker,
    harness::{Answer, Engine, Owner, TestApp},
    ingest::text,
    operators::operator,
    parts::eventually,
};

const PATH: &str = "/api/v1/tenant/deletion";

async fn delete(app: &TestApp, who: &Owner, password: &str) -> Answer {
    Answer::of(app.post(PATH, &json!({"password": password})).bearer_auth(&who.access_token)).await
}

async fn keep(app: &TestApp, who: &Owner) -> Answer {
    Answer::of(app.request(Method::DELETE, PATH).bearer_auth(&who.access_token)).await
}

async fn get(app: &TestApp, who: &Owner, path: &str) -> Answer {
    Answer::of(app.get(path).bearer_auth(&who.access_token)).await
}

/// Waits for a condition while jobs of deletions and exports needn't wait for their time.
async fn hurried(app: &TestApp, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually(what, async || {
        app.sql("UPDATE jobs SET run_at = 0 WHERE kind LIKE 'tenants.%' AND state = 'ready'", []).await;
        app.app().bell.ring(JobKind::DeleteTenant);
        condition().await
    })
    .await;
}

/// Has the job of the only deletion look once how things stand, and waits until it has.
async fn look(app: &TestApp) {
    eventually("the job waits", async || {
        app.sql("UPDATE jobs SET run_at = 0 WHERE kind = 'tenants.delete' AND state = 'ready'", []).await == 1
    })
    .await;
    app.app().bell.ring(JobKind::DeleteTenant);
    eventually("the job has looked", async || {
        app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'tenants.delete' AND state = 'ready' AND run_at > 0").await
            == 1
    })
    .await;
}

/// As if the deletion had been asked for so much earlier.
async fn hours_pass(app: &TestApp, hours: i64) {
    let shift = "UPDATE tenants SET delete_at = delete_at - $1 WHERE status = 'deleting'";
    assert_eq!(app.sql(shift, [(hours * 3_600_000).into()]).await, 1);
}

/// The archives that are ready, the newest first.
async fn archives(app: &TestApp, who: &Owner) -> Vec<Vec<u8>> {
    let exports = get(app, who, "/api/v1/tenant/exports").await.json();
    let mut archives = Vec::new();
    for export in exports["data"].as_array().unwrap().iter().filter(|export| export["status"] == "ready") {
        let path = format!("/api/v1/tenant/exports/{}/archive", export["id"].as_str().unwrap());
        let file = app.get(&path).bearer_auth(&who.access_token).send().await.unwrap();
        archives.push(file.bytes().await.unwrap().to_vec());
    }
    archives
}

/// The texts of the messages in an archive, the newest first.
fn texts(archive: &[u8]) -> Vec<String> {
    let messages = lines(archive, "messages.jsonl");
    messages.iter().map(|message| message["text"]["body"].as_str().unwrap().to_owned()).collect()
}

/// A session that a worker has reported as connected, and of which it has shipped one message.
async fn connected(app: &TestApp, who: &Owner, worker: &FakeWorker) -> PutSession {
    let id = session(app, who).await.parse().unwrap();
    let put = worker.told(&id, |_| true).await;
    worker.report(&id, Observed::Connected).await;
    assert_eq!(worker.ship(&put, 1, &[text("A1", "early")]).await.status, 200);
    put
}

/// What both audit logs say of archives that were made without waiting any longer.
async fn archived_early(app: &TestApp) -> i64 {
    app.count("SELECT COUNT(*) FROM audit_log WHERE operation = 'tenant_archived_early'").await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_suspended_while_it_was_being_deleted_is_suspended_afterwards(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let operator = operator(&app).await;
    let by_operator = async |action: &str| {
        let path = format!("/api/v1/admin/tenants/{}/{action}", owner.tenant_id);
        let answer = Answer::of(app.request(Method::POST, &path).bearer_auth(&operator)).await;
        (answer.status.as_u16(), answer.json()["status"].clone(), answer.json()["suspended_meanwhile"].clone())
    };
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    assert_eq!(by_operator("suspend").await, (200, json!("deleting"), json!(true)));
    assert_eq!(by_operator("resume").await, (200, json!("deleting"), json!(false)));
    assert_eq!(by_operator("suspend").await, (200, json!("deleting"), json!(true)));
    let kept = keep(&app, &owner).await;
    assert_eq!((kept.status.as_u16(), &kept.json()["status"]), (200, &json!("suspended")), "{kept:?}");
    delete(&app, &owner, &owner.password).await.assert_problem(403, "tenant-suspended");
    assert_eq!(by_operator("resume").await, (200, json!("active"), json!(false)));
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    assert_eq!(keep(&app, &owner).await.json()["status"], "active", "what was decided once isn't remembered for ever");
    app.stop().await;
}

async fn has_archive(app: &TestApp, who: &Owner) -> bool {
    let exports = get(app, who, "/api/v1/tenant/exports").await.json();
    exports["data"].as_array().unwrap().iter().any(|export| export["status"] == "ready")
}

async fn session(app: &TestApp, who: &Owner) -> String {
    let body = json!({"name": "s", "network": "sandbox"});
    let made = Answer::of(app.post("/api/v1/sessions", &body).bearer_auth(&who.access_token)).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

/// Every table with a column of this name.
pub async fn tables_with(app: &TestApp, column: &str) -> Vec<String> {
    let db = &app.app().db;
    let query = if db.engine() == sea_orm::DbBackend::Postgres {
        "SELECT table_name AS name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = $1"
    } else {
        "SELECT tables.name AS name FROM sqlite_master tables JOIN pragma_table_info(tables.name) columns \
         WHERE tables.type = 'table' AND columns.name = $1"
    };
    let rows = db.read().query_all_raw(Statement::from_sql_and_values(db.engine(), query, [column.into()])).await;
    rows.unwrap().iter().map(|row| row.try_get("", "name").unwrap()).collect()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_stops_and_exports_first_and_can_be_taken_back_for_a_week(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let session = session(&app, &owner).await;
    keep(&app, &owner).await.assert_problem(409, "conflict");
    delete(&app, &owner, "not the password").await.assert_problem(403, "wrong-password");
    let begun = delete(&app, &owner, &owner.password).await;
    assert_eq!((begun.status.as_u16(), &begun.json()["status"]), (202, &json!("deleting")), "{begun:?}");
    assert!(begun.json()["delete_at"].is_string(), "{begun:?}");
    delete(&app, &owner, &owner.password).await.assert_problem(403, "tenant-suspended");
    let rename = app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"name": "x"}));
    Answer::of(rename.bearer_auth(&owner.access_token)).await.assert_problem(403, "tenant-suspended");
    hurried(&app, "there is an archive", async || has_archive(&app, &owner).await).await;
    let path = format!("/api/v1/sessions/{session}");
    assert_eq!(get(&app, &owner, &path).await.json()["desired"], "stopped");
    // Nothing more happens before the week is over, however often it is looked.
    for _ in 0..3 {
        app.sql("UPDATE jobs SET run_at = 0 WHERE kind = 'tenants.delete' AND state = 'ready'", []).await;
        app.app().bell.ring(JobKind::DeleteTenant);
        hurried(&app, "the job waits again", async || {
            let waiting = "SELECT COUNT(*) FROM jobs WHERE kind = 'tenants.delete' AND state = 'ready'";
            app.count(waiting).await == 1
        })
        .await;
    }
    let kept = keep(&app, &owner).await;
    assert_eq!((kept.status.as_u16(), &kept.json()["status"]), (200, &json!("active")), "{kept:?}");
    assert!(kept.json()["delete_at"].is_null(), "{kept:?}");
    hurried(&app, "the job ends", async || {
        app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'tenants.delete' AND state = 'done'").await == 1
    })
    .await;
    assert_eq!(get(&app, &owner, &path).await.json()["desired"], "stopped");
    let start = app.request(Method::POST, &format!("{path}/start")).bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(start).await.status, 202);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_ships_before_it_lets_go_is_in_the_archive(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let worker = FakeWorker::active(&app, "w1").await;
    let put = connected(&app, &owner, &worker).await;
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    let stopping = worker.told(&put.session_id, |put| put.desired == Desired::Stopped).await;
    // Told, but not at rest: nothing is archived, however often it is looked.
    for _ in 0..3 {
        look(&app).await;
        assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 0);
    }
    // One from before the worker's last word, as a deletion by an older version left it.
    let values = [
        ExportId::new().as_str().into(),
        owner.tenant_id.as_str().into(),
        owner.user_id.as_str().into(),
        Timestamp::now().into(),
        i64::MAX.into(),
    ];
    app.sql(
        "INSERT INTO exports (id, tenant_id, requested_by, status, created_at, finished_at, expires_at) \
         VALUES ($1, $2, $3, 'ready', $4, $4, $5)",
        values,
    )
    .await;
    assert_eq!(worker.ship(&stopping, 2, &[text("A2", "late")]).await.status, 200);
    worker.report(&put.session_id, Observed::Stopped { reason: None }).await;
    hurried(&app, "there is an archive of its own", async || {
        app.count("SELECT COUNT(*) FROM exports WHERE status = 'ready' AND bytes IS NOT NULL").await == 1
    })
    .await;
    app.sql("DELETE FROM exports WHERE bytes IS NULL", []).await;
    assert_eq!(texts(&archives(&app, &owner).await[0]), ["late", "early"]);
    look(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 1, "one is enough");
    assert_eq!(archived_early(&app).await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_the_worker_that_takes_over_ships_is_in_the_archive(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let lost = FakeWorker::active(&app, "w1").await;
    let put = connected(&app, &owner, &lost).await;
    let key = shared::identity::SigningKey::generate().unwrap();
    let other = FakeWorker::listening(&app, "w2", key, lost.store.clone()).await;
    other.come().await;
    other.beat().await;
    // It goes with rows in its store, and no word.
    drop(lost);
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    look(&app).await;
    app.app().fleet.listening.set(Timestamp::now().minus(std::time::Duration::from_secs(60)));
    app.sql("UPDATE workers SET last_beat_at = 0 WHERE id = 'w1'", []).await;
    let taken = other.told(&put.session_id, |put| put.desired == Desired::Stopped).await;
    assert!(taken.generation > put.generation, "{taken:?}");
    look(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 0, "it rests on no worker's word yet");
    assert_eq!(other.ship(&taken, 2, &[text("A2", "late")]).await.status, 200);
    other.report(&put.session_id, Observed::Stopped { reason: None }).await;
    hurried(&app, "there is an archive", async || has_archive(&app, &owner).await).await;
    assert_eq!(texts(&archives(&app, &owner).await[0]), ["late", "early"]);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_answers_delays_a_deletion_for_hours_only_and_both_logs_say_so(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let worker = FakeWorker::active(&app, "w1").await;
    let put = connected(&app, &owner, &worker).await;
    let silent = connected(&app, &owner, &worker).await;
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    hours_pass(&app, 5).await;
    look(&app).await;
    look(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 0);
    hours_pass(&app, 1).await;
    hurried(&app, "there is an archive", async || has_archive(&app, &owner).await).await;
    let first = archives(&app, &owner).await;
    assert_eq!((first.len(), texts(&first[0])), (1, vec!["early".to_owned(), "early".to_owned()]));
    let told = |entry: &Value| entry["operation"] == "tenant_archived_early" && entry["actor"]["type"] == "system";
    assert!(lines(&first[0], "audit-log.jsonl").iter().any(told), "the archive says so itself");
    assert_eq!(archived_early(&app).await, 2, "once in each log");
    look(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 1, "it is good enough while nobody comes back");

    // It comes back for one of the two: what it still had gets into another archive.
    let stopping = worker.told(&put.session_id, |put| put.desired == Desired::Stopped).await;
    assert_eq!(worker.ship(&stopping, 2, &[text("A2", "late")]).await.status, 200);
    worker.report(&put.session_id, Observed::Stopped { reason: None }).await;
    hurried(&app, "there is another archive", async || archives(&app, &owner).await.len() == 2).await;
    assert_eq!(texts(&archives(&app, &owner).await[0])[0], "late");
    // What goes on saying that it runs delays nothing.
    worker.report(&silent.session_id, Observed::Reconnecting).await;
    look(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM exports").await, 2);

    hours_pass(&app, 8 * 24).await;
    let left = format!("SELECT COUNT(*) FROM tenants WHERE id = '{}'", owner.tenant_id);
    hurried(&app, "the tenant is gone", async || app.count(&left).await == 0).await;
    assert_eq!(archived_early(&app).await, 2, "the installation's log keeps what it said of each archive");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenant_leaves_no_row_and_no_person_who_belongs_nowhere_else(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let colleague = app.colleague(&owner, "developer").await;
    let worker = FakeWorker::active(&app, "w1").await;
    for who in [&owner, &stranger] {
        let id = session(&app, who).await.parse().unwrap();
        worker.told(&id, |_| true).await;
        app.api_key(who, "sandbox", &["webhooks"]).await;
        let webhook = json!({"url": "https://93.184.216.34/hook", "event_types": ["*"]});
        let post = app.post("/api/v1/webhooks", &webhook).bearer_auth(&who.access_token);
        let made = Answer::of(post.header("idempotency-key", "once")).await;
        assert_eq!(made.status, 201, "{made:?}");
        let invitation = json!({"email": "grace@example.com", "role": "viewer"});
        let made = Answer::of(app.post("/api/v1/invitations", &invitation).bearer_auth(&who.access_token)).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    // It never answers again.
    assert_eq!(app.count("SELECT assigned FROM workers").await, 2);
    drop(worker);
    audit::seal(app.app()).await.unwrap();
    heads::export(app.app()).await.unwrap();
    assert_eq!(delete(&app, &owner, &owner.password).await.status, 202);
    hours_pass(&app, 6).await;
    hurried(&app, "there is an archive", async || has_archive(&app, &owner).await).await;
    // The week is over, and so is the day in which workers are to remove the linked devices: none is here.
    let before = shared::time::Timestamp::now().as_millis() - 25 * 3_600_000;
    app.sql("UPDATE tenants SET delete_at = $1 WHERE status = 'deleting'", [before.into()]).await;
    let left = format!("SELECT COUNT(*) FROM tenants WHERE id = '{}'", owner.tenant_id);
    hurried(&app, "the tenant is gone", async || app.count(&left).await == 0).await;

    assert_eq!(app.count("SELECT assigned FROM workers").await, 1, "what was deleted holds no place there");
    let said = "SELECT COUNT(*) FROM audit_log WHERE operation = 'tenant_deleted' AND resource_id";
    assert_eq!(app.count(&format!("{said} = '{}'", owner.tenant_id)).await, 1, "the installation's log says so");
    // Nor is a log missed that went with its tenant.
    let parts = app.app();
    let heads = Heads::of_last_days(&parts.audit, &parts.objects, 1).await.unwrap();
    assert_eq!(heads.files, 1);
    let report = verify(parts.db.read(), &parts.audit, None, &heads).await.unwrap();
    assert_eq!(report.wrong, []);

    let tables = tables_with(&app, "tenant_id").await;
    assert!(tables.len() >= 12, "{tables:?}");
    for table in tables.iter().filter(|table| *table != "jobs") {
        let of = |who: &Owner| format!("SELECT COUNT(*) FROM {table} WHERE tenant_id = '{}'", who.tenant_id);
        assert_eq!(app.count(&of(&owner)).await, 0, "{table}");
        if ["sessions", "api_keys", "webhooks", "invitations", "members", "logins", "idempotency_keys"]
            .contains(&table.as_str())
        {
            assert!(app.count(&of(&stranger)).await > 0, "{table} of others");
        }
    }
    let waiting = format!("SELECT COUNT(*) FROM jobs WHERE tenant_id = '{}' AND state = 'ready'", owner.tenant_id);
    assert_eq!(app.count(&waiting).await, 0);
    let people =
        async |who: &Owner| app.count(&format!("SELECT COUNT(*) FROM users WHERE id = '{}'", who.user_id)).await;
    assert_eq!((people(&owner).await, people(&colleague).await, people(&stranger).await), (0, 1, 1));
    get(&app, &owner, "/api/v1/me").await.assert_problem(401, "unauthenticated");
    let body = json!({"email": owner.email, "password": owner.password});
    Answer::of(app.post("/api/v1/auth/login", &body)).await.assert_problem(401, "invalid-credentials");
    let again: Value = json!({"email": owner.email, "password": owner.password, "name": "Ada", "tenant_name": "Acme"});
    assert_eq!(Answer::of(app.post("/api/v1/auth/signup", &again)).await.status, 201);
    let body = json!({"email": colleague.email, "password": colleague.password});
    assert_eq!(Answer::of(app.post("/api/v1/auth/login", &body)).await.status, 200, "they have a tenant of their own");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_has_begun_to_delete_no_other_lets_be_kept(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let begun = delete(&app, &owner, &owner.password).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    eventually("nobody works on it here", async || {
        app.sql("DELETE FROM jobs WHERE kind = 'tenants.delete' AND state = 'ready'", []).await == 1
    })
    .await;
    // A replica whose clock is ahead has come to the end of the week.
    app.sql("UPDATE tenants SET delete_at = -delete_at", []).await;
    keep(&app, &owner).await.assert_problem(409, "conflict");
    let shown = get(&app, &owner, "/api/v1/tenant").await.json();
    assert_eq!((&shown["status"], &shown["delete_at"]), (&json!("deleting"), &begun.json()["delete_at"]));
    app.stop().await;
}
