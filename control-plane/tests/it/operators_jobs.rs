//! Operators look at jobs that were given up, try them again, and call off such as wait.

use std::time::Duration;

use control_plane::jobs::{self, JobKind, NewJob};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    ids::{DeliveryId, JobId},
    time::Timestamp,
};

use crate::{
    harness::{Answer, Engine, Owner, TestApp},
    operators_plans::Desk,
};

/// A job that waits for longer than any test.
async fn waiting(app: &TestApp, owner: &Owner, kind: JobKind) -> JobId {
    let subject = DeliveryId::new().to_string();
    let job = NewJob {
        tenant_id: owner.tenant_id.parse().unwrap(),
        kind,
        lane: format!("operators:{subject}"),
        subject,
        run_at: Timestamp::now().plus(Duration::from_secs(3600)),
        max_attempts: 8,
    };
    jobs::enqueue(app.app().db.autocommit(), job).await.unwrap()
}

/// One that was given up, so long ago.
async fn dead(app: &TestApp, owner: &Owner, kind: JobKind, seconds: u64) -> JobId {
    let job = waiting(app, owner, kind).await;
    let give_up =
        "UPDATE jobs SET state = 'dead', attempts = 8, last_error = 'of boredom', finished_at = $1 WHERE id = $2";
    let at = Timestamp::now().minus(Duration::from_secs(seconds));
    app.sql(give_up, [at.into(), job.clone().into()]).await;
    job
}

async fn post(desk: &Desk<'_>, job: &str, what: &str) -> Answer {
    desk.ask(Method::POST, &format!("jobs/{job}/{what}"), &Value::Null).await
}

fn ids(listed: &Value) -> Vec<String> {
    listed["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_were_given_up_are_listed_by_when_and_by_kind(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let desk = Desk::new(&app).await;
    assert_eq!(desk.get("jobs/dead").await, json!({"data": [], "next_cursor": null}));
    let older = dead(&app, &owner, JobKind::DeliverWebhook, 60).await.to_string();
    let newer = dead(&app, &owner, JobKind::SendMail, 1).await.to_string();
    waiting(&app, &owner, JobKind::SendMail).await;
    let listed = desk.get("jobs/dead").await;
    assert_eq!(ids(&listed), [newer.clone(), older.clone()]);
    let first = &listed["data"][0];
    let told = (&first["tenant_id"], &first["kind"], &first["attempts"], &first["reason"]);
    assert_eq!(told, (&json!(owner.tenant_id), &json!("mail.send"), &json!(8), &json!("of boredom")));
    assert_eq!(ids(&desk.get("jobs/dead?kind=webhooks.deliver").await), [older]);
    // The same millisecond twice: the place of one of them is in the cursor.
    let beside = dead(&app, &owner, JobKind::SendMail, 1).await.to_string();
    let now = Timestamp::now().into();
    app.sql("UPDATE jobs SET finished_at = $1 WHERE id IN ($2, $3)", [now, newer.into(), beside.into()]).await;
    let whole = ids(&desk.get("jobs/dead").await);
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    while paged.len() < whole.len() {
        let page = desk.get(&format!("jobs/dead?limit=1{cursor}")).await;
        paged.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, whole, "each once, in the same order");
    for wrong in ["kind=nonsense", "kind=", "limit=0", "limit=101", "limit=-1", "cursor=MQ"] {
        desk.ask(Method::GET, &format!("jobs/dead?{wrong}"), &Value::Null).await.assert_problem(400, "bad-request");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_called_off_once_and_what_must_go_on_is_not(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let desk = Desk::new(&app).await;
    let job = waiting(&app, &owner, JobKind::SendMail).await.to_string();
    assert_eq!(post(&desk, &job, "cancel").await.status, 204);
    let again = post(&desk, &job, "cancel").await;
    again.assert_problem(404, "not-found");
    let left = format!("SELECT COUNT(*) FROM jobs WHERE id = '{job}' AND attempts < max_attempts AND state = 'ready'");
    assert_eq!(app.count(&left).await, 0, "it isn't tried any more");
    for kind in [JobKind::DeleteTenant, JobKind::Upkeep] {
        let needed = waiting(&app, &owner, kind).await.to_string();
        let refused = post(&desk, &needed, "cancel").await;
        refused.assert_problem(409, "conflict");
        assert!(refused.json()["detail"].as_str().unwrap().contains(kind.as_str()), "{refused:?}");
        let query = format!("SELECT COUNT(*) FROM jobs WHERE id = '{needed}' AND state = 'ready' AND attempts = 0");
        assert_eq!(app.count(&query).await, 1);
    }
    let (unknown, waits) = (JobId::new().to_string(), waiting(&app, &owner, JobKind::SendMail).await.to_string());
    for job in [unknown.as_str(), "x", "%00", "ses_01h455vb4pex5vsknk084sn02q"] {
        post(&desk, job, "cancel").await.assert_problem(404, "not-found");
        post(&desk, job, "redrive").await.assert_problem(404, "not-found");
    }
    post(&desk, &waits, "redrive").await.assert_problem(404, "not-found");

    let key = app.api_key(&owner, "sandbox", &["usage:read"]).await;
    for token in [&owner.access_token, &key] {
        for path in [format!("jobs/{waits}/cancel"), format!("jobs/{waits}/redrive")] {
            let request = app.request(Method::POST, &format!("/api/v1/admin/{path}")).bearer_auth(token);
            Answer::of(request).await.assert_problem(401, "unauthenticated");
        }
        let list = app.get("/api/v1/admin/jobs/dead").bearer_auth(token);
        Answer::of(list).await.assert_problem(401, "unauthenticated");
    }
    app.stop().await;
}
