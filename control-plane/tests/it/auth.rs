//! Signing up, logging in, staying logged in.

use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_signs_up_logs_in_makes_a_key_and_calls_with_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;

    // The address is the same however it is written.
    let login = json!({"email": format!("  {} ", owner.email.to_uppercase()), "password": owner.password});
    let answer = Answer::of(app.post("/api/v1/auth/login", &login)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["expires_in"], 900);
    let access = answer.json()["access_token"].as_str().unwrap().to_owned();

    let me = Answer::of(app.get("/api/v1/me").bearer_auth(&access)).await;
    assert_eq!(me.status, 200, "{me:?}");
    assert_eq!(me.json()["email"], owner.email);
    assert_eq!(me.json()["role"], "owner");
    assert_eq!(me.json()["tenant"]["id"], owner.tenant_id);

    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let tenant = Answer::of(app.get("/api/v1/tenant").header("x-api-key", &key)).await;
    assert_eq!(tenant.json()["id"], owner.tenant_id, "{tenant:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_an_unknown_address_get_the_same_answer(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let wrong = json!({"email": owner.email, "password": "not the password"});
    let unknown = json!({"email": "nobody@example.com", "password": owner.password});
    let wrong = Answer::of(app.post("/api/v1/auth/login", &wrong)).await;
    let unknown = Answer::of(app.post("/api/v1/auth/login", &unknown)).await;
    wrong.assert_problem(401, "invalid-credentials");
    assert_eq!(wrong.without_request_id(), unknown.without_request_id());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_address_takes_as_long_as_a_wrong_password(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..11 {
        for (email, took) in [owner.email.as_str(), "nobody@example.com"].into_iter().zip(&mut took) {
            let started = std::time::Instant::now();
            let body = json!({"email": email, "password": "not the password"});
            Answer::of(app.post("/api/v1/auth/login", &body)).await.assert_problem(401, "invalid-credentials");
            took.push(started.elapsed());
        }
    }
    let [wrong, unknown] = took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    });
    // A hash takes many times what the rest of a login does; without it the difference would be that large.
    assert!(unknown < wrong * 3 && wrong < unknown * 3, "{wrong:?} {unknown:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_address_signs_up_once_even_if_it_tries_at_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let body = json!({
        "email": "twice@example.com", "password": "correct horse battery", "name": "Ada", "tenant_name": "Acme",
    });
    let tries = (0..4).map(|_| Answer::of(app.post("/api/v1/auth/signup", &body)));
    let answers = futures_util::future::join_all(tries).await;
    let (made, taken): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!(made.len(), 1, "{answers:?}");
    for answer in taken {
        answer.assert_problem(409, "email-taken");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM tenants").await, 1, "no tenant without its owner");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_used_refresh_token_gives_its_successor_for_ten_seconds_and_then_ends_the_login(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"refresh_token": owner.refresh_token});

    // Two tabs at once, and a third whose answer was lost.
    let (one, two) = tokio::join!(
        Answer::of(app.post("/api/v1/auth/refresh", &body)),
        Answer::of(app.post("/api/v1/auth/refresh", &body))
    );
    let three = Answer::of(app.post("/api/v1/auth/refresh", &body)).await;
    for answer in [&one, &two, &three] {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["refresh_token"], one.json()["refresh_token"]);
    }
    let access = one.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(Answer::of(app.get("/api/v1/me").bearer_auth(&access)).await.status, 200);

    assert_eq!(app.sql("UPDATE refresh_tokens SET used_at = used_at - 10001 WHERE used_at IS NOT NULL", []).await, 1);
    Answer::of(app.post("/api/v1/auth/refresh", &body)).await.assert_problem(401, "unauthenticated");
    let successor = json!({"refresh_token": one.json()["refresh_token"]});
    Answer::of(app.post("/api/v1/auth/refresh", &successor)).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/api/v1/me").bearer_auth(&access)).await.assert_problem(401, "unauthenticated");

    // Another login of the same person goes on.
    let login = json!({"email": owner.email, "password": owner.password});
    let other = Answer::of(app.post("/api/v1/auth/login", &login)).await;
    let access = other.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(Answer::of(app.get("/api/v1/me").bearer_auth(&access)).await.status, 200);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_refresh_and_access_tokens(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"refresh_token": owner.refresh_token});
    for _ in 0..2 {
        assert_eq!(Answer::of(app.post("/api/v1/auth/logout", &body)).await.status, 204);
    }
    let unknown = json!({"refresh_token": "sbr_unknown"});
    assert_eq!(Answer::of(app.post("/api/v1/auth/logout", &unknown)).await.status, 204);
    Answer::of(app.post("/api/v1/auth/refresh", &body)).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/api/v1/me").bearer_auth(&owner.access_token)).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_over_is_forgotten_with_its_tokens(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let other = app.sign_up().await;
    app.sql("UPDATE logins SET expires_at = 1 WHERE user_id = $1", [owner.user_id.into()]).await;
    let body = json!({"refresh_token": owner.refresh_token});
    Answer::of(app.post("/api/v1/auth/refresh", &body)).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/api/v1/me").bearer_auth(&owner.access_token)).await.assert_problem(401, "unauthenticated");
    control_plane::auth::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM logins").await, 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens").await, 1);
    assert_eq!(Answer::of(app.get("/api/v1/me").bearer_auth(&other.access_token)).await.status, 200);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_password_and_no_token_lies_in_the_database_in_clear(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "whatsapp", &["messages:send"]).await;
    let refreshed = Answer::of(app.post("/api/v1/auth/refresh", &json!({"refresh_token": owner.refresh_token}))).await;
    let successor = refreshed.json()["refresh_token"].as_str().unwrap().to_owned();
    let db = &app.app().db;
    for secret in [&owner.password, &key, &owner.refresh_token, &successor] {
        for (table, columns) in [
            ("users", "password_hash || email || name"),
            ("api_keys", "name || last_four || scopes"),
            ("refresh_tokens", "login_id"),
        ] {
            let query = format!("SELECT COUNT(*) FROM {table} WHERE {columns} LIKE '%{secret}%'");
            assert_eq!(app.count(&query).await, 0, "{table}");
        }
    }
    for (table, column) in [
        ("api_keys", "secret_hash"),
        ("refresh_tokens", "token_hash"),
        ("refresh_tokens", "sealed_successor"),
        ("signing_keys", "sealed_pkcs8"),
        ("tenants", "sealed_data_key"),
    ] {
        let statement = sea_orm::Statement::from_string(
            db.engine(),
            format!("SELECT {column} AS bytes FROM {table} WHERE {column} IS NOT NULL"),
        );
        let rows = sea_orm::ConnectionTrait::query_all_raw(db.read(), statement).await.unwrap();
        assert!(!rows.is_empty(), "{table}.{column}");
        for row in rows {
            let bytes: Vec<u8> = row.try_get("", "bytes").unwrap();
            for secret in [&owner.password, &key, &owner.refresh_token, &successor] {
                assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{table}.{column}");
            }
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_tenant_reads_and_does_not_write(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    app.sql("UPDATE tenants SET status = 'suspended' WHERE id = $1", [owner.tenant_id.clone().into()]).await;
    let tenant = Answer::of(app.get("/api/v1/tenant").bearer_auth(&owner.access_token)).await;
    assert_eq!(tenant.json()["status"], "suspended", "{tenant:?}");
    let rename = app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"name": "Other"}));
    Answer::of(rename.bearer_auth(&owner.access_token)).await.assert_problem(403, "tenant-suspended");
    assert_eq!(app.count("SELECT COUNT(*) FROM tenants WHERE name = 'Other'").await, 0);
    app.stop().await;
}

