//! Attempts are limited by address and by account, over all replicas, and tell nothing of whether an account exists.

use control_plane::config::Config;
use rstest::rstest;
use serde_json::{Value, json};

use crate::harness::{Answer, Engine, TestApp};

fn on(config: &mut Config) {
    config.auth.throttle = true;
    // Each request says by itself where it comes from.
    config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
}

fn login(email: &str, password: &str) -> Value {
    json!({"email": email, "password": password})
}

async fn post(app: &TestApp, base: &str, path: &str, from: &str, body: &Value) -> Answer {
    Answer::of(app.http.post(format!("{base}{path}")).header("x-forwarded-for", from).json(body)).await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn guessing_at_one_account_ends_after_ten_tries_over_two_replicas_wherever_they_come_from(
    #[case] engine: Engine,
) {
    let Some(mut app) = TestApp::start_with(engine, on).await else { return };
    let owner = app.sign_up().await;
    let bases = [app.base_url(), app.replica().await];
    let mut refusals = Vec::new();
    for email in [owner.email.as_str(), "nobody@example.com"] {
        let body = login(email, "not the password");
        let tries = (0..40).map(|n| {
            let (base, from) = (bases[n % 2].clone(), format!("198.51.100.{n}"));
            let (app, body) = (&app, &body);
            async move { post(app, &base, "/api/v1/auth/login", &from, body).await }
        });
        let answers = futures_util::future::join_all(tries).await;
        let (wrong, limited): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 401);
        // One more comes every 30 s, and this may take a while on a busy machine.
        assert!((10..=12).contains(&wrong.len()), "{}", wrong.len());
        for answer in limited {
            answer.assert_problem(429, "rate-limited");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            // Those that came at once have clocks of their own.
            assert!((1..=31).contains(&wait), "{wait}");
            refusals.push(answer.without_request_id());
        }
        wrong[0].assert_problem(401, "invalid-credentials");
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "an account that exists is refused as one that doesn't");
    // The right password doesn't help either, until there is room again.
    let right = login(&owner.email, &owner.password);
    post(&app, &bases[0], "/api/v1/auth/login", "203.0.113.1", &right).await.assert_problem(429, "rate-limited");
    app.sql("UPDATE throttles SET tat = tat - 30001", []).await;
    let inside = post(&app, &bases[1], "/api/v1/auth/login", "203.0.113.1", &right).await;
    assert_eq!(inside.status, 200, "{inside:?}");
    // Getting in forgives the account its failed attempts.
    for _ in 0..9 {
        let wrong = login(&owner.email, "not the password");
        post(&app, &bases[0], "/api/v1/auth/login", "203.0.113.1", &wrong)
            .await
            .assert_problem(401, "invalid-credentials");
    }
    assert_eq!(post(&app, &bases[1], "/api/v1/auth/login", "203.0.113.1", &right).await.status, 200);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_limited_over_all_accounts_and_no_other_address_is(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, on).await else { return };
    let base = app.base_url();
    let from = "2001:db8:0:1::5";
    let mut admitted = 0;
    for n in 0..16 {
        let body = json!({
            "email": format!("p{n}@example.com"), "password": "correct horse battery", "name": "P", "tenant_name": "T",
        });
        let answer = post(&app, &base, "/api/v1/auth/signup", from, &body).await;
        if answer.status == 201 {
            admitted += 1;
        } else {
            answer.assert_problem(429, "rate-limited");
        }
    }
    assert!((10..=11).contains(&admitted), "{admitted}");
    let body = json!({"email": "x@example.com", "password": "correct horse battery", "name": "P", "tenant_name": "T"});
    // The same host has its whole /64; what it writes into the header by itself isn't read.
    let same_host = post(&app, &base, "/api/v1/auth/signup", "9.9.9.9, 2001:db8:0:1:ffff::", &body).await;
    same_host.assert_problem(429, "rate-limited");
    assert_eq!(post(&app, &base, "/api/v1/auth/signup", "2001:db8:0:2::5", &body).await.status, 201);
    app.sql("UPDATE throttles SET tat = 1", []).await;
    control_plane::auth::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM throttles").await, 0, "nobody is remembered for longer than needed");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_invites_so_many_and_then_waits_from_wherever_it_asks(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, on).await else { return };
    let (owner, other, third) = (app.sign_up().await, app.sign_up().await, app.sign_up().await);
    let invite = async |who: &crate::harness::Owner, n: u32| {
        let body = json!({"email": format!("person-{n}@example.com"), "role": "viewer"});
        let request = app.post("/api/v1/invitations", &body).header("x-forwarded-for", format!("203.0.113.{n}"));
        Answer::of(request.bearer_auth(&who.access_token)).await
    };
    for n in 0..20 {
        assert_eq!(invite(&owner, n).await.status, 201, "{n}");
    }
    invite(&owner, 20).await.assert_problem(429, "rate-limited");
    // What was done before is told again, and not counted.
    let body = json!({"email": "ada@example.com", "role": "viewer"});
    let again = async || {
        let request = app.post("/api/v1/invitations", &body).bearer_auth(&third.access_token);
        Answer::of(request.header("idempotency-key", "k").header("x-forwarded-for", "203.0.113.99")).await
    };
    let first = again().await;
    assert_eq!(first.status, 201, "{first:?}");
    for _ in 0..5 {
        let told = again().await;
        assert_eq!((told.status, told.text), (first.status, first.text.clone()));
    }
    assert_eq!(invite(&other, 21).await.status, 201, "another tenant doesn't wait");
    app.stop().await;
}
