//! Jobs that were given up, and that the operator redrives: their work is really done then, or it is said why not.

use std::time::Duration;

use control_plane::jobs::{
    self, JobKind,
    dead::{self, DeadJob},
    redrive::{self, RedriveError, Redriven},
};
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    ids::JobId,
    time::Timestamp,
    wire::{
        send::{Content, SendOutcome},
        session::Observed,
    },
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, TestApp},
    mail::{log_in, post, sign_up, with_mail},
    parts::eventually,
    plans::plans,
};

const TO: &str = "+15550001234";

/// As `control-plane jobs redrive ID`.
pub async fn redrive(app: &TestApp, id: &JobId) -> Result<(), RedriveError> {
    redrive::redrive(app.app(), &app.app().handlers, id).await?;
    for kind in JobKind::ALL {
        app.app().bell.ring(kind);
    }
    Ok(())
}

/// As `control-plane jobs redrive --all KIND`.
pub async fn redrive_all(app: &TestApp, kind: JobKind) -> Redriven {
    let done = redrive::redrive_all(app.app(), &app.app().handlers, kind).await.unwrap();
    app.app().bell.ring(kind);
    done
}

/// The job isn't redriven, for this reason, and stays as dead as it was.
#[track_caller]
pub fn refused<'a>(app: &'a TestApp, job: &'a DeadJob, why: &'a str) -> impl Future<Output = ()> + 'a {
    let place = std::panic::Location::caller();
    async move {
        match redrive(app, &job.id).await {
            Err(RedriveError::Refused(told)) => assert_eq!(told, why, "{place}"),
            other => panic!("{place}: {other:?}"),
        }
        let still = dead::list(&app.app().db, JobKind::named(&job.kind), None, 1_000).await.unwrap();
        assert!(still.contains(job), "{place}: {still:?}");
    }
}

/// The dead job that is about something, once it is dead.
async fn dead_of(app: &TestApp, subject: &str) -> DeadJob {
    until("its job is dead", async || {
        let dead = dead::list(&app.app().db, None, None, 1_000).await.unwrap();
        dead.into_iter().find(|job| job.subject == subject)
    })
    .await
}

async fn dead_of_kind(app: &TestApp, kind: JobKind) -> DeadJob {
    until("a job is dead", async || dead::list(&app.app().db, Some(kind), None, 1).await.unwrap().pop()).await
}

async fn due(app: &TestApp, kind: JobKind) {
    app.sql("UPDATE jobs SET run_at = 1 WHERE kind = $1 AND state = 'ready'", [kind.as_str().into()]).await;
    app.app().bell.ring(kind);
}

/// A message that expired while its session was away, and whose job is dead, as one is that was claimed so often that it is given
/// up in the moment of the expiry.
async fn expired(app: &TestApp, program: &Program<'_>, put: &shared::wire::session::PutSession) -> (Value, DeadJob) {
    let sent = program.send(&put.session_id, TO, "late").await;
    assert_eq!(sent.status, 202, "{sent:?}");
    let id = sent.json()["id"].as_str().unwrap().to_owned();
    app.sql("UPDATE messages SET expires_at = 1 WHERE id = $1", [id.as_str().into()]).await;
    due(app, JobKind::SendMessages).await;
    let message = program.message(&id, "expired").await;
    eventually("its job has ended", async || {
        let done = format!("SELECT COUNT(*) FROM jobs WHERE subject = '{id}' AND state = 'done'");
        app.count(&done).await == 1
    })
    .await;
    app.sql("UPDATE jobs SET state = 'dead' WHERE subject = $1", [id.as_str().into()]).await;
    (message, dead_of(app, &id).await)
}

async fn quota(app: &TestApp, program: &Program<'_>, messages: u32) {
    plans(app, &["override", &program.tenant, "--limit", &format!("messages_per_month={messages}")]).await;
}

