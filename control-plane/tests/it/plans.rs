//! Plans and their limits.

use std::{collections::BTreeMap, io::Write};

use clap::Parser;
use control_plane::plans::command::PlansCommand;
use futures_util::future::join_all;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    fleet::{FakeWorker, Program, until},
    harness::{Answer, Engine, Owner, TestApp, mail_links},
    parts::eventually,
};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: PlansCommand,
}

/// Runs `control-plane plans …`.
async fn try_plans(app: &TestApp, arguments: &[&str]) -> anyhow::Result<String> {
    let line = Line::try_parse_from(["plans"].iter().chain(arguments))?;
    line.command.run(&app.app().db).await
}

pub async fn plans(app: &TestApp, arguments: &[&str]) -> String {
    try_plans(app, arguments).await.unwrap()
}

/// `control-plane plans apply` with this file.
async fn apply(app: &TestApp, file: &Value) -> String {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(file.to_string().as_bytes()).unwrap();
    plans(app, &["apply", on_disk.path().to_str().unwrap()]).await
}

fn file(sessions: u32) -> Value {
    json!({
        "default": "free",
        "plans": [
            {"name": "free", "title": "Free", "features": ["webhooks"], "limits": {"sessions": sessions}},
            {"name": "pro", "title": "Pro", "features": ["webhooks", "whatsapp"], "limits": {"sessions": 10 * sessions}},
        ],
    })
}

