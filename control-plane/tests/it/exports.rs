//! All that a tenant has, as one archive.

use std::io::{Cursor, Read};

use control_plane::{config::Config, jobs::JobKind};
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    ids::{ExportId, MessageId},
    wire::{outbox::InboundBody, send::Content},
};

use crate::{
    deletion::tables_with,
    harness::{Answer, Engine, Owner, TestApp},
    parts::eventually,
    plans::{limit, plans},
    s3_server::{ACCESS_KEY, S3Server, Store, settings},
};

const PATH: &str = "/api/v1/tenant/exports";

async fn ask(app: &TestApp, who: &Owner, password: &str) -> Answer {
    Answer::of(app.post(PATH, &json!({"password": password})).bearer_auth(&who.access_token)).await
}

async fn get(app: &TestApp, who: &Owner, path: &str) -> Answer {
    Answer::of(app.get(path).bearer_auth(&who.access_token)).await
}

/// The tries of an archive are minutes apart.
async fn time_passes(app: &TestApp) {
    app.sql("UPDATE jobs SET run_at = 0 WHERE kind = 'tenants.export' AND state = 'ready'", []).await;
    app.app().bell.ring(JobKind::ExportTenant);
}

/// The lines of one file of the archive.
pub fn lines(archive: &[u8], name: &str) -> Vec<Value> {
    let mut zip = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut text = String::new();
    zip.by_name(name).unwrap().read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where the rows of a table go.
fn file_of(table: &str) -> Option<&'static str> {
    Some(match table {
        "members" => "members.jsonl",
        "logins" => "logins.jsonl",
        "invitations" => "invitations.jsonl",
        "ownership_offers" => "ownership-offer.jsonl",
        "subscriptions" => "subscription.jsonl",
        "quota_counters" => "quota.jsonl",
        "api_keys" => "api-keys.jsonl",
        "sessions" => "sessions.jsonl",
        "messages" => "messages.jsonl",
        "events" => "events.jsonl",
        "webhooks" => "webhooks.jsonl",
        "deliveries" => "deliveries.jsonl",
        "usage_facts" => "usage.jsonl",
        "audit_log" => "audit-log.jsonl",
        _ => return None,
    })
}

/// What we keep for ourselves: answers to repeat, work to do, seals, and the archives.
const WITHOUT_A_FILE: [&str; 5] = ["audit_heads", "exports", "idempotency_keys", "job_turns", "jobs"];

const JUNE: i64 = 1_780_272_000_000;
const JULY: i64 = 1_782_864_000_000;

/// A plan, something decided otherwise, two months of which units were used, and somebody who is to be the owner.
async fn give_a_plan(app: &TestApp, owner: &Owner) {
    let tenant = owner.tenant_id.as_str();
    plans(app, &["assign", tenant, "free"]).await;
    plans(app, &["override", tenant, "--limit", "sessions=77", "--feature", "whatsapp=on"]).await;
    for (month, stripe, used) in [(JUNE, 0, 3_i64), (JULY, 0, 4), (JULY, 1, 5), (JULY, -1, 0)] {
        let values = [tenant.into(), month.into(), stripe.into(), used.into()];
        app.sql(
            "INSERT INTO quota_counters (tenant_id, quota, period, stripe, used) \
             VALUES ($1, 'messages_per_month', $2, $3, $4)",
            values,
        )
        .await;
    }
    let admin = "SELECT user_id FROM members WHERE role = 'admin'";
    let offer = format!(
        "INSERT INTO ownership_offers (tenant_id, to_user_id, created_at, expires_at) \
         VALUES ($1, ({admin}), 0, 9000000000000)"
    );
    app.sql(&offer, [tenant.into()]).await;
}