async fn used(app: &TestApp) -> i64 {
    app.count("SELECT CAST(COALESCE(SUM(used), -1) AS BIGINT) FROM quota_counters").await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_expired_is_sent_under_its_ids_and_takes_a_unit_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    quota(&app, &program, 3).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    program.status(&put.session_id, "reconnecting").await;
    let (message, job) = expired(&app, &program, &put).await;
    assert_eq!((used(&app).await, worker.sent().len()), (0, 0), "its unit went back");

    redrive(&app, &job.id).await.unwrap();
    let queued = program.get(&format!("messages/{}", job.subject)).await.json();
    assert_eq!((&queued["status"], &queued["failed_at"]), (&json!("queued"), &Value::Null));
    assert_eq!(queued["wa_id"], message["wa_id"]);
    assert_eq!(used(&app).await, 1);
    let told = "SELECT COUNT(*) FROM events WHERE type = 'message.status'";
    assert_eq!(app.count(told).await, 2, "that it expired, and that it waits again");

    worker.report(&put.session_id, Observed::Connected).await;
    due(&app, JobKind::SendMessages).await;
    program.message(&job.subject, "sent").await;
    let sent = worker.sent();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].message_id.as_str(), &json!(sent[0].wa_id)), (job.subject.as_str(), &message["wa_id"]));
    assert!(matches!(&sent[0].content, Content::Text { body } if body == "late"));
    let left = sent[0].expires_at - Timestamp::now().to_utc();
    assert!((23..=24).contains(&left.num_hours()), "a day, as any other: {left}");
    assert_eq!(used(&app).await, 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM usage_facts WHERE meter = 'messages_sent'").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_somebody_who_was_not_on_whatsapp_is_tried_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.send_with(|_| SendOutcome::Invalid { reason: "not_on_whatsapp".into() });
    let id = program.send(&put.session_id, TO, "x").await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(program.message(&id, "failed").await["reason"], "not_on_whatsapp");
    eventually("its job has ended", async || {
        app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'messages.send' AND state = 'done'").await == 1
    })
    .await;
    app.sql("UPDATE jobs SET state = 'dead' WHERE subject = $1", [id.as_str().into()]).await;
    worker.send_with(|_| SendOutcome::Acked { at: chrono::Utc::now() });
    let all = redrive_all(&app, JobKind::SendMessages).await;
    assert_eq!((all.revived, all.refused.len()), (1, 0));
    assert_eq!(program.message(&id, "sent").await["reason"], Value::Null);
    assert_eq!(worker.sent().len(), 2);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_a_unit_left_stays_ended(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    quota(&app, &program, 1).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    program.status(&put.session_id, "reconnecting").await;
    let (message, job) = expired(&app, &program, &put).await;
    worker.report(&put.session_id, Observed::Connected).await;
    let other = program.send(&put.session_id, TO, "other").await.json()["id"].as_str().unwrap().to_owned();
    program.message(&other, "sent").await;
    match redrive(&app, &job.id).await {
        Err(RedriveError::Refused(why)) => assert!(why.contains("all 1 are used"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(program.get(&format!("messages/{}", job.subject)).await.json(), message);
    assert_eq!(used(&app).await, 1);
    quota(&app, &program, 2).await;
    redrive(&app, &job.id).await.unwrap();
    program.message(&job.subject, "sent").await;
    assert_eq!(used(&app).await, 2);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_whatsapp_may_have_or_that_must_not_go_is_not_redriven(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    program.status(&put.session_id, "reconnecting").await;

    // As it comes about.
    let id = program.send(&put.session_id, TO, "x").await.json()["id"].as_str().unwrap().to_owned();
    until("the job was called off while it waited", async || {
        let query = sea_orm::Statement::from_sql_and_values(
            app.app().db.engine(),
            "SELECT id FROM jobs WHERE subject = $1",
            [id.as_str().into()],
        );
        let row = sea_orm::ConnectionTrait::query_one_raw(app.app().db.read(), query).await.unwrap().unwrap();
        let job: JobId = row.try_get("", "id").unwrap();
        dead::cancel(app.app().db.autocommit(), &job).await.unwrap().then_some(())
    })
    .await;
    assert_eq!(program.message(&id, "failed").await["reason"], "cancelled");
    let job = dead_of(&app, &id).await;
    refused(&app, &job, "it was called off, and its tenant was told so").await;

    for (status, reason, why) in [
        ("failed", "outcome_unknown", "WhatsApp may have it"),
        ("failed", "reach_out_time_lock", "it was refused for good, and nothing is sent under its id again"),
        ("failed", "refused_400", "it was refused for good, and nothing is sent under its id again"),
        ("failed", "recipient", "it was refused for good, and nothing is sent under its id again"),
        ("failed", "session_deleted", "its session was deleted"),
        ("sent", "", "WhatsApp has it"),
        ("read", "", "WhatsApp has it"),
    ] {
        app.sql(
            "UPDATE messages SET status = $1, reason = $2 WHERE id = $3",
            [status.into(), reason.into(), id.as_str().into()],
        )
        .await;
        refused(&app, &job, why).await;
    }

    // One that could go, but for what is around it.
    let expired = "UPDATE messages SET status = 'expired', reason = NULL WHERE id = $1";
    app.sql(expired, [id.as_str().into()]).await;
    app.sql("UPDATE messages SET try_open = TRUE WHERE id = $1", [id.as_str().into()]).await;
    refused(&app, &job, "WhatsApp may have it").await;
    app.sql("UPDATE messages SET try_open = FALSE WHERE id = $1", [id.as_str().into()]).await;
    app.sql("UPDATE tenants SET status = 'suspended' WHERE id = $1", [program.tenant.as_str().into()]).await;
    refused(&app, &job, "its account is not active").await;
    app.sql("UPDATE tenants SET status = 'active' WHERE id = $1", [program.tenant.as_str().into()]).await;
    app.sql("UPDATE messages SET content = NULL WHERE id = $1", [id.as_str().into()]).await;
    refused(&app, &job, "what it said was erased").await;
    app.sql("UPDATE sessions SET desired = 'stopped'", []).await;
    match redrive(&app, &job.id).await {
        Err(RedriveError::Refused(told)) => assert!(told.starts_with("the session is "), "{told}"),
        other => panic!("{other:?}"),
    }
    app.sql("DELETE FROM messages WHERE id = $1", [id.as_str().into()]).await;
    refused(&app, &job, "there is no such message any more").await;
    assert!(worker.sent().is_empty());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_was_given_up_is_made_unless_another_is_being_made(#[case] engine: Engine) {
    // A folder that can't be made: a file lies there.
    let blocked = tempfile::NamedTempFile::new().unwrap();
    let folder = blocked.path().to_owned();
    let url = control_plane::objects::folder_url(&folder).unwrap();
    let Some(app) = TestApp::start_with(engine, |config| config.objects.url = url).await else { return };
    let owner = app.sign_up().await;
    let ask = async || {
        let body = json!({"password": owner.password});
        Answer::of(app.post("/api/v1/tenant/exports", &body).bearer_auth(&owner.access_token)).await
    };
    let get = async |path: &str| Answer::of(app.get(path).bearer_auth(&owner.access_token)).await;
    let asked = ask().await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let id = asked.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/tenant/exports/{id}");
    eventually("it is given up", async || {
        due(&app, JobKind::ExportTenant).await;
        get(&path).await.json()["status"] == "failed"
    })
    .await;
    let job = dead_of(&app, &id).await;

    let other = ask().await;
    assert_eq!(other.status, 202, "{other:?}");
    refused(&app, &job, "another archive of the account is being made").await;
    let other = other.json()["id"].as_str().unwrap().to_owned();
    eventually("the other is given up too", async || {
        due(&app, JobKind::ExportTenant).await;
        get(&format!("/api/v1/tenant/exports/{other}")).await.json()["status"] == "failed"
    })
    .await;
    dead_of(&app, &other).await;

    blocked.close().unwrap();
    redrive(&app, &job.id).await.unwrap();
    let running = get(&path).await.json();
    assert!(running["status"] == "running" || running["status"] == "ready", "{running}");
    eventually("it is ready", async || {
        due(&app, JobKind::ExportTenant).await;
        get(&path).await.json()["status"] == "ready"
    })
    .await;
    let archive = app.get(&format!("{path}/archive")).bearer_auth(&owner.access_token).send().await.unwrap();
    assert!(archive.bytes().await.unwrap().starts_with(b"PK"));

    let other = dead_of(&app, &other).await;
    app.sql("UPDATE exports SET status = 'ready' WHERE id = $1", [other.subject.as_str().into()]).await;
    refused(&app, &other, "the archive is there").await;
    app.sql("UPDATE exports SET status = 'failed' WHERE id = $1", [other.subject.as_str().into()]).await;
    app.sql("UPDATE tenants SET status = 'deleting' WHERE id = $1", [owner.tenant_id.as_str().into()]).await;
    refused(&app, &other, "the account is being deleted, which makes an archive of its own").await;
    app.sql("UPDATE tenants SET status = 'active' WHERE id = $1", [owner.tenant_id.as_str().into()]).await;
    app.sql("DELETE FROM exports WHERE id = $1", [other.subject.as_str().into()]).await;
    refused(&app, &other, "the archive is not kept any more").await;
    app.stop().await;
    tokio::fs::remove_dir_all(folder).await.unwrap();
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_was_given_up_arrives_within_its_week_and_its_row_goes(#[case] engine: Engine) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    let given_up = async |email: &str| {
        sink.be_busy(2);
        post(&app, "signup", &sign_up(email, "correct horse battery")).await;
        eventually("it was put off", async || {
            app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send' AND state = 'ready' AND attempts = 1").await
                == 1
        })
        .await;
        app.sql("UPDATE jobs SET attempts = max_attempts - 1 WHERE kind = 'mail.send' AND state = 'ready'", []).await;
        due(&app, JobKind::SendMail).await;
        dead_of_kind(&app, JobKind::SendMail).await
    };
    let job = given_up("ada@example.com").await;
    assert!(sink.mails().is_empty());
    redrive(&app, &job.id).await.unwrap();
    let mail = sink.mail(1).await;
    assert_eq!(mail.to, "ada@example.com");
    assert_eq!(post(&app, "verify-email", &json!({"token": mail.token()})).await.status, 204);
    assert_eq!(log_in(&app, "ada@example.com", "correct horse battery").await.status, 200);
    let rows = "SELECT COUNT(*) FROM mails";
    eventually("its row is gone", async || app.count(rows).await == 0).await;

    let job = given_up("grace@example.com").await;
    let asked = |ago: u64| Timestamp::now().minus(Duration::from_secs(ago));
    app.sql("UPDATE mails SET created_at = $1", [asked(7 * 24 * 3600 + 60).into()]).await;
    refused(&app, &job, "it was asked for more than a week ago").await;
    control_plane::mail::prune(app.app()).await.unwrap();
    assert_eq!(app.count(rows).await, 1, "a day longer, so that none goes under the hands of who redrives it");
    app.sql("UPDATE mails SET created_at = $1", [asked(8 * 24 * 3600 + 60).into()]).await;
    let again = jobs::NewJob {
        tenant_id: job.tenant_id.clone(),
        kind: JobKind::SendMail,
        lane: format!("mail:{}", job.subject),
        subject: job.subject.clone(),
        run_at: Timestamp::now().plus(Duration::from_secs(3600)),
        max_attempts: 1,
    };
    let again = jobs::enqueue(app.app().db.autocommit(), again).await.unwrap();
    control_plane::mail::prune(app.app()).await.unwrap();
    assert_eq!(app.count(rows).await, 1, "its job is going to send it");
    app.sql("DELETE FROM jobs WHERE id = $1", [again.into()]).await;
    control_plane::mail::prune(app.app()).await.unwrap();
    assert_eq!(app.count(rows).await, 0);
    refused(&app, &job, "it is not kept any more").await;
    assert_eq!(sink.mails().len(), 1);
    app.stop().await;
}