const DAY: i64 = 24 * 3_600_000;

async fn refresh(app: &TestApp, token: &str) -> Answer {
    Answer::of(app.post("/api/v1/auth/refresh", &json!({"refresh_token": token}))).await
}

/// The successor of a refresh token.
async fn exchanged(app: &TestApp, token: &str) -> String {
    let answer = refresh(app, token).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["refresh_token"].as_str().unwrap().to_owned()
}

/// As if that much time had passed, for the tokens of every login and for their ends.
async fn age(app: &TestApp, millis: i64) {
    let tokens = "UPDATE refresh_tokens SET created_at = created_at - $1, used_at = used_at - $1";
    app.sql(tokens, [millis.into()]).await;
    app.sql("UPDATE logins SET expires_at = expires_at - $1", [millis.into()]).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_that_was_used_twenty_days_ago_ends_the_login_of_whoever_goes_on_with_it(
    #[case] engine: Engine,
) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    // A thief who has a copy uses it first, and goes on every day.
    let mut stolen = exchanged(&app, &owner.refresh_token).await;
    for _ in 0..20 {
        age(&app, DAY).await;
        stolen = exchanged(&app, &stolen).await;
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens").await, 2, "the one used just now, and its successor");
    let answer = refresh(&app, &stolen).await;
    assert_eq!(answer.status, 200, "the thief is in: {answer:?}");
    let tokens = answer.json();
    let (stolen, access) = (tokens["refresh_token"].as_str().unwrap(), tokens["access_token"].as_str().unwrap());
    assert_eq!(Answer::of(app.get("/api/v1/me").bearer_auth(access)).await.status, 200);

    // The person comes back after their holidays.
    refresh(&app, &owner.refresh_token).await.assert_problem(401, "unauthenticated");
    refresh(&app, stolen).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/api/v1/me").bearer_auth(access)).await.assert_problem(401, "unauthenticated");
    assert_eq!(app.count("SELECT COUNT(*) FROM logins WHERE revoked_at IS NOT NULL").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_used_refresh_token_of_the_version_before_ends_its_login_as_late(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    app.sign_up().await;
    // Then a token was random bits and nothing else; all that is known of it is its row.
    let old = "sbr_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE";
    let hash = app.app().master_key.derive("refresh-tokens");
    let hash = control_plane::auth::KeyedHash::new(&hash).of(old);
    app.sql("UPDATE refresh_tokens SET token_hash = $1, names_login = FALSE", [hash.into()]).await;
    let mut token = exchanged(&app, old).await;
    assert_eq!(exchanged(&app, old).await, token, "in another tab");
    for _ in 0..3 {
        age(&app, 5 * DAY).await;
        token = exchanged(&app, &token).await;
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens WHERE sealed_successor IS NOT NULL").await, 1);
    refresh(&app, old).await.assert_problem(401, "unauthenticated");
    refresh(&app, &token).await.assert_problem(401, "unauthenticated");
    // With the login its tokens are forgotten.
    age(&app, 20 * DAY).await;
    control_plane::auth::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn nobody_ends_a_login_with_a_refresh_token_that_is_made_up(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let (mine, theirs) = (&owner.refresh_token, &stranger.refresh_token);
    // `sbr_`, the login's id, the secret, the seal.
    let (id, rest) = mine[4..].split_at(26);
    let login = format!("lgn_{id}");
    let known = app.sql("UPDATE logins SET device = device WHERE id = $1", [login.as_str().into()]).await;
    assert_eq!(known, 1, "the id is where it is looked for");
    let (secret, seal) = rest.split_at(43);
    let their_secret = &theirs[30..73];
    for made_up in [
        format!("sbr_{id}{their_secret}{}", &theirs[73..]),
        format!("sbr_{id}{their_secret}{seal}"),
        format!("sbr_{id}{}{seal}", secret.to_ascii_uppercase()),
        format!("sbr_{id}{secret}{}", "A".repeat(43)),
        format!("sbr_{id}{secret}"),
        format!("sbr_{id}"),
        login,
    ] {
        refresh(&app, &made_up).await.assert_problem(401, "unauthenticated");
        let out = Answer::of(app.post("/api/v1/auth/logout", &json!({"refresh_token": made_up}))).await;
        assert_eq!(out.status, 204, "{out:?}");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM logins WHERE revoked_at IS NOT NULL").await, 0);
    exchanged(&app, mine).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_login_keeps_the_tokens_of_ten_seconds_and_ends_with_any_of_them(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let mut token = owner.refresh_token.clone();
    for _ in 0..3 {
        token = exchanged(&app, &token).await;
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens").await, 4, "each may be answered again");
    age(&app, 11_000).await;
    token = exchanged(&app, &token).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens").await, 2, "the one used just now, and its successor");
    assert_eq!(app.count("SELECT COUNT(*) FROM refresh_tokens WHERE sealed_successor IS NOT NULL").await, 1);
    // Logging out works with one that was used, too.
    let body = json!({"refresh_token": owner.refresh_token});
    assert_eq!(Answer::of(app.post("/api/v1/auth/logout", &body)).await.status, 204);
    refresh(&app, &token).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}