pub async fn plan_of(app: &TestApp, owner: &Owner) -> Value {
    let answer = Answer::of(app.get("/api/v1/plan").bearer_auth(&owner.access_token)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// As a program sees it.
pub async fn plan_of_key(program: &Program<'_>) -> Value {
    program.get("plan").await.json()
}

pub fn limit(plan: &Value, name: &str) -> (Value, i64) {
    let limits = plan["limits"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["limit"] == name).unwrap();
    (limit["allowed"].clone(), limit["used"].as_i64().unwrap())
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_order_is_override_trial_given_version_default(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let tenant = owner.tenant_id.as_str();
    let plan = plan_of(&app, &owner).await;
    assert_eq!(
        (&plan["plan"], &plan["source"], limit(&plan, "sessions").0),
        (&json!("free"), &json!("default"), Value::Null)
    );

    assert_eq!(apply(&app, &file(1)).await, "free\t2\tnew version\npro\t1\tnew version\n");
    assert_eq!(apply(&app, &file(1)).await, "free\t2\tunchanged\npro\t1\tunchanged\n");
    let plan = plan_of(&app, &owner).await;
    assert_eq!(
        (&plan["version"], limit(&plan, "sessions").0),
        (&json!(2), json!(1)),
        "those who were given none follow"
    );

    plans(&app, &["assign", tenant, "pro"]).await;
    assert_eq!(apply(&app, &file(2)).await, "free\t3\tnew version\npro\t2\tnew version\n");
    let plan = plan_of(&app, &owner).await;
    assert_eq!((&plan["version"], &plan["source"]), (&json!(1), &json!("subscription")));
    assert_eq!(limit(&plan, "sessions").0, 10, "a version that was given stays as it was");

    plans(&app, &["trial", tenant, "free", "--days", "3"]).await;
    let plan = plan_of(&app, &owner).await;
    assert_eq!(
        (&plan["plan"], &plan["source"], limit(&plan, "sessions").0),
        (&json!("free"), &json!("trial"), json!(2))
    );
    assert!(plan["trial_ends_at"].is_string());
    plans(
        &app,
        &["override", tenant, "--limit", "sessions=77", "--limit", "members=unlimited", "--feature", "whatsapp=on"],
    )
    .await;
    plans(&app, &["override", tenant, "--limit", "api_keys=5"]).await;
    let plan = plan_of(&app, &owner).await;
    assert_eq!((limit(&plan, "sessions").0, limit(&plan, "api_keys").0), (json!(77), json!(5)));
    assert_eq!((&plan["overridden"], &plan["features"]), (&json!(true), &json!(["whatsapp", "webhooks"])));
    assert!(plans(&app, &["show", tenant]).await.contains("sessions=77"));

    app.sql("UPDATE subscriptions SET trial_ends_at = 1", []).await;
    let plan = plan_of(&app, &owner).await;
    assert_eq!(
        (&plan["plan"], &plan["source"], limit(&plan, "sessions").0),
        (&json!("pro"), &json!("subscription"), json!(77))
    );
    plans(&app, &["override", tenant, "--clear"]).await;
    assert_eq!(limit(&plan_of(&app, &owner).await, "sessions").0, 10);
    plans(&app, &["unassign", tenant]).await;
    assert_eq!(plan_of(&app, &owner).await["source"], "default");

    let listed = Answer::of(app.get("/api/v1/plans").bearer_auth(&owner.access_token)).await.json();
    let names: BTreeMap<_, _> =
        listed["data"].as_array().unwrap().iter().map(|p| (p["plan"].to_string(), p["version"].clone())).collect();
    assert_eq!(names, BTreeMap::from([("\"free\"".into(), json!(3)), ("\"pro\"".into(), json!(2))]));
    assert!(try_plans(&app, &["assign", tenant, "no-such-plan"]).await.is_err());
    assert!(try_plans(&app, &["assign", tenant, "pro", "--version", "9"]).await.is_err());
    assert!(try_plans(&app, &["assign", "ten_01h455vb4pex5vsknk084sn02q", "pro"]).await.is_err());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_tenant_tries_what_new_tenants_may_try(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let before = app.sign_up().await;
    let mut file = file(1);
    file["trial"] = json!({"plan": "pro", "days": 14});
    apply(&app, &file).await;
    let after = app.sign_up().await;
    assert_eq!(plan_of(&app, &before).await["source"], "default");
    let plan = plan_of(&app, &after).await;
    assert_eq!((&plan["plan"], &plan["source"]), (&json!("pro"), &json!("trial")));
    plans(&app, &["assign", &after.tenant_id, "free"]).await;
    assert_eq!(plan_of(&app, &after).await["source"], "subscription", "the trial ends with it");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_accept_an_invitation_at_once_as_many_join_as_the_plan_allows(#[case] engine: Engine) {
    const INVITED: usize = 6;
    let Some(mut app) = TestApp::start(engine).await else { return };
    let other = if engine == Engine::Postgres { app.replica().await } else { app.base_url() };
    let owner = app.sign_up().await;
    let tenant = owner.tenant_id.as_str();
    let invite = async |name: &str| {
        let body = json!({"email": format!("{name}@example.com"), "role": "viewer"});
        Answer::of(app.post("/api/v1/invitations", &body).bearer_auth(&owner.access_token)).await
    };
    let accept = async |base: &str, token: &str| {
        let body = json!({"token": token, "name": "Grace", "password": "correct horse battery"});
        Answer::of(app.http.post(format!("{base}/api/v1/invitations/accept")).json(&body)).await
    };
    let members = async || app.count(&format!("SELECT COUNT(*) FROM members WHERE tenant_id = '{tenant}'")).await;
    // The owner is one of them.
    plans(&app, &["override", tenant, "--limit", "members=1"]).await;
    invite("early").await.assert_problem(402, "quota-exceeded");
    plans(&app, &["override", tenant, "--limit", "members=3"]).await;
    for n in 0..INVITED {
        assert_eq!(invite(&format!("invited-{n}")).await.status, 201, "an invitation takes no place");
    }
    let tokens = || -> Vec<String> {
        let links = mail_links().into_iter().filter(|link| link.contains("/accept-invitation#"));
        links.map(|link| link.split("#token=").nth(1).unwrap().trim_matches('"').to_owned()).collect()
    };
    eventually("all are mailed", async || tokens().len() == INVITED).await;
    let tokens = tokens();
    let here = app.base_url();
    let answers =
        join_all(tokens.iter().enumerate().map(|(n, token)| accept(if n % 2 == 0 { &here } else { &other }, token)));
    let answers = answers.await;
    let (joined, refused): (Vec<_>, Vec<_>) = tokens.iter().zip(&answers).partition(|(_, answer)| answer.status == 200);
    assert_eq!((joined.len(), refused.len()), (2, INVITED - 2), "{answers:?}");
    for (_, answer) in &refused {
        answer.assert_problem(402, "quota-exceeded");
    }
    assert_eq!(members().await, 3);
    invite("late").await.assert_problem(402, "quota-exceeded");

    // Whom there was no room for has lost nothing: the invitation works once there is, and until then no account was made.
    assert_eq!(app.count("SELECT COUNT(*) FROM users").await, 3);
    plans(&app, &["override", tenant, "--limit", "members=4"]).await;
    let now = join_all(refused.iter().map(|(token, _)| accept(&here, token))).await;
    assert_eq!(now.iter().filter(|answer| answer.status == 200).count(), 1, "{now:?}");
    assert_eq!(members().await, 4);
    // Nor does one who leaves take the place along.
    let gone = joined[0].1.json()["user_id"].as_str().unwrap().to_owned();
    let removed = app.request(reqwest::Method::DELETE, &format!("/api/v1/members/{gone}"));
    assert_eq!(Answer::of(removed.bearer_auth(&owner.access_token)).await.status, 204);
    assert_eq!(invite("late").await.status, 201);
    assert_eq!(limit(&plan_of(&app, &owner).await, "members"), (json!(4), 3));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_make_something_at_once_as_many_succeed_as_the_plan_allows(#[case] engine: Engine) {
    let Some(mut app) = TestApp::start(engine).await else { return };
    let other = if engine == Engine::Postgres { app.replica().await } else { app.base_url() };
    let owner = app.sign_up().await;
    let tenant = owner.tenant_id.as_str();
    plans(&app, &["override", tenant, "--limit", "sessions=3", "--limit", "api_keys=4", "--limit", "webhooks=0"]).await;
    let make = |path: &'static str, body: Value, wanted: usize| {
        let (app, other, token) = (&app, other.as_str(), owner.access_token.as_str());
        async move {
            let answers = join_all((0..16).map(|n| {
                let base = if n % 2 == 0 { app.base_url() } else { other.to_owned() };
                Answer::of(app.http.post(format!("{base}/api/v1/{path}")).json(&body).bearer_auth(token))
            }))
            .await;
            let made = answers.iter().filter(|answer| answer.status == 201).count();
            assert_eq!(made, wanted, "{path}");
            for answer in answers.iter().filter(|answer| answer.status != 201) {
                answer.assert_problem(402, "quota-exceeded");
            }
            answers.into_iter().find(|answer| answer.status == 201).map(|answer| answer.json()["id"].clone())
        }
    };
    let session = make("sessions", json!({"name": "a", "network": "sandbox", "start": false}), 3).await.unwrap();
    let key = json!({"name": "a", "network": "sandbox", "scopes": ["messages:read"]});
    let made = make("api-keys", key.clone(), 4).await.unwrap();
    make("webhooks", json!({"url": "https://example.com/hook", "event_types": ["*"]}), 0).await;
    let plan = plan_of(&app, &owner).await;
    assert_eq!((limit(&plan, "sessions"), limit(&plan, "api_keys")), ((json!(3), 3), (json!(4), 4)));
    assert_eq!(limit(&plan, "members"), (Value::Null, 1));

    // What is deleted makes room.
    for path in [format!("sessions/{}", session.as_str().unwrap()), format!("api-keys/{}", made.as_str().unwrap())] {
        let gone = app.request(reqwest::Method::DELETE, &format!("/api/v1/{path}")).bearer_auth(&owner.access_token);
        assert!(Answer::of(gone).await.status.is_success());
    }
    make("sessions", json!({"name": "b", "network": "sandbox", "start": false}), 1).await;
    make("api-keys", key, 1).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_the_plan_lacks_is_refused_and_named(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    plans(&app, &["override", &owner.tenant_id, "--feature", "whatsapp=off", "--feature", "webhooks=off"]).await;
    let post = |path: &str, body: Value| {
        Answer::of(app.post(&format!("/api/v1/{path}"), &body).bearer_auth(&owner.access_token))
    };
    let refused = post("sessions", json!({"name": "a", "network": "whatsapp"})).await;
    refused.assert_problem(402, "feature-not-in-plan");
    assert!(refused.json()["detail"].as_str().unwrap().contains("whatsapp"));
    assert_eq!(post("sessions", json!({"name": "a", "network": "sandbox"})).await.status, 201);
    let hook = json!({"url": "https://example.com/hook", "event_types": ["*"]});
    post("webhooks", hook.clone()).await.assert_problem(402, "feature-not-in-plan");
    plans(&app, &["override", &owner.tenant_id, "--feature", "webhooks=on", "--limit", "webhooks=1"]).await;
    assert_eq!(post("webhooks", hook.clone()).await.status, 201);
    post("webhooks", hook).await.assert_problem(409, "webhook-exists");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn workers_of_a_pool_run_the_sessions_of_its_plans_and_no_others(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let shared = FakeWorker::active(&app, "shared").await;
    let owned = FakeWorker::active(&app, "owned").await;
    app.sql("UPDATE workers SET pool = 'acme' WHERE id = 'owned'", []).await;
    let (with_pool, without) = (Program::new(&app).await, Program::new(&app).await);
    plans(&app, &["override", &with_pool.tenant, "--pool", "acme"]).await;
    for _ in 0..3 {
        owned.told(&with_pool.session().await, |_| true).await;
        shared.told(&without.session().await, |_| true).await;
    }
    plans(&app, &["override", &with_pool.tenant, "--pool", "another"]).await;
    let nowhere = with_pool.session().await;
    until("it is known that there is no room", async || {
        (with_pool.status(&nowhere, "starting").await["reason"] == "no_capacity").then_some(())
    })
    .await;
    assert!(!shared.holds(&nowhere) && !owned.holds(&nowhere));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn rotation_makes_no_more_keys_than_one_beside_each_that_the_plan_allows(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    plans(&app, &["override", &owner.tenant_id, "--limit", "api_keys=1"]).await;
    let post = async |path: &str, body: Value| {
        Answer::of(app.post(&format!("/api/v1/api-keys{path}"), &body).bearer_auth(&owner.access_token)).await
    };
    let first = post("", json!({"name": "a", "network": "sandbox", "scopes": ["messages:read"]})).await;
    let id = |answer: &Answer| answer.json()["id"].as_str().unwrap().to_owned();
    let overlap = json!({"overlap_seconds": 3600});
    let second = post(&format!("/{}/rotate", id(&first)), overlap.clone()).await;
    assert_eq!(second.status, 201, "{second:?}");
    let rotate = format!("/{}/rotate", id(&second));
    post(&rotate, overlap.clone()).await.assert_problem(409, "conflict");
    let gone = app.request(reqwest::Method::DELETE, &format!("/api/v1/api-keys/{}", id(&first)));
    assert_eq!(Answer::of(gone.bearer_auth(&owner.access_token)).await.status, 204);
    assert_eq!(post(&rotate, overlap).await.status, 201);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_made_for_one_customer_is_shown_to_no_other(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (customer, other) = (app.sign_up().await, app.sign_up().await);
    let mut own = file(1);
    own["plans"].as_array_mut().unwrap().push(json!({"name": "for-acme", "title": "Acme's own", "listed": false}));
    apply(&app, &own).await;
    let listed = plans(&app, &["list"]).await;
    assert_eq!(listed.lines().filter(|line| line.ends_with("not listed")).count(), 1, "{listed}");
    assert!(!apply(&app, &own).await.contains("new version"), "it says the same");
    plans(&app, &["assign", &customer.tenant_id, "for-acme"]).await;
    let seen = async |who: &Owner| -> Vec<String> {
        let answer = Answer::of(app.get("/api/v1/plans").bearer_auth(&who.access_token)).await;
        let plans = answer.json()["data"].as_array().unwrap().clone();
        plans.iter().map(|plan| plan["plan"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(seen(&customer).await, ["for-acme", "free", "pro"]);
    assert_eq!(seen(&other).await, ["free", "pro"]);
    app.stop().await;
}
