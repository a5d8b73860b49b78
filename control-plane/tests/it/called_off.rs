//! Jobs that the operator calls off: what they were about learns of it.

use control_plane::jobs::{self, JobKind, NewJob, dead};
use rstest::rstest;
use serde_json::json;
use shared::{
    ids::{DeliveryId, EventId, ExportId, JobId, MailId},
    time::Timestamp,
    wire::session::Observed,
};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, Owner, TestApp},
};

const TO: &str = "+15550001234";

/// A job that waits for longer than any test.
async fn waiting(app: &TestApp, owner: &Owner, kind: JobKind, subject: &str) -> JobId {
    let job = NewJob {
        tenant_id: owner.tenant_id.parse().unwrap(),
        kind,
        lane: format!("called-off:{subject}"),
        subject: subject.into(),
        run_at: Timestamp::now().plus(std::time::Duration::from_secs(3600)),
        max_attempts: 20,
    };
    jobs::enqueue(app.app().db.autocommit(), job).await.unwrap()
}

async fn cancel(app: &TestApp, job: &JobId) -> bool {
    dead::cancel(app.app().db.autocommit(), job).await.unwrap()
}

async fn job_of(app: &TestApp, subject: &str) -> JobId {
    let db = &app.app().db;
    let query = "SELECT id FROM jobs WHERE subject = $1";
    let statement = sea_orm::Statement::from_sql_and_values(db.engine(), query, [subject.into()]);
    let row = sea_orm::ConnectionTrait::query_one_raw(db.read(), statement).await.unwrap().unwrap();
    row.try_get("", "id").unwrap()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_message_fails_gives_its_unit_back_and_frees_its_chat(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let worker = FakeWorker::active(&app, "w1").await;
    let program = Program::new(&app).await;
    let put = program.connected(&worker).await;
    worker.report(&put.session_id, Observed::Reconnecting).await;
    let first = program.send(&put.session_id, TO, "first").await.json()["id"].as_str().unwrap().to_owned();
    let second = program.send(&put.session_id, TO, "second").await.json()["id"].as_str().unwrap().to_owned();
    until("the job waits", async || {
        let job = job_of(&app, &first).await;
        cancel(&app, &job).await.then_some(())
    })
    .await;
    let failed = program.message(&first, "failed").await;
    assert_eq!(failed["reason"], "cancelled");
    assert_eq!(app.count("SELECT COUNT(*) FROM messages WHERE reserved_in IS NOT NULL AND status = 'failed'").await, 0);
    worker.report(&put.session_id, Observed::Connected).await;
    program.message(&second, "sent").await;
    assert_eq!(worker.sent().len(), 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_a_delivery_and_a_mail_end_and_are_not_left(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let (export, delivery, mail) = (ExportId::new(), DeliveryId::new(), MailId::new());
    let tenant = || owner.tenant_id.as_str().into();
    app.sql(
        "INSERT INTO exports (id, tenant_id, requested_by, status, created_at, expires_at) \
         VALUES ($1, $2, $3, 'running', 1, 1)",
        [export.as_str().into(), tenant(), owner.user_id.as_str().into()],
    )
    .await;
    app.sql(
        "INSERT INTO deliveries (id, tenant_id, webhook_id, event_id, event_type, status, created_at) \
         VALUES ($1, $2, 'w', $3, 't', 'pending', 1)",
        [delivery.as_str().into(), tenant(), EventId::new().as_str().into()],
    )
    .await;
    app.sql(
        "INSERT INTO mails (id, kind, sealed_data, created_at) VALUES ($1, 'k', $2, 1)",
        [mail.as_str().into(), vec![0_u8].into()],
    )
    .await;
    let left = async || {
        let query = format!(
            "SELECT (SELECT COUNT(*) FROM exports WHERE status = 'running') \
             + (SELECT COUNT(*) FROM deliveries WHERE completed_at IS NULL) \
             + (SELECT COUNT(*) FROM mails WHERE id = '{mail}') \
             - (SELECT COUNT(*) FROM jobs WHERE subject = '{mail}' AND state = 'dead')"
        );
        app.count(&query).await
    };
    assert_eq!(left().await, 3);
    for (kind, subject) in [
        (JobKind::ExportTenant, export.as_str()),
        (JobKind::DeliverWebhook, delivery.as_str()),
        (JobKind::SendMail, mail.as_str()),
    ] {
        let job = waiting(&app, &owner, kind, subject).await;
        assert!(cancel(&app, &job).await);
    }
    until("all have ended", async || (left().await == 0).then_some(())).await;
    let body = json!({"password": owner.password});
    let again = Answer::of(app.post("/api/v1/tenant/exports", &body).bearer_auth(&owner.access_token)).await;
    assert!(again.status.is_success(), "{again:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_must_go_on_can_t_be_called_off(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for kind in [JobKind::DeleteTenant, JobKind::Upkeep] {
        let job = waiting(&app, &owner, kind, kind.as_str()).await;
        let told = dead::cancel(app.app().db.autocommit(), &job).await.unwrap_err().to_string();
        assert!(told.contains(kind.as_str()), "{told}");
        let query = format!("SELECT COUNT(*) FROM jobs WHERE id = '{job}' AND state = 'ready' AND attempts = 0");
        assert_eq!(app.count(&query).await, 1);
    }
    app.stop().await;
}
