//! Seeing and ending one's logins, changing one's password, and browsers' cookies.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use crate::harness::{Answer, Engine, Owner, TestApp};

const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

async fn log_in(app: &TestApp, owner: &Owner) -> Value {
    let body = json!({"email": owner.email, "password": owner.password});
    let answer = Answer::of(app.post("/api/v1/auth/login", &body).header("user-agent", BROWSER)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn list(app: &TestApp, access: &str, query: &str) -> Value {
    let answer = Answer::of(app.get(&format!("/api/v1/auth/logins{query}")).bearer_auth(access)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn works(app: &TestApp, tokens: &Value) -> bool {
    let access = tokens["access_token"].as_str().unwrap();
    let me = Answer::of(app.get("/api/v1/me").bearer_auth(access)).await.status;
    let body = json!({"refresh_token": tokens["refresh_token"]});
    let refreshed = Answer::of(app.post("/api/v1/auth/refresh", &body)).await.status;
    assert_eq!(me, refreshed, "access and refresh token live and end together");
    me == 200
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_their_own_logins_roughly_and_ends_any_of_them(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let second = log_in(&app, &owner).await;
    let logins = list(&app, &owner.access_token, "").await;
    let logins = logins["data"].as_array().unwrap();
    assert_eq!(logins.len(), 2, "{logins:?}");
    assert_eq!(logins[0]["device"], "Firefox on Linux");
    assert_eq!(logins[0]["address"], "127.0.0.0/24");
    let current: Vec<_> = logins.iter().map(|login| login["current"].as_bool().unwrap()).collect();
    assert_eq!(current, [false, true]);
    let page = list(&app, &owner.access_token, "?limit=1").await;
    let cursor = format!("?limit=1&cursor={}", page["next_cursor"].as_str().unwrap());
    let rest = list(&app, &owner.access_token, &cursor).await;
    assert_eq!((&page["data"][0], &rest["data"][0]), (&logins[0], &logins[1]));

    let end = async |who: &Owner, id: &Value| {
        let path = format!("/api/v1/auth/logins/{}", id.as_str().unwrap());
        Answer::of(app.request(Method::DELETE, &path).bearer_auth(&who.access_token)).await
    };
    let unknown = json!(shared::ids::LoginId::new().to_string());
    let expected = end(&stranger, &unknown).await;
    expected.assert_problem(404, "not-found");
    let refused = end(&stranger, &logins[0]["id"]).await;
    assert_eq!(refused.without_request_id(), expected.without_request_id(), "another person's is none");
    assert!(works(&app, &second).await);
    assert_eq!(end(&owner, &logins[0]["id"]).await.status, 204);
    assert!(!works(&app, &second).await);
    end(&owner, &logins[0]["id"]).await.assert_problem(404, "not-found");
    assert_eq!(list(&app, &owner.access_token, "").await["data"].as_array().unwrap().len(), 1);
    assert_eq!(end(&owner, &logins[1]["id"]).await.status, 204, "also the one that asks");
    Answer::of(app.get("/api/v1/me").bearer_auth(&owner.access_token)).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn another_password_ends_all_other_logins(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mut owner = app.sign_up().await;
    let other = log_in(&app, &owner).await;
    let change = async |current: &str, new: &str| {
        let body = json!({"current_password": current, "new_password": new});
        Answer::of(app.post("/api/v1/me/password", &body).bearer_auth(&owner.access_token)).await
    };
    change("not the password", "incorrect horse battery").await.assert_problem(403, "wrong-password");
    let short = change(&owner.password, "short").await;
    short.assert_problem(422, "validation");
    assert_eq!(short.pointers(), ["/new_password"]);
    assert!(works(&app, &other).await);
    let done = change(&owner.password, "incorrect horse battery").await;
    assert_eq!(done.status, 204, "{done:?}");
    let refresh = json!({"refresh_token": other["refresh_token"]});
    Answer::of(app.post("/api/v1/auth/refresh", &refresh)).await.assert_problem(401, "unauthenticated");
    assert_eq!(
        Answer::of(app.get("/api/v1/me").bearer_auth(&owner.access_token)).await.status,
        200,
        "this one goes on"
    );
    let old = json!({"email": owner.email, "password": owner.password});
    Answer::of(app.post("/api/v1/auth/login", &old)).await.assert_problem(401, "invalid-credentials");
    owner.password = "incorrect horse battery".into();
    log_in(&app, &owner).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_s_refresh_token_lies_in_a_cookie_that_only_its_own_origin_uses(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"email": owner.email, "password": owner.password, "cookie": true});
    let from = |site: &str, path: &str, body: &Value, cookie: &str| {
        let request = app.post(&format!("/api/v1/auth/{path}"), body).header("sec-fetch-site", site);
        Answer::of(if cookie.is_empty() { request } else { request.header("cookie", cookie) })
    };
    from("cross-site", "login", &body, "").await.assert_problem(403, "cross-site");
    let inside = from("same-origin", "login", &body, "").await;
    assert_eq!(inside.status, 200, "{inside:?}");
    assert!(inside.json().get("refresh_token").is_none(), "{inside:?}");
    let set = inside.header("set-cookie").unwrap().to_owned();
    for attribute in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/api/v1/auth"] {
        assert!(set.split("; ").any(|part| part == attribute), "{attribute}: {set}");
    }
    let age: u64 = set.split("; ").find_map(|part| part.strip_prefix("Max-Age=")?.parse().ok()).unwrap();
    assert!((2_591_990..=2_592_000).contains(&age), "as long as the login: {set}");
    let cookie = set.split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("__Secure-switchboard-refresh=sbr_"));

    let nothing = json!({});
    from("same-origin", "refresh", &nothing, "").await.assert_problem(401, "unauthenticated");
    for path in ["refresh", "logout"] {
        for site in ["cross-site", "same-site", "none"] {
            from(site, path, &nothing, &cookie).await.assert_problem(403, "cross-site");
        }
        let bare = app.post(&format!("/api/v1/auth/{path}"), &nothing).header("cookie", &cookie);
        Answer::of(bare).await.assert_problem(403, "cross-site");
        let other = app.post(&format!("/api/v1/auth/{path}"), &nothing).header("cookie", &cookie);
        Answer::of(other.header("origin", "https://evil.example")).await.assert_problem(403, "cross-site");
    }
    let refreshed = from("same-origin", "refresh", &nothing, &cookie).await;
    assert_eq!(refreshed.status, 200, "{refreshed:?}");
    let next = refreshed.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_ne!(next, cookie);
    // An older browser sends its origin only.
    let older = app.post("/api/v1/auth/refresh", &nothing).header("cookie", &next).header("origin", app.base_url());
    let refreshed = Answer::of(older).await;
    assert_eq!(refreshed.status, 200, "{refreshed:?}");
    let next = refreshed.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let out = from("same-origin", "logout", &nothing, &next).await;
    assert_eq!(out.status, 204, "{out:?}");
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    from("same-origin", "refresh", &nothing, &next).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

/// On SQLite nothing of a log-in goes on while somebody else writes, so this can be arranged on PostgreSQL only.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_the_old_password_that_is_under_way_does_not_outlive_the_change() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    let owner = app.sign_up().await;
    let log_in = async |password: &str| {
        let body = json!({"email": owner.email, "password": password});
        Answer::of(app.post("/api/v1/auth/login", &body)).await
    };
    // A change of the password that has written and not committed.
    let tx = app.app().db.write().await.unwrap();
    let change =
        "UPDATE users SET password_hash = (SELECT password_hash FROM users WHERE id = $1) || 'x' WHERE id = $1";
    let statement =
        sea_orm::Statement::from_sql_and_values(app.app().db.engine(), change, [owner.user_id.as_str().into()]);
    sea_orm::ConnectionTrait::execute_raw(&tx, statement).await.unwrap();
    let under_way = log_in(&owner.password);
    let committed = async {
        // Passwords are compared in turns: after so many others, this one was compared.
        for _ in 0..8 {
            log_in("not the password").await.assert_problem(401, "invalid-credentials");
        }
        tx.commit().await.unwrap();
    };
    let (late, ()) = tokio::join!(under_way, committed);
    late.assert_problem(401, "invalid-credentials");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_logins_beside_a_change_of_the_password_none_goes_on(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for _ in 0..4 {
        let owner = app.sign_up().await;
        let with_the_old = json!({"email": owner.email, "password": owner.password});
        let logins = (0..6).map(|_| Answer::of(app.post("/api/v1/auth/login", &with_the_old)));
        let body = json!({"current_password": owner.password, "new_password": "incorrect horse battery"});
        let change = Answer::of(app.post("/api/v1/me/password", &body).bearer_auth(&owner.access_token));
        let (change, logins) = tokio::join!(change, futures_util::future::join_all(logins));
        assert_eq!(change.status, 204, "{change:?}");
        for login in logins.iter().filter(|answer| answer.status == 200) {
            let token = login.json()["access_token"].as_str().unwrap().to_owned();
            Answer::of(app.get("/api/v1/me").bearer_auth(token)).await.assert_problem(401, "unauthenticated");
        }
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_switched_while_all_end_ends_as_well() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    let owner = app.sign_up().await;
    // A reset of the password, as far as its first statement.
    let tx = app.app().db.write().await.unwrap();
    let run = async |statement: &str| {
        let values = [owner.user_id.as_str().into()];
        let statement = sea_orm::Statement::from_sql_and_values(app.app().db.engine(), statement, values);
        sea_orm::ConnectionTrait::execute_raw(&tx, statement).await.unwrap();
    };
    run("UPDATE users SET name = 'Reset' WHERE id = $1").await;
    let body = json!({"tenant_id": owner.tenant_id});
    let switched = Answer::of(app.post("/api/v1/auth/switch", &body).bearer_auth(&owner.access_token));
    let switched = tokio::spawn(switched);
    crate::parts::eventually("the switch waits, or is through", async || {
        let waits =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        switched.is_finished() || app.count(waits).await > 0
    })
    .await;
    run("UPDATE logins SET revoked_at = 1 WHERE user_id = $1 AND revoked_at IS NULL AND created_at < 9e15").await;
    tx.commit().await.unwrap();
    switched.await.unwrap().assert_problem(401, "unauthenticated");
    assert_eq!(app.count("SELECT COUNT(*) FROM logins WHERE revoked_at IS NULL").await, 0);
    app.stop().await;
}