#[track_caller]
fn assert_plan(archive: &[u8]) {
    let plan = &lines(archive, "plan.jsonl")[0];
    assert_eq!((&plan["plan"], &plan["source"]), (&json!("free"), &json!("subscription")), "{plan}");
    assert_eq!(limit(plan, "sessions"), (json!(77), 1));
    let subscription = &lines(archive, "subscription.jsonl")[0];
    assert_eq!((&subscription["plan"], &subscription["version"]), (&json!("free"), &json!(1)), "{subscription}");
    let overrides = json!({"features": {"whatsapp": true}, "limits": {"sessions": 77}});
    assert_eq!(subscription["overrides"], overrides);
    let quota = [
        json!({"quota": "messages_per_month", "month": "2026-07-01T00:00:00.000Z", "used": 9}),
        json!({"quota": "messages_per_month", "month": "2026-06-01T00:00:00.000Z", "used": 3}),
    ];
    assert_eq!(lines(archive, "quota.jsonl"), quota);
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_export_holds_all_of_the_tenant_in_order_nothing_of_others_and_no_secret(
    #[case] engine: Engine,
    #[values(Store::Folder, Store::S3)] store: Store,
) {
    let Some(settings) = store.settings() else { return };
    let change = |config: &mut Config| config.objects = settings.unwrap_or_else(|| config.objects.clone());
    let Some(app) = TestApp::start_with(engine, change).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let admin = app.colleague(&owner, "admin").await;
    give_a_plan(&app, &owner).await;
    let session = json!({"name": "s", "network": "sandbox", "start": false});
    assert_eq!(Answer::of(app.post("/api/v1/sessions", &session).bearer_auth(&owner.access_token)).await.status, 201);
    let webhook = json!({"url": "https://93.184.216.34/hook", "event_types": ["*"]});
    let webhook = Answer::of(app.post("/api/v1/webhooks", &webhook).bearer_auth(&owner.access_token)).await;
    let secret = webhook.json()["secret"].as_str().unwrap().to_owned();
    let key = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    let body = InboundBody::Content { content: Content::Text { body: "Grüße".into() } };
    let body = serde_json::to_string(&body).unwrap();
    // More than one page of a list.
    for who in [&owner, &stranger] {
        let count = if who.tenant_id == owner.tenant_id { 250 } else { 1 };
        let session = shared::ids::SessionId::new().to_string();
        for _ in 0..count {
            app.sql(
                "INSERT INTO messages (id, tenant_id, session_id, direction, wa_id, chat, sender, kind, content, status, \
                 created_at) VALUES ($1, $2, $3, 'inbound', $1, 'c', 'c', 'text', $4, 'delivered', 0)",
                [
                    MessageId::new().as_str().into(),
                    who.tenant_id.as_str().into(),
                    session.as_str().into(),
                    body.as_str().into(),
                ],
            )
            .await;
        }
    }

    ask(&app, &admin, &admin.password).await.assert_problem(403, "missing-scope");
    ask(&app, &owner, "not the password").await.assert_problem(403, "wrong-password");
    let asked = ask(&app, &owner, &owner.password).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let path = format!("{PATH}/{}", asked.json()["id"].as_str().unwrap());
    eventually("the archive is ready", async || get(&app, &owner, &path).await.json()["status"] == "ready").await;
    let archive = app.get(&format!("{path}/archive")).bearer_auth(&owner.access_token);
    let archive = archive.header("accept-encoding", "gzip, br").send().await.unwrap();
    assert_eq!(archive.headers()["content-type"], "application/zip");
    assert!(archive.headers().get("content-encoding").is_none(), "it is compressed already");
    assert!(archive.headers().contains_key("content-length"), "so that whoever fetches it knows when it is whole");
    let archive = archive.bytes().await.unwrap();
    assert_eq!(get(&app, &owner, &path).await.json()["bytes"], archive.len());

    assert_eq!(lines(&archive, "members.jsonl").len(), 2);
    assert_plan(&archive);
    let logins = lines(&archive, "logins.jsonl");
    let who: Vec<_> = logins.iter().map(|login| login["user_id"].as_str().unwrap()).collect();
    assert_eq!(who, [admin.user_id.as_str(), owner.user_id.as_str()], "of this account, the newest first");
    assert!(logins.iter().all(|login| login["device"].is_string() && login["revoked_at"].is_null()), "{logins:?}");
    assert_eq!(lines(&archive, "ownership-offer.jsonl")[0]["to_user_id"], admin.user_id);
    assert_eq!(lines(&archive, "sessions.jsonl").len(), 1);
    assert_eq!(lines(&archive, "webhooks.jsonl").len(), 1);
    assert_eq!(lines(&archive, "api-keys.jsonl")[0]["last_four"], key[key.len() - 4..]);
    assert!(lines(&archive, "audit-log.jsonl").iter().any(|entry| entry["operation"] == "create_api_key"));
    let messages = lines(&archive, "messages.jsonl");
    assert_eq!((messages.len(), &messages[0]["text"]["body"]), (250, &json!("Grüße")));
    assert!(messages.is_sorted_by(|a, b| a["id"].as_str() > b["id"].as_str()));
    let mut zip = zip::ZipArchive::new(Cursor::new(&archive)).unwrap();
    for index in 0..zip.len() {
        let mut text = String::new();
        zip.by_index(index).unwrap().read_to_string(&mut text).unwrap();
        for hidden in [&key, &secret, &stranger.tenant_id, &stranger.user_id, &owner.refresh_token, &owner.password] {
            assert!(!text.contains(hidden.as_str()), "file {index}");
        }
        for hidden in ["$argon2", "_hash", "sealed"] {
            assert!(!text.contains(hidden), "file {index}");
        }
    }
    for table in tables_with(&app, "tenant_id").await {
        match file_of(&table) {
            Some(file) => assert!(zip.by_name(file).is_ok(), "{file} of {table}"),
            None => assert!(WITHOUT_A_FILE.contains(&table.as_str()), "{table} is in no file"),
        }
    }

    for path in [path.clone(), format!("{path}/archive")] {
        let other = path.replace(asked.json()["id"].as_str().unwrap(), ExportId::new().as_str());
        let unknown = get(&app, &stranger, &other).await;
        unknown.assert_problem(404, "not-found");
        assert_eq!(get(&app, &stranger, &path).await.without_request_id(), unknown.without_request_id());
    }
    let listed = get(&app, &owner, PATH).await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    let file = format!("exports/{}/{}.zip", owner.tenant_id, asked.json()["id"].as_str().unwrap());
    app.app().objects.delete(&file).await.unwrap();
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(409, "conflict");
    app.sql("UPDATE exports SET expires_at = 1", []).await;
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(404, "not-found");
    control_plane::tenants::prune(app.app()).await.unwrap();
    get(&app, &owner, &path).await.assert_problem(404, "not-found");
    assert!(app.app().objects.read(&file).await.is_err(), "the file is gone too");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn one_archive_is_made_at_a_time_and_one_that_cannot_be_stored_says_so(#[case] engine: Engine) {
    // A folder that can't be made: a file lies there.
    let blocked = tempfile::NamedTempFile::new().unwrap();
    let url = control_plane::objects::folder_url(blocked.path()).unwrap();
    let Some(app) = TestApp::start_with(engine, |config| config.objects.url = url).await else { return };
    let owner = app.sign_up().await;
    let asked = ask(&app, &owner, &owner.password).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    ask(&app, &owner, &owner.password).await.assert_problem(409, "conflict");
    let path = format!("{PATH}/{}", asked.json()["id"].as_str().unwrap());
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(409, "conflict");
    eventually("it is given up", async || {
        time_passes(&app).await;
        get(&app, &owner, &path).await.json()["status"] == "failed"
    })
    .await;
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(409, "conflict");
    assert_eq!(ask(&app, &owner, &owner.password).await.status, 202);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_waits_for_an_s3_that_is_away_and_is_shown_when_it_is_whole(#[case] engine: Engine) {
    let Some(mut server) = S3Server::start().await else { return };
    let objects = settings(&server.endpoint(), ACCESS_KEY, "objects");
    let Some(app) = TestApp::start_with(engine, |config| config.objects = objects).await else { return };
    let owner = app.sign_up().await;
    server.kill();
    let asked = ask(&app, &owner, &owner.password).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let path = format!("{PATH}/{}", asked.json()["id"].as_str().unwrap());
    eventually("a try has failed", async || {
        app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'tenants.export' AND state = 'ready' AND attempts = 1").await
            == 1
    })
    .await;
    assert_eq!(get(&app, &owner, &path).await.json()["status"], "running");
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(409, "conflict");
    server.start_again().await;
    eventually("the archive is ready", async || {
        time_passes(&app).await;
        get(&app, &owner, &path).await.json()["status"] == "ready"
    })
    .await;
    let archive = app.get(&format!("{path}/archive")).bearer_auth(&owner.access_token);
    let archive = archive.send().await.unwrap().bytes().await.unwrap();
    assert_eq!(lines(&archive, "members.jsonl").len(), 1);

    // Away when it is fetched: not now, and nothing is lost.
    server.kill();
    get(&app, &owner, &format!("{path}/archive")).await.assert_problem(503, "unavailable");
    server.start_again().await;
    let archive = app.get(&format!("{path}/archive")).bearer_auth(&owner.access_token);
    assert_eq!(lines(&archive.send().await.unwrap().bytes().await.unwrap(), "members.jsonl").len(), 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_has_five_archives_made_within_a_day(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let ask = async || {
        let body = json!({"password": owner.password});
        Answer::of(app.post("/api/v1/tenant/exports", &body).bearer_auth(&owner.access_token)).await
    };
    for _ in 0..5 {
        assert_eq!(ask().await.status, 202);
        eventually("it is made", async || {
            app.count("SELECT COUNT(*) FROM exports WHERE status = 'running'").await == 0
        })
        .await;
    }
    ask().await.assert_problem(409, "conflict");
    app.sql("UPDATE exports SET status = 'failed' WHERE id = (SELECT MIN(id) FROM exports)", []).await;
    assert_eq!(ask().await.status, 202, "one that failed doesn't count");
    app.sql("UPDATE exports SET created_at = created_at - 86400000", []).await;
    eventually("it is made", async || app.count("SELECT COUNT(*) FROM exports WHERE status = 'running'").await == 0)
        .await;
    assert_eq!(ask().await.status, 202, "the next day");
    app.stop().await;
}
